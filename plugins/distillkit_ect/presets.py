"""Settings of ECT that fit known teachers."""

from distillkit import Preset

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={"stages": 4, "level_std": 1.2, "c": 0.1, "weighting": "uniform", "teacher_free": False},
        training={"lr": 2.3e-3, "weight_decay": 0.0, "lr_schedule": "cosine", "ema_halflife": "2%", "duration": "50k"},
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"stages": 4, "level_std": 1.2, "c": 0.1, "teacher_free": False, "weighting": "uniform"},
        training={"lr": 3e-3, "lr_schedule": "cosine", "duration": "300k", "ema_halflife": "2%", "batch": 128},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={
            "stages": 2,
            "level_mean": 0.4,
            "level_std": 1.6,
            "c": 0.1,
            "weighting": "truncated-snr",
            "teacher_free": False,
        },
        training={"lr": 1e-3, "lr_schedule": "cosine", "ema_halflife": "5%", "duration": "12k"},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"c": 0.0},
        training={
            "batch": 128, "optimizer": "radam", "weight_decay": 0.0, "clip_grad_norm": 1e6, "duration": "25.6M",
            "ema_halflife": "887k",
        },
        source="ECT's run_ecm.sh (200,000 iterations, the step halved every 25,000, EMA 0.9999, no clipping; FID 3.86, "
        "and 2.15 with --student-levels 80,0.821); its dropout of 0.2 is not here",
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        settings={"stages": 4, "q": 4.0, "level_mean": -0.8, "level_std": 1.6, "weighting": "karras"},
        training={
            "batch": 128, "lr": 1e-3, "lr_schedule": "inverse-sqrt", "lr_decay_from": "256k", "optimizer": "adam",
            "beta2": 0.99, "weight_decay": 0.0, "clip_grad_norm": 1e6, "duration": "12.8M", "ema_halflife": "500k",
            "precision": "bf16", "float32_attention": True,
        },
        source="FastGen's EDM/config_cm_in64.py (stages of 3.2M images, the last step 1 - 0.9961; fp16); EMA untuned, "
        "dropout of 0.2 not here",
    ),
    Preset(
        name="edm2-img64",
        teachers=("edm2-img64-*",),
        settings={"stages": 4, "q": 4.0, "level_mean": -0.8, "level_std": 1.6, "weighting": "karras"},
        training={
            "batch": 128, "lr": 1e-3, "lr_schedule": "inverse-sqrt", "lr_decay_from": "256k", "optimizer": "adam",
            "beta2": 0.99, "weight_decay": 0.0, "clip_grad_norm": 1e6, "duration": "12.8M", "ema_halflife": "887k",
        },
        source="ECT's branch imgnet: run_imgnet_ecm.sh and its preset edm2-img64-s (EMA 0.9999, two evaluations with "
        "--student-levels 80,1.526; rates 9e-4, 8e-4 and 7e-4 for M, L and XL); its dropout of 0.4 to 0.5 is not here",
    ),
)  # fmt: skip
