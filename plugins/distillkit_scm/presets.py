"""Settings of sCM that fit known teachers."""

from distillkit import Preset

SOURCE = (
    "FastGen's config_{}.py (a public implementation; the paper's authors published none); its 10,000 steps of tangent "
    "warm-up as a share{}"
)

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={
            "level_mean": 0.0,
            "level_std": 1.0,
            "tangent_warmup": 0.5,
            "tangent_constant": 0.38,
            "weight_lr": 7e-4,
        },
        training={
            "optimizer": "adam",
            "lr": 2.1e-4,
            "weight_decay": 0.0,
            "lr_schedule": "cosine",
            "ema_halflife": "1%",
            "duration": "42k",
        },
        student={"start_ratio": 8.0},
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={
            "tangent_warmup": 0.25, "level_mean": -0.5, "level_std": 1.0, "tangent_constant": 0.16,
            "weight_lr": 7.3e-4, "teacher_free": True,
        },
        training={"lr": 3e-4, "lr_schedule": "cosine", "duration": "300k", "ema_halflife": "0.5%", "batch": 256},
        student={"start_ratio": 2.5},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={"level_mean": 1.0, "tangent_warmup": 0.1, "weight_lr": 1.8e-4},
        training={"lr": 1.3e-4, "batch": 16, "lr_schedule": "cosine", "ema_halflife": "0.5%", "duration": "10k"},
        student={"start_ratio": 8.0},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"tangent_warmup": 0.02},
        training={
            "batch": 512, "optimizer": "radam", "beta2": 0.99, "weight_decay": 0.0, "clip_grad_norm": 1e6,
            "duration": "256M", "ema_halflife": "3.5M",
        },
        source=SOURCE.format("scd_cifar10", ""),
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        settings={"level_std": 1.6, "tangent_warmup": 0.017},
        training={
            "batch": 1024, "lr": 7e-5, "optimizer": "adam", "beta2": 0.99, "eps": 1e-11, "weight_decay": 0.0,
            "lr_schedule": "inverse-sqrt", "lr_decay_from": "35.84M", "duration": "614.4M", "ema_halflife": "7M",
            "precision": "bf16", "float32_attention": True,
        },
        source=SOURCE.format("scd_in64", ""),
    ),
    Preset(
        name="edm2-img64",
        teachers=("edm2-img64-*",),
        settings={"level_std": 1.6, "tangent_warmup": 0.017},
        training={
            "batch": 1024, "lr": 7e-5, "optimizer": "adam", "beta2": 0.99, "eps": 1e-11, "weight_decay": 0.0,
            "lr_schedule": "inverse-sqrt", "lr_decay_from": "35.84M", "duration": "614.4M", "ema_halflife": "7M",
            "precision": "bf16", "float32_attention": True,
        },
        source="FastGen's EDM2/config_scm_xl.py, which warns that the frequencies of EDM2's embedding make trainings "
        "unstable (the paper trained networks of its own, with TrigFlow's times); batch and length as for ADM, EMA "
        "untuned, dropout of 0.45 not here",
    ),
)  # fmt: skip
