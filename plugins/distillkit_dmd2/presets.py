"""Settings of DMD2 that fit known teachers."""

from distillkit import Preset

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={"updates": 2, "level_min": 0.2, "level_max": 0.7},
        training={"lr": 3e-4, "lr_schedule": "cosine", "warmup": "2k", "duration": "60k", "ema_halflife": "3k"},
        source="untuned, for five minutes on two CPU cores",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"updates": 3},
        training={"lr": 1e-3, "lr_schedule": "cosine", "duration": "150k", "ema_halflife": "10k"},
        source="untuned, for seconds on a CPU core",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"gan_weight": 1e-3},
        training={"batch": 2048, "duration": "204.8M", "ema_halflife": "500k"},
        source="FastGen's EDM/config_dmd2_cifar10.py and methods/config_dmd2.py (100,000 iterations, FID 1.99); the "
        "critic's GAN weight and the EMA untuned",
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        training={
            "batch": 280, "lr": 2e-6, "duration": "56M", "warmup": "140k", "ema_halflife": "500k",
            "precision": "bf16", "float32_attention": True,
        },
        source="DMD2's experiments/imagenet/README.md, imagenet_gan_classifier_genloss3e-3_diffusion1000_lr2e-6_"
        "scratch (7 x 40 images, 200,000 iterations, FID 1.51), and 500 steps of warm-up of main/edm/train_edm.py; EMA "
        "untuned",
    ),
)  # fmt: skip
