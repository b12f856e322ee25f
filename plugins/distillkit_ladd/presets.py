"""Settings of LADD that fit known teachers."""

from distillkit import Preset

GAN = {"beta1": 0.0, "weight_decay": 0.0, "lr_schedule": "cosine"}

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={
            "updates": 2,
            "gan_loss": "non-saturating",
            "level_mean": -1.0,
            "level_std": 1.2,
            "r1_weight": 0.063,
            "discriminator_lr": 8.4e-3,
        },
        training={
            "lr": 4.3e-4,
            "beta1": 0.0,
            "weight_decay": 0.0,
            "lr_schedule": "cosine",
            "warmup": 2000,
            "ema_halflife": "1%",
            "duration": "50k",
        },
        student={"start_ratio": 2.5},
        pairs={"count": 2048, "steps": 10},
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
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
        settings={
            "updates": 2,
            "depths": (0.5,),
            "gan_loss": "non-saturating",
            "level_mean": -1.5,
            "level_std": 2.0,
            "r1_weight": 2.2e-4,
            "discriminator_lr": 9.6e-4,
        },
        training={
            "lr": 1.8e-4,
            "beta1": 0.0,
            "weight_decay": 0.0,
            "lr_schedule": "cosine",
            "ema_halflife": "2%",
            "duration": "16k",
        },
        student={"start_ratio": 2.5},
        pairs={"count": 1024, "steps": 10},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
)
