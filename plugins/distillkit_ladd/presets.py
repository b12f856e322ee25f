"""Settings of LADD that fit known teachers."""

from distillkit import Preset

GAN = {"beta1": 0.0, "weight_decay": 0.0, "lr_schedule": "cosine"}
LATENTS = {"precision": "bf16", "gradient_checkpointing": True}

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        training=GAN | {"lr": 3e-4, "warmup": "2k", "duration": "60k", "ema_halflife": "3k"},
        pairs={"count": 2048},
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
        training=GAN | {"batch": 32, "lr": 3e-4, "duration": "12k", "ema_halflife": "500"},
        pairs={"count": 1024, "steps": 10},
        source="untuned, for three minutes on two CPU cores",
    ),
)
