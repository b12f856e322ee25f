"""Settings of consistency distillation that fit known teachers."""

from distillkit import Preset

PAPER = "{}; pseudo-Huber of Song & Dhariwal 2023 instead of LPIPS"

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        # With the paper's uniform weight and pseudo-Huber distance, high noise levels drown the low ones that
        # everything is built on, in so short a training.
        settings={"levels": 12, "target_decay": 0.0, "distance": "l2", "weighting": "snr+1"},
        training={
            "lr": 1e-3, "lr_schedule": "cosine", "optimizer": "adam", "weight_decay": 0.0, "ema_halflife": "3k",
        },
        source="untuned, for five minutes on two CPU cores",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"levels": 18, "target_decay": 0.0, "distance": "l2", "weighting": "snr+1"},
        training={"batch": 256, "lr": 1e-3, "lr_schedule": "cosine", "duration": "300k", "ema_halflife": "10k"},
        source="untuned, for seconds on a CPU core",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"levels": 18, "target_decay": 0.0},
        training={
            "batch": 512, "lr": 4e-4, "optimizer": "radam", "weight_decay": 0.0, "duration": "409.6M",
            "ema_halflife": "3.5M",
        },
        source=PAPER.format("Song et al. 2023, Table 3 (800,000 iterations, EMA 0.9999)"),
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        training={
            "batch": 2048, "lr": 8e-6, "optimizer": "radam", "weight_decay": 0.0, "duration": "1228.8M",
            "ema_halflife": "25M", "precision": "bf16", "float32_attention": True,
        },
        source=PAPER.format("consistency_models' scripts/launch.sh (600,000 iterations, EMA 0.999943)"),
    ),
)  # fmt: skip
