"""Settings of consistency distillation that fit known teachers."""

from distillkit import Preset

PAPER = "{}; pseudo-Huber of Song & Dhariwal 2023 instead of LPIPS"

LCM = {"levels": 51, "solver": "ddim", "distance": "huber", "guidance": 8.5, "guidance_max": 16.0}
"""50 DDIM steps of 20 training steps each."""
LCM_TRAINING = {
    "lr": 1e-6, "weight_decay": 0.0, "clip_grad_norm": 1.0, "precision": "bf16", "gradient_checkpointing": True,
}  # fmt: skip
LCM_STUDENT = {"times": [999, 759, 499, 259]}
"""What LCMScheduler takes for four steps."""
LCM_SOURCE = (
    "diffusers' examples/consistency_distillation, {} and its script (rate, huber, EMA 0.95, clip 1, {} steps of which "
    "500 warm-up; guidance drawn from {}, which it calls {}); batch: PixArt-delta (arXiv 2401.05252), Table 1; "
    "guidance of samples: the default of diffusers' LatentConsistencyModelPipeline"
)

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={"levels": 12, "target_decay": 0.0, "distance": "l2", "weighting": "snr+1"},
        training={
            "optimizer": "adam",
            "lr": 1e-3,
            "weight_decay": 0.0,
            "lr_schedule": "cosine",
            "ema_halflife": 3000,
            "duration": "42k",
        },
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"levels": 18},
        training={"batch": 128, "lr": 3.6e-3, "lr_schedule": "cosine", "duration": "250k", "ema_halflife": "1%"},
        student={"start_ratio": 2.5},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={"levels": 18, "target_decay": 0.9, "weighting": "snr+1"},
        training={"lr": 3.2e-4, "batch": 16, "lr_schedule": "cosine", "ema_halflife": "2%", "duration": "10k"},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"levels": 18, "target_decay": 0.0},
        training={
            "batch": 512, "lr": 4e-4, "optimizer": "radam", "weight_decay": 0.0, "duration": "409.6M",
            "ema_halflife": "3.5M",
        },
        source=PAPER.format("Song et al. 2023, Table 3 (800,000 iterations, EMA 0.9999)"),
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        training={
            "batch": 2048, "lr": 8e-6, "optimizer": "radam", "weight_decay": 0.0, "duration": "1228.8M",
            "ema_halflife": "25M", "precision": "bf16", "float32_attention": True,
        },
        source=PAPER.format("consistency_models' scripts/launch.sh (600,000 iterations, EMA 0.999943)"),
    ),
    Preset(
        name="sd15",
        teachers=("stable-diffusion-v1-*",),
        settings=LCM | {"guidance_min": 6.0},
        training=LCM_TRAINING | {"batch": 128, "duration": "512k", "warmup": "64k", "ema_halflife": "1.7k"},
        student=LCM_STUDENT,
        source=LCM_SOURCE.format("README.md", "4,000 (of LCM's README)", "6 to 16", "5 to 15"),
    ),
    Preset(
        name="sdxl",
        teachers=("stable-diffusion-xl-base-*",),
        settings=LCM | {"guidance_min": 4.0},
        training=LCM_TRAINING | {"batch": 768, "duration": "768k", "warmup": "384k", "ema_halflife": "10k"},
        student=LCM_STUDENT,
        source=LCM_SOURCE.format("README_sdxl.md", "1,000", "4 to 16", "3 to 15"),
    ),
)  # fmt: skip
