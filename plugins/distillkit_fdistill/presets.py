"""Settings of f-distill that fit known teachers."""

from distillkit import Preset

LATENTS = {"precision": "bf16", "gradient_checkpointing": True}
FASTGEN = "FastGen's fastgen/configs/experiments/{}; the EMA untuned"
UNWEIGHTED = "the fake score there learns x0 without a weight of levels"

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={
            "divergence": "jeffreys",
            "updates": 2,
            "gan_weight": 0.088,
            "critic_gan_weight": 2.7e-3,
            "ratio_max": 3.0,
            "critic_lr": 2.8e-3,
            "level_min": 0.3,
            "level_max": 0.6,
        },
        training={
            "lr": 6.1e-4,
            "beta1": 0.0,
            "batch": 128,
            "lr_schedule": "cosine",
            "warmup": 2000,
            "ema_halflife": "5%",
            "duration": "38k",
        },
        student={"start_ratio": 2.5},
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={
            "critic_lr": 5.5e-3, "gan_weight": 0.36, "critic_gan_weight": 0.012, "level_max": 0.6, "ratio_max": 3.0,
        },
        training={
            "lr": 3.4e-3, "lr_schedule": "cosine", "duration": "180k", "ema_halflife": "2%", "batch": 128,
            "beta1": 0.0,
        },
        student={"start_ratio": 2.5},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={
            "divergence": "forward-kl",
            "updates": 1,
            "gan_weight": 0.24,
            "critic_gan_weight": 0.045,
            "critic_lr": 3.8e-4,
            "level_min": 0.2,
            "level_max": 0.75,
        },
        training={
            "lr": 2.2e-4,
            "beta1": 0.0,
            "batch": 16,
            "lr_schedule": "cosine",
            "ema_halflife": "1%",
            "duration": "6.1k",
        },
        student={"start_ratio": 8.0},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"divergence": "forward-kl", "gan_features": "teacher"},
        training={"batch": 2048, "duration": "204.8M", "ema_halflife": "500k"},
        source=FASTGEN.format(
            "EDM/config_f_distill_cifar10.py and methods/config_f_distill.py (100,000 iterations; there with heads on "
            f"three levels of the teacher's encoder; {UNWEIGHTED})"
        ),
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        settings={"gan_weight": 3e-3, "gan_features": "teacher", "ratio_decay": 0.5},
        training={
            "batch": 512, "lr": 2e-6, "duration": "307.2M", "ema_halflife": "500k", "precision": "bf16",
            "float32_attention": True,
        },
        source=FASTGEN.format(
            f"EDM/config_f_distill_in64.py (600,000 iterations; there in full precision; {UNWEIGHTED})"
        ),
    ),
    Preset(
        name="sd15",
        teachers=("stable-diffusion-v1-*",),
        settings={"updates": 10, "guidance": 1.75, "gan_features": "teacher"},
        training=LATENTS | {"batch": 2048, "lr": 1e-5, "duration": "204.8M", "ema_halflife": "500k"},
        source=FASTGEN.format(f"SD15/config_f_distill.py (100,000 iterations; {UNWEIGHTED})"),
    ),
    Preset(
        name="sdxl",
        teachers=("stable-diffusion-xl-base-*",),
        settings={"guidance": 8.0, "gan_weight": 5e-3, "gan_features": "teacher"},
        training=LATENTS | {"batch": 128, "lr": 5e-7, "duration": "3.2M", "ema_halflife": "100k"},
        source=FASTGEN.format(
            "SDXL/config_f_distill.py (25,000 iterations, from a student of DMD2: --student RUN; the batch untuned)"
        ),
    ),
)  # fmt: skip
