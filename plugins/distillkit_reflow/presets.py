"""Settings of reflow that fit known teachers."""

from distillkit import Preset

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={"steps": 4, "distance": "pseudo-huber", "last_share": 2.0},
        training={"lr": 1.4e-3, "batch": 32, "lr_schedule": "cosine", "ema_halflife": "2%", "duration": "41k"},
        pairs={"count": 1024, "steps": 10},
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={"steps": 4},
        training={"batch": 256, "lr": 3.8e-3, "lr_schedule": "cosine", "duration": "300k", "ema_halflife": "5%"},
        pairs={"count": 512},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={"steps": 2, "distance": "l1", "last_share": 4.0},
        training={"lr": 4.5e-4, "batch": 32, "lr_schedule": "cosine", "ema_halflife": "2%", "duration": "12k"},
        pairs={"count": 256, "steps": 10},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10",
        teachers=("edm-cifar10-*",),
        settings={"distance": "lpips"},
        training={
            "batch": 128, "lr": 2e-4, "optimizer": "adam", "weight_decay": 0.0, "clip_grad_norm": 1.0,
            "warmup": "640k", "duration": "332.8M", "ema_halflife": "887k",
        },
        pairs={"count": "1M"},
        source="RectifiedFlow's default_cifar10_configs.py (1,300,000 iterations a stage, 5,000 of them warm-up, EMA "
        "0.9999), cifar10_rf_gaussian_reflow_distill_k=1.py and README.md (1M pairs); there with dropout 0.1",
    ),
    Preset(
        name="sd15",
        teachers=("stable-diffusion-v1-*",),
        settings={"steps": 25, "flow_guidance": 1.5, "distance": "lpips", "last_share": 1.58, "l2_share": 0.544},
        training={
            "batch": 1024, "duration": "66.05M", "ema_halflife": "500k", "precision": "bf16",
            "gradient_checkpointing": True,
        },
        pairs={"count": 500_000, "steps": 25, "guidance": 5.0},
        source="InstaFlow's model cards 2_rectified_flow_from_sd_1_5 (25,000 iterations of reflow, after 70,000 with "
        "batch 64; figures with 25 steps) and instaflow_0_9B_from_sd_1_5 (21,500 of distillation with l2, 18,000 with "
        "LPIPS; guidance of the flow); rate, pairs, their guidance and EMA untuned",
    ),
)  # fmt: skip
