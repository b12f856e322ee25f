"""Settings of SiD that fit known teachers."""

from distillkit import Preset

CIFAR10 = {
    "batch": 256, "lr": 1e-5, "beta1": 0.0, "optimizer": "adam", "weight_decay": 0.0, "ema_halflife": "500k",
    # The code's loss is 100 x 3072 times this one, a mean over the elements, and its eps 1e-8.
    "eps": 3.3e-14,
}  # fmt: skip
SOURCE = "SiD's run_sid.sh, cifar10-{}, and sid_train.py (there with dropout 0.13 and augmentation 0.12)"

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        training={
            "lr": 2e-4, "beta1": 0.0, "optimizer": "adam", "weight_decay": 0.0, "lr_schedule": "cosine",
            "warmup": "2k", "duration": "64k", "ema_halflife": "3k",
        },
        source="untuned, for five minutes on two CPU cores",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"alpha": 1.0},
        training={"lr": 1e-3, "lr_schedule": "cosine", "duration": "150k", "ema_halflife": "10k"},
        source="untuned, for seconds on a CPU core",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        training={
            "batch": 32, "lr": 5e-4, "beta1": 0.0, "optimizer": "adam", "weight_decay": 0.0, "lr_schedule": "cosine",
            "duration": "12k", "ema_halflife": "500",
        },
        source="tuned here for three minutes on two CPU cores: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10 unconditional",
        teachers=("edm-cifar10-uncond*",),
        training=CIFAR10 | {"duration": "500M"},
        source=SOURCE.format("uncond"),
    ),
    Preset(
        name="cifar10 conditional",
        teachers=("edm-cifar10-cond*",),
        training=CIFAR10 | {"duration": "800M"},
        source=SOURCE.format("cond"),
    ),
)  # fmt: skip
