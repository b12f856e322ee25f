"""Settings of DMD2 that fit known teachers."""

from distillkit import Preset

LATENTS = {"precision": "bf16", "gradient_checkpointing": True}

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={
            "updates": 2,
            "gan_weight": 0.088,
            "critic_gan_weight": 2.7e-3,
            "gan_level_min": 0.4,
            "gan_level_max": 0.6,
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
            "duration": "36k",
        },
        student={"start_ratio": 2.5},
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={
            "critic_lr": 5.5e-3, "gan_weight": 0.36, "critic_gan_weight": 0.012, "level_max": 0.6,
            "gan_level_max": 0.6,
        },
        training={
            "lr": 3.4e-3, "lr_schedule": "cosine", "duration": "130k", "ema_halflife": "2%", "batch": 128,
            "beta1": 0.0,
        },
        student={"start_ratio": 2.5},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={"gan_weight": 4.1e-3, "critic_gan_weight": 0.32, "critic_lr": 1.4e-3},
        training={"lr": 5.7e-4, "batch": 16, "lr_schedule": "cosine", "ema_halflife": "0.5%", "duration": "9.9k"},
        student={"start_ratio": 2.5},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"gan_weight": 1e-3, "gan_features": "teacher"},
        training={"batch": 2048, "duration": "204.8M", "ema_halflife": "500k"},
        source="FastGen's EDM/config_dmd2_cifar10.py and methods/config_dmd2.py (100,000 iterations, FID 1.99; "
        "there with heads on three levels, without a cut of the KL's levels, four updates of the critic alone between "
        "two of the student, and the fake score learns x0 without a weight of levels); the EMA untuned",
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        training={
            "batch": 280, "lr": 2e-6, "duration": "56M", "warmup": "20k", "ema_halflife": "500k",
            "precision": "bf16", "float32_attention": True,
        },
        source="DMD2's experiments/imagenet/README.md, imagenet_gan_classifier_genloss3e-3_diffusion1000_lr2e-6_"
        "scratch (7 x 40 images, 200,000 iterations, FID 1.51), and the warm-up of main/edm/train_edm.py, 500 steps "
        "over 7 processes; EMA untuned",
    ),
    Preset(
        name="sd15",
        teachers=("stable-diffusion-v1-*",),
        settings={"updates": 10, "guidance": 1.75, "gan_weight": 0},
        training=LATENTS
        | {"batch": 2048, "lr": 1e-5, "duration": "79.872M", "warmup": "16k", "ema_halflife": "500k"},
        source="DMD2's experiments/sdv1.5, laion6.25_sd_baseline_8node_guidance1.75_lr1e-5_seed10_dfake10_from_scratch "
        "(64 x 32 images, 39,000 iterations, FID 9.28), and the warm-up of main/train_sd.py, 500 steps over 64 "
        "processes; its second phase with the GAN: --student RUN --lr 5e-7 --gan-weight 1e-3 --duration 4.1M (FID "
        "8.35); EMA untuned",
    ),
    Preset(
        name="sdxl",
        teachers=("stable-diffusion-xl-base-*",),
        settings={"evaluations": 4, "guidance": 8.0, "gan_weight": 5e-3},
        training=LATENTS | {"batch": 128, "lr": 5e-7, "duration": "2.432M", "warmup": "1k", "ema_halflife": "100k"},
        source="DMD2's experiments/sdxl, sdxl_cond999_8node_lr5e-7_denoising4step_diffusion1000_gan5e-3_guidance8_"
        "noinit_noode_backsim_scratch (64 x 2 images, 19,000 iterations, steps 999, 749, 499, 249), and the "
        "warm-up of main/train_sd.py, 500 steps over 64 processes; EMA untuned",
    ),
)  # fmt: skip
