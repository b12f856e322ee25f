"""Settings of progressive distillation that fit known teachers."""

from distillkit import Preset

CODE = {
    "optimizer": "adam", "weight_decay": 0.0, "lr_schedule": "linear", "clip_grad_norm": 1.0, "ema_halflife": 0,
}  # fmt: skip
"""What both configurations of the authors' code share."""
SOURCE = (
    "diffusion_distillation's config/{}_distill.py: 50,000 iterations a halving; twice as many for the last two: "
    "Salimans & Ho 2022, section 5"
)
LATENTS = {
    "batch": 512, "lr": 1e-5, "optimizer": "adam", "weight_decay": 0.0, "duration": "35.84M", "ema_halflife": 0,
    "precision": "bf16", "gradient_checkpointing": True,
}  # fmt: skip
"""10,000 steps for each of the first three of five halvings."""

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={"start_steps": 32, "last_share": 4.0, "weighting": "snr+1"},
        training={
            "lr": 6.7e-4,
            "weight_decay": 0.0,
            "batch": 32,
            "lr_schedule": "linear",
            "ema_halflife": "1%",
            "duration": "50k",
        },
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"start_steps": 32, "weighting": "karras"},
        training={"batch": 128, "lr": 1.5e-3, "lr_schedule": "cosine", "duration": "300k", "ema_halflife": "5%"},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={"start_steps": 8, "last_share": 1.0, "weighting": "uniform"},
        training={"lr": 5e-4, "batch": 32, "lr_schedule": "linear", "ema_halflife": "2%", "duration": "12k"},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"start_steps": 4096},
        training=CODE | {"batch": 128, "lr": 5e-5, "duration": "96M"},
        source=SOURCE.format("cifar"),
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        training=CODE | {"batch": 2048, "duration": "1228.8M", "precision": "bf16", "float32_attention": True},
        source=SOURCE.format("imagenet64"),
    ),
    Preset(
        name="sd15",
        teachers=("stable-diffusion-v1-*",),
        settings={"start_steps": 64, "end_steps": 4, "guidance": 7.5},
        training=LATENTS,
        source="untuned: the settings of sdxl with Stable Diffusion's usual guidance",
    ),
    Preset(
        name="sdxl",
        teachers=("stable-diffusion-xl-base-*",),
        settings={"start_steps": 64, "end_steps": 4, "guidance": 6.0},
        training=LATENTS,
        source="SDXL-Lightning (Lin et al. 2024, arXiv 2402.13929, section 3.6): from 128 steps, guided in the first "
        "stage alone, batch, rate; the duration, halvings and their end at 4 untuned (there 128, 32, 8, 4, 2, 1, with "
        "a GAN below 32)",
    ),
)  # fmt: skip
