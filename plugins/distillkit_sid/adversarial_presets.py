"""Settings of SiDA that fit known teachers."""

from distillkit import Preset
from distillkit_sid.presets import ADAM

EDM = ADAM | {"beta1": 0.0, "lr": 1e-5, "ema_halflife": "500k"}
# The code's loss is 0.5 x 100 x 12288 times this one, a mean over the elements, and its eps 1e-6, for its fp16.
EDM64 = EDM | {"eps": 1.6e-12, "precision": "bf16", "float32_attention": True}
# Its discriminator's weight is 1 over the elements, 12288, times the mean of EDM's weight at its levels, 200, halved.
CRITIC64 = {"critic_gan_weight": 8.2e-3}
SOURCE = (
    "SiD's branch sida: run_sida.sh, {}, and sida_train.py (there with dropout and augmentation, the student from "
    "100,000 and the GAN from 200,000 images on); GAN weights for means over the elements"
)

ADVERSARIAL_PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={"largest": 0.6, "gan_weight": 1.1e-3, "critic_gan_weight": 1.9e-3, "critic_lr": 2.2e-3},
        training={
            "optimizer": "adam",
            "lr": 2.4e-4,
            "weight_decay": 0.0,
            "batch": 32,
            "lr_schedule": "cosine",
            "warmup": 2000,
            "ema_halflife": "0.5%",
            "duration": "24k",
        },
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"gan_weight": 2.2e-4, "critic_gan_weight": 0.038, "critic_lr": 3.3e-3, "alpha": 0.8},
        training={
            "lr": 9.2e-4,
            "lr_schedule": "cosine",
            "duration": "120k",
            "ema_halflife": "0.5%",
            "batch": 512,
            "beta1": 0.0,
        },
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={"alpha": 0.8, "gan_weight": 2.7e-3, "critic_gan_weight": 6e-3, "critic_lr": 3e-4},
        training={
            "optimizer": "adam",
            "lr": 1.6e-4,
            "beta1": 0.0,
            "weight_decay": 0.0,
            "batch": 32,
            "lr_schedule": "cosine",
            "ema_halflife": "0.5%",
            "duration": "5.4k",
        },
        student={"start_ratio": 2.5},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"critic_gan_weight": 0.033},
        # As below, with 3072 elements, and eps 1e-8 in full precision.
        training=EDM | {"batch": 256, "duration": "300M", "eps": 6.5e-14},
        source=SOURCE.format("cifar10-uncond and cifar10-cond"),
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        settings=CRITIC64,
        training=EDM64 | {"batch": 8192, "lr": 4e-6, "duration": "300M", "ema_halflife": "2M"},
        source=SOURCE.format("imagenet64-cond, in fp16"),
    ),
    Preset(
        name="ffhq64",
        teachers=("edm-ffhq64*",),
        settings=CRITIC64,
        training=EDM64 | {"batch": 512, "duration": "200M"},
        source=SOURCE.format("ffhq64, in fp16"),
    ),
    Preset(
        name="afhqv2",
        teachers=("edm-afhqv2-64*",),
        settings=CRITIC64,
        training=EDM64 | {"batch": 512, "lr": 5e-6, "duration": "200M"},
        source=SOURCE.format("afhq64-v2, in fp16"),
    ),
)
