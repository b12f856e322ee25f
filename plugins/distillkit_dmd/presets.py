"""Settings of DMD that fit known teachers."""

from distillkit import Preset

CIFAR10 = {"batch": 392, "lr": 5e-5, "duration": "117.6M", "warmup": "196k", "ema_halflife": "500k"}
"""300,000 iterations, 500 of them warm-up."""
LATENTS = {"precision": "bf16", "gradient_checkpointing": True}
FLOAT32_ATTENTION = {"precision": "bf16", "float32_attention": True}

PRESETS = (
    Preset(
        name="digits",
        teachers=("digits",),
        settings={
            "kl_weight": 0.1,
            "regression_weight": 1.0,
            "distance": "l2",
            "level_min": 0.3,
            "level_max": 0.75,
            "fake_lr": 7.8e-3,
        },
        training={"lr": 9.4e-4, "lr_schedule": "cosine", "warmup": 2000, "ema_halflife": "0.5%", "duration": "22k"},
        student={"start_ratio": 8.0},
        pairs={"count": 512, "steps": 10},
        source="tuned here at 250,000 forward-equivalents: benchmarks/results/digits/tuning.md",
    ),
    Preset(
        name="mixture",
        teachers=("mixture",),
        settings={
            "distance": "l2", "regression_weight": 1.0, "fake_updates": 3, "fake_lr": 2.8e-3, "kl_weight": 0.13,
            "level_min": 0.3, "level_max": 0.6,
        },
        training={"lr": 2.4e-3, "lr_schedule": "cosine", "duration": "230k", "ema_halflife": "0.5%"},
        student={"start_ratio": 8.0},
        pairs={"count": 512},
        source="tuned here at 1,500,000 forward-equivalents: benchmarks/results/mixture/tuning.md",
    ),
    Preset(
        name="shapes",
        teachers=("shapes",),
        settings={
            "kl_weight": 2.0,
            "regression_weight": 1.0,
            "distance": "l2",
            "level_min": 0.1,
            "level_max": 0.6,
            "fake_lr": 6.8e-3,
        },
        training={"lr": 1.4e-3, "batch": 32, "lr_schedule": "cosine", "ema_halflife": "2%", "duration": "5k"},
        student={"start_ratio": 2.5},
        pairs={"count": 512, "steps": 10},
        source="tuned here at 60,000 forward-equivalents: benchmarks/results/shapes/tuning.md",
    ),
    Preset(
        name="cifar10 conditional",
        teachers=("edm-cifar10-cond*",),
        training=CIFAR10,
        pairs={"count": 100_000},
        source="Yin et al. 2024, appendix, implementation details of CIFAR-10; EMA untuned",
    ),
    Preset(
        name="cifar10 unconditional",
        teachers=("edm-cifar10-uncond*",),
        settings={"regression_weight": 0.5},
        training=CIFAR10,
        pairs={"count": 500_000},
        source="Yin et al. 2024, appendix, implementation details of CIFAR-10; EMA untuned",
    ),
    Preset(
        name="imagenet64",
        teachers=("edm-imagenet64",),
        training={
            "batch": 336, "lr": 2e-6, "duration": "117.6M", "warmup": "168k", "ema_halflife": "500k",
            **FLOAT32_ATTENTION,
        },
        pairs={"count": 25_000, "steps": 256},
        source="Yin et al. 2024, appendix, implementation details of ImageNet: 350,000 iterations; EMA untuned",
    ),
    Preset(
        name="faces64",
        teachers=("edm-ffhq64*", "edm-afhqv2-64*"),
        settings={"regression_weight": 0.5},
        training=CIFAR10 | {"batch": 256} | FLOAT32_ATTENTION,
        pairs={"count": 100_000},
        source="untuned: unconditional CIFAR-10's settings; these data are not in the paper",
    ),
    Preset(
        name="sd15",
        teachers=("stable-diffusion-v1-*",),
        settings={"guidance": 3.0},
        training=LATENTS
        | {"batch": 2304, "lr": 1e-5, "duration": "46.08M", "warmup": "1.152M", "ema_halflife": "500k"},
        pairs={"count": 500_000, "steps": 50},
        source="Yin et al. 2024, appendix B.3 (LAION-Aesthetics 6.25+): 500 of 20,000 iterations warm-up; there with "
        "1,152 of the 2,304 for the regression, a smaller decoder, and PNDM for the pairs; with guidance 8, appendix "
        "B.4: --guidance 8 --pairs-count 12M; EMA untuned",
    ),
    Preset(
        name="sdxl",
        teachers=("stable-diffusion-xl-base-*",),
        settings={"guidance": 8.0},
        training=LATENTS | {"batch": 128, "lr": 5e-7, "duration": "2.56M", "warmup": "64k", "ema_halflife": "100k"},
        source="untuned: the rate, batch, guidance and 10,000 pairs of DMD2's experiments/sdxl; not in DMD's paper",
    ),
)  # fmt: skip
