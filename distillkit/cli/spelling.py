"""Options as other tools spell them, and what they are called here."""

from __future__ import annotations

OURS = {
    "out": "--output-dir",
    "outdir": "--output-dir",
    "output": "--output-dir",
    "logdir": "--output-dir",
    "resume-from-checkpoint": "--resume",
    "resume-from": "--resume",
    "max-train-steps": "--duration (in images: steps x batch)",
    "max-steps": "--duration (in images: steps x batch)",
    "num-train-epochs": "--duration (in images)",
    "steps": "--duration (in images: steps x batch)",
    "train-batch-size": "--batch (the total over all devices)",
    "batch-size": "--batch (the total over all devices)",
    "batch-gpu": "--batch-per-device",
    "gradient-accumulation-steps": "--batch-per-device (the total --batch is accumulated from it)",
    "learning-rate": "--lr",
    "lr-scheduler": "--lr-schedule",
    "lr-warmup-steps": "--warmup (in images)",
    "mixed-precision": "--precision",
    "fp16": "--precision fp16",
    "bf16": "--precision bf16",
    "max-grad-norm": "--clip-grad-norm",
    "checkpointing-steps": "--checkpoint-every (in images)",
    "snap": "--checkpoint-every (in images)",
    "checkpoints-total-limit": "--keep-checkpoints",
    "dryrun": "--dry-run",
    "guidance-scale": "--guidance",
    "cfg-scale": "--guidance",
    "ema": "--ema-halflife (in images)",
    "ema-decay": "--ema-halflife (in images)",
    "pretrained-teacher-model": "--teacher",
    "num-images": "--num",
    "num-samples": "--num",
}


def advice(option: str | None) -> str:
    """What to type instead of a foreign option, as the end of an error message; empty if nothing comes to mind."""
    if not option:
        return ""
    plain = option.lstrip("-").replace("_", "-")
    if plain in OURS:
        return f" Here it is called {OURS[plain]}."
    if "_" in option:
        return f" Options are written with dashes: --{plain}."
    return ""
