"""Settings of MeanFlow that fit known teachers."""

from distillkit import Preset

CIFAR10 = (
    "cifar10_v0.sh of the authors' py-meanflow, the paper's training from scratch, there with dropout 0.2 and "
    "augmentation; EMA: its train_arg_parser.py"
)
IMAGENET = (
    "the README of github.com/zhuyu-cs/MeanFlow (training from scratch, 240 epochs); guidance: omega / (1 - kappa) of "
    "FastGen's config_mf_xl.py; EMA, rate and weight decay untuned"
)

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={"level_std": 2.0, "end_mean": -2.0, "share": 1.0, "power": 0.0, "teacher_free": True},
        training={
            "optimizer": "adam",
            "lr": 1.9e-3,
            "weight_decay": 0.0,
            "batch": 32,
            "lr_schedule": "cosine",
            "ema_halflife": "0.5%",
            "duration": "50k",
        },
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"level_std": 1.4, "end_mean": -4.0, "share": 1.0, "power": 0.0, "teacher_free": True},
        training={"lr": 4.2e-4, "lr_schedule": "cosine", "duration": "300k", "ema_halflife": "5%"},
        student={"start_ratio": 2.5},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={"share": 1.0, "power": 0.5},
        training={"lr": 5e-4, "batch": 32, "lr_schedule": "cosine", "ema_halflife": "2%", "duration": "10k"},
        student={"start_ratio": 8.0},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"level_mean": -2.0, "level_std": 2.0, "share": 0.75, "power": 0.75},
        training={
            "batch": 1024, "lr": 6e-4, "optimizer": "adam", "weight_decay": 0.0, "warmup": "10M", "duration": "800M",
            "ema_halflife": "7.1M",
        },
        source=CIFAR10,
    ),
    Preset(
        name="imagenet256",
        teachers=("DiT-XL-2-256*",),
        settings={"guidance": 2.5},
        training={"batch": 256, "duration": "307M", "ema_halflife": "1.8M", "precision": "bf16"},
        source=IMAGENET,
    ),
)  # fmt: skip
