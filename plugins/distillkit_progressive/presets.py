"""Settings of progressive distillation that fit known teachers."""

from distillkit import Preset

CODE = {
    "optimizer": "adam", "weight_decay": 0.0, "lr_schedule": "linear", "clip_grad_norm": 1.0, "ema_halflife": 0,
}  # fmt: skip
"""What both configurations of the authors' code share."""
SOURCE = (
    "diffusion_distillation's config/{}_distill.py: 50,000 iterations a halving; twice as many for the last two: "
    "Salimans & Ho 2022, section 5"
)

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={"start_steps": 16},
        training={
            "lr": 1e-3, "lr_schedule": "linear", "weight_decay": 0.0, "duration": "120k", "ema_halflife": "2k",
        },
        source="untuned, for five minutes on two CPU cores",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"start_steps": 16},
        training={"batch": 256, "lr": 1e-3, "lr_schedule": "cosine", "duration": "300k", "ema_halflife": "10k"},
        source="untuned, for seconds on a CPU core",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"start_steps": 4096},
        training=CODE | {"batch": 128, "lr": 5e-5, "duration": "96M"},
        source=SOURCE.format("cifar"),
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        training=CODE | {"batch": 2048, "duration": "1228.8M", "precision": "bf16", "float32_attention": True},
        source=SOURCE.format("imagenet64"),
    ),
)  # fmt: skip
