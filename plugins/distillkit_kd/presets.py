"""Settings of knowledge distillation that fit known teachers."""

from distillkit import Preset

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={"distance": "pseudo-huber"},
        training={"lr": 7.9e-4, "lr_schedule": "cosine", "warmup": 2000, "ema_halflife": "2%", "duration": "77k"},
        student={"start_ratio": 2.5},
        pairs={"count": 1024, "steps": 10},
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"distance": "l1"},
        training={"batch": 256, "lr": 2.3e-3, "lr_schedule": "cosine", "duration": "480k", "ema_halflife": "1%"},
        student={"start_ratio": 2.5},
        pairs={"count": 2048},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={"distance": "pseudo-huber"},
        training={"lr": 3.1e-4, "batch": 32, "lr_schedule": "cosine", "ema_halflife": "0.5%", "duration": "17k"},
        student={"start_ratio": 8.0},
        pairs={"count": 1024, "steps": 10},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"distance": "l1"},
        training={
            "batch": 512, "lr": 2e-4, "optimizer": "adam", "beta2": 0.98, "weight_decay": 0.0, "warmup": "2.56M",
            "duration": "25.6M", "ema_halflife": "71k",
            # The code sums over the 3072 elements of an image, and its eps is 1e-8.
            "eps": 3.3e-12,
        },
        pairs={"count": 1_024_000},
        source="Luhman & Luhman's utils.py (get_settings) and training.py: 25 epochs of 1,024,000 pairs, 5,000 steps "
        "of warm-up, average 0.995",
    ),
)  # fmt: skip
