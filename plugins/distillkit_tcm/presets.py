"""Settings of truncated consistency models that fit known teachers."""

from distillkit import Preset

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={
            "boundary": 0.5,
            "truncated_std": 2.0,
            "df": 0.1,
            "stages": 3,
            "level_std": 1.2,
            "c": 0.01,
            "teacher_free": False,
        },
        training={
            "lr": 3e-3,
            "weight_decay": 0.0,
            "batch": 128,
            "lr_schedule": "cosine",
            "ema_halflife": "0.5%",
            "duration": "50k",
        },
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={
            "stages": 5, "truncated_std": 1.0, "df": 2.0, "c": 0.01, "first_share": 0.7, "boundary": 0.5,
            "boundary_weight": 1.0, "level_mean": -0.4, "level_std": 1.6, "teacher_free": False,
        },
        training={"lr": 3.1e-3, "lr_schedule": "cosine", "duration": "300k", "ema_halflife": "5%"},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={
            "boundary": 2.0,
            "boundary_weight": 1.0,
            "truncated_std": 1.0,
            "df": 0.1,
            "stages": 5,
            "level_mean": 0.4,
            "level_std": 1.2,
            "c": 0.01,
            "teacher_free": False,
        },
        training={"lr": 8.5e-4, "batch": 32, "lr_schedule": "cosine", "ema_halflife": "0.5%", "duration": "11k"},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"c": 0.0, "first_share": 0.37},
        training={
            "batch": 512, "lr": 5e-5, "optimizer": "radam", "weight_decay": 0.0, "clip_grad_norm": 1e6,
            "duration": "486M", "ema_halflife": "3.5M",
        },
        source="TCM's README.md (steps to 1 - 0.999, no clipping, EMA 0.9999; batch 512 and rate 1e-4, then 1024 and "
        "5e-5: here the first batch and the second rate) and FastGen's EDM/config_cm_cifar10.py and "
        "config_tcm_cifar10.py (350,000 and 300,000 iterations); FID 2.46, dropout of 0.2 not here",
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        settings={
            "first_share": 0.27, "stages": 4, "q": 4.0, "level_mean": -0.8, "level_std": 1.6, "weighting": "karras",
        },
        training={
            "batch": 1024, "optimizer": "adam", "beta2": 0.99, "weight_decay": 0.0, "clip_grad_norm": 1e6,
            "duration": "563M", "ema_halflife": "5M", "precision": "bf16", "float32_attention": True,
        },
        source="FastGen's EDM2/config_cm_s.py and config_tcm_s.py (150,000 and 400,000 iterations, the last step 1 - "
        "0.9961; EDM2's network, as in edm2-img64: rate, EMA and their use for ADM untuned)",
    ),
    Preset(
        name="edm2-img64",
        teachers=("edm2-img64-*",),
        settings={
            "first_share": 0.27, "stages": 4, "q": 4.0, "level_mean": -0.8, "level_std": 1.6, "weighting": "karras",
        },
        training={
            "batch": 1024, "lr": 5e-4, "lr_schedule": "inverse-sqrt", "lr_decay_from": "8.19M", "optimizer": "adam",
            "beta2": 0.99, "weight_decay": 0.0, "clip_grad_norm": 1e6, "duration": "563M", "ema_halflife": "5M",
            "precision": "bf16", "float32_attention": True,
        },
        source="TCM's README.md (FID 2.88 with S, 2.20 with XL) and FastGen's EDM2/config_cm_s.py and config_tcm_s.py "
        "(150,000 and 400,000 iterations, the last step 1 - 0.9961, fp16; the second stage's rate, which the first "
        "one's comes to after 8,000 iterations; 1e-4 for XL); EMA untuned, dropout of 0.4 and 0.5 not here",
    ),
    Preset(
        name="sd15",
        teachers=("stable-diffusion-v1-*",),
        settings={"first_share": 0.29, "teacher_free": False, "guidance": 6.0},
        training={
            "batch": 512, "lr": 1e-5, "weight_decay": 0.0, "duration": "143M", "ema_halflife": "1M",
            "precision": "bf16", "gradient_checkpointing": True,
        },
        source="Lee et al. 2024, text to image on COYO: distillation at guidance 6, batch 512, 80,000 and 200,000 "
        "iterations; the rest untuned",
    ),
)  # fmt: skip
