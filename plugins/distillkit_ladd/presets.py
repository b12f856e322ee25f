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
        settings={
            "gan_loss": "non-saturating",
            "level_mean": -1.0,
            "level_std": 1.2,
            "r1_weight": 3e-4,
            "discriminator_lr": 4e-3,
            "updates": 2,
            "depths": (0.25, 0.5),
        },
        training={
            "beta1": 0.0,
            "weight_decay": 0.0,
            "lr_schedule": "cosine",
            "lr": 2.1e-3,
            "duration": "300k",
            "ema_halflife": "2%",
        },
        student={"start_ratio": 2.5},
        pairs={"count": 32},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
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
