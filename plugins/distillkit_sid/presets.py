"""Settings of SiD that fit known teachers."""

from distillkit import Preset

ADAM = {"optimizer": "adam", "weight_decay": 0.0}
CIFAR10 = ADAM | {
    "batch": 256, "lr": 1e-5, "beta1": 0.0, "ema_halflife": "500k",
    # The code's loss is 100 x 3072 times this one, a mean over the elements, and its eps 1e-8.
    "eps": 3.3e-14,
}  # fmt: skip
# Below, the code's eps is 1e-6, for its fp16, and an image has 12288 elements.
EDM64 = ADAM | {"eps": 8.1e-13, "precision": "bf16", "float32_attention": True}
SOURCE = "SiD's run_sid.sh, {}, and sid_train.py (there with dropout {} and augmentation {}{})"

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={"alpha": 1.0, "largest": 0.6, "fake_lr": 2.4e-3},
        training={
            "optimizer": "adam",
            "lr": 2.9e-4,
            "beta1": 0.0,
            "weight_decay": 0.0,
            "batch": 32,
            "lr_schedule": "cosine",
            "warmup": 2000,
            "ema_halflife": "0.5%",
            "duration": "25k",
        },
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"alpha": 0.8, "fake_lr": 7.5e-3, "largest": 0.6},
        training={"lr": 1.4e-3, "lr_schedule": "cosine", "duration": "150k", "ema_halflife": "1%", "beta1": 0.0},
        student={"start_ratio": 2.5},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={"alpha": 0.8, "largest": 0.6, "fake_lr": 4.9e-3},
        training={
            "optimizer": "adam",
            "lr": 9.1e-4,
            "beta1": 0.0,
            "weight_decay": 0.0,
            "batch": 16,
            "lr_schedule": "cosine",
            "ema_halflife": "1%",
            "duration": "6k",
        },
        student={"start_ratio": 2.5},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10 unconditional",
        teachers=("edm-cifar10-uncond*",),
        training=CIFAR10 | {"duration": "500M"},
        source=SOURCE.format("cifar10-uncond", 0.13, 0.12, ""),
    ),
    Preset(
        name="cifar10 conditional",
        teachers=("edm-cifar10-cond*",),
        training=CIFAR10 | {"duration": "800M"},
        source=SOURCE.format("cifar10-cond", 0.13, 0.12, ""),
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        training=EDM64 | {"beta1": 0.0, "batch": 8192, "lr": 4e-6, "duration": "1000M", "ema_halflife": "2M"},
        source=SOURCE.format("imagenet64-cond", 0.1, 0, ", in fp16"),
    ),
    Preset(
        name="ffhq64",
        teachers=("edm-ffhq64*",),
        training=EDM64 | {"batch": 512, "lr": 1e-5, "duration": "500M", "ema_halflife": "500k"},
        source=SOURCE.format("ffhq64", 0.05, 0.15, ", in fp16; the fake score's beta1 0"),
    ),
    Preset(
        name="afhqv2",
        teachers=("edm-afhqv2-64*",),
        settings={"alpha": 1.0},
        training=EDM64 | {"beta1": 0.0, "batch": 512, "lr": 5e-6, "duration": "500M", "ema_halflife": "500k"},
        source=SOURCE.format("afhq64-v2", 0.05, 0.15, ", in fp16"),
    ),
    Preset(
        name="edm2-img512",
        teachers=("edm2-img512-*",),
        settings={"alpha": 1.0, "fake_level_mean": -0.4, "fake_level_std": 1.0},
        # The code's loss is a sum over the 16384 elements of a sample, times 100, and its eps 1e-6.
        training=EDM64 | {
            "beta1": 0.0, "batch": 2048, "lr": 5e-5, "duration": "200M", "ema_halflife": "2M", "eps": 6.1e-13,
        },
        source="SiD's branch sida: run_sid_edm2.sh (XXL for half as long) and sida_edm2_train.py, in fp16, there with "
        "the fake score's loss weighted, and the student's divided, by the fake score's own uncertainty",
    ),
    Preset(
        name="sd15",
        teachers=("stable-diffusion-v1-*",),
        settings={
            "alpha": 1.0, "smallest": 0.02, "largest": 0.98, "guidance": 2.0, "fake_guidance": 2.0,
            "fake_levels": "grid",
        },
        # The code's loss is a sum over the 16384 elements of a sample, and its eps 1e-8.
        training=ADAM
        | {
            "beta1": 0.0, "batch": 512, "lr": 1e-6, "duration": "10M", "eps": 6.1e-13, "precision": "bf16",
            "gradient_checkpointing": True,
        },
        student={"times": [625]},
        source="SiD-LSG's run_sid.sh, sd1.5 (in float32; guidance 1.5 and 4.5 are published too)",
    ),
)  # fmt: skip
