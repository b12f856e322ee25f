"""Settings of LADD that fit known teachers."""

from distillkit import Preset

GAN = {"beta1": 0.0, "weight_decay": 0.0, "lr_schedule": "cosine"}

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        # Where more noise is judged, or at the student's own rate, the discriminator stays at chance.
        settings={"level_mean": -1.5, "level_std": 1.2, "discriminator_lr": 3e-3},
        training=GAN | {"warmup": "2k", "duration": "60k", "ema_halflife": "3k"},
        pairs={"count": 2048},
        student={"start_ratio": 2.5},
        source="untuned, for five minutes on two CPU cores",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"gan_loss": "non-saturating", "level_mean": 0.0, "level_std": 2.0, "r1_weight": 0.1},
        training=GAN | {"lr": 1e-3, "duration": "150k", "ema_halflife": "10k"},
        pairs={"count": 8192},
        source="untuned, for seconds on a CPU core",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={"level_mean": 0.0, "level_std": 1.5, "discriminator_lr": 3e-3},
        training=GAN | {"batch": 32, "duration": "12k", "ema_halflife": "500"},
        pairs={"count": 1024, "steps": 10},
        source="untuned, for three minutes on two CPU cores",
    ),
)
