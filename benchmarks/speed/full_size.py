"""`python -m benchmarks.speed.full_size --json FILE`: trainings of the papers' sizes on one GPU.

DMD and DMD2 on networks of EDM ImageNet-64's and Stable Diffusion 1.5's shapes, with the presets' settings and the
papers' samples a GPU, without compilation and with: images/s, seconds a step, model FLOPs utilisation (MFU) and peak
memory. Weights, samples and text encodings are random; speed does not depend on them. MFU is operations of a training
without checkpointing, counted, over the time and the peak of the data sheet: 989 TFLOP/s, H100 and H200, dense bf16.

What differs from the presets: DMD's regression compares the samples themselves (l2), as the weights of LPIPS are a
download. Without a GPU, which is there for a try of the script alone, the embedded teachers `digits` and `shapes` run.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.timing import write
from distillkit import Condition, Preset, Teacher, load_teacher
from distillkit.contracts.recipe import Recipe
from distillkit.contracts.text import PromptList
from distillkit.embedded.assets import asset_folder
from distillkit.engine.config import TrainingConfig
from distillkit.engine.trainer import Trainer
from distillkit.jobs.context import make_accelerator
from distillkit.jobs.step_costs import counted_steps
from distillkit.jobs.trial import synthetic_sources
from distillkit.models.prompts import Prompts
from distillkit.models.store.resolve import resolve
from distillkit.registry import registry
from distillkit.weights import weight_bytes

PEAK_TFLOPS = 989.0
MODELS = ("edm-imagenet64", "stable-diffusion-1.5")
METHODS = ("dmd", "dmd2")
COMPILATION = ("off", "blocks")
BATCH = {("edm-imagenet64", "dmd"): 48, ("edm-imagenet64", "dmd2"): 40}
"""Samples a GPU in the papers' trainings: 7 GPUs and 336, 7 and 280; of Stable Diffusion 1.5 both have 32 (2,304 on 72
GPUs, 2,048 on 64)."""
PRESET = {"edm-imagenet64": "imagenet64", "stable-diffusion-1.5": "sd15"}
ON_CPU = {"edm-imagenet64": "digits", "stable-diffusion-1.5": "shapes"}
PROMPTS = 64


@dataclass(frozen=True)
class Case:
    """One training: "MODEL:METHOD:off|blocks|network"."""

    model: str
    method: str
    compile: str

    @classmethod
    def read(cls, text: str) -> Case:
        match text.split(":"):
            case [model, method, compilation] if (
                model in MODELS and method in METHODS and compilation in ("off", "blocks", "network")
            ):
                return cls(model, method, compilation)
        raise argparse.ArgumentTypeError(
            f"{text!r} is not MODEL:METHOD:COMPILATION, of {', '.join(MODELS)}; {', '.join(METHODS)}; "
            "off, blocks, network"
        )


CASES = tuple(Case(model, method, how) for how in COMPILATION for model in MODELS for method in METHODS)
"""Those that take longest to begin come last."""


@contextmanager
def teacher_of(model: str, device: torch.device) -> Iterator[Teacher]:
    """The model's shape with random weights, on the device."""
    if device.type != "cuda":
        yield load_teacher(ON_CPU[model])
    elif model == "edm-imagenet64":
        yield resolve(model).fresh(0).to(device)
    else:
        with tempfile.TemporaryDirectory() as folder:
            describe_stable_diffusion(Path(folder))
            teacher = resolve(folder).fresh(0)
            assert isinstance(teacher.conditioner, Prompts)
            prompts = PromptList.of([f"prompt {k}" for k in range(PROMPTS)], "made-up prompts")
            # As a store gives them: no text encoder is needed in a training.
            given = encodings(PROMPTS, device)
            teacher.conditioner = teacher.conditioner.with_prompts(prompts).with_encodings(*given)
            yield teacher.to(device)


def describe_stable_diffusion(folder: Path) -> None:
    """The files of Stable Diffusion 1.5's pipeline that say what it is made of, without weights."""
    network = {
        "_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4,
        "cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
    }  # fmt: skip
    autoencoder = {
        "_class_name": "AutoencoderKL", "sample_size": 512, "latent_channels": 4, "layers_per_block": 2,
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4, "scaling_factor": 0.18215,
    }  # fmt: skip
    scheduler = {
        "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
        "num_train_timesteps": 1000, "prediction_type": "epsilon", "clip_sample": False, "set_alpha_to_one": False,
        "steps_offset": 1,
    }  # fmt: skip
    text = {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768,
        "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768,
        "vocab_size": 49408, "max_position_embeddings": 77,
    }  # fmt: skip
    described = {
        "unet/config.json": network, "vae/config.json": autoencoder, "text_encoder/config.json": text,
        "scheduler/scheduler_config.json": scheduler,
    }  # fmt: skip
    shipped = asset_folder("shapes/pipeline")
    for path in ["model_index.json", *(f"tokenizer/{file.name}" for file in (shipped / "tokenizer").iterdir())]:
        described[path] = json.loads((shipped / path).read_text()) if path.endswith(".json") else {}
    for path, content in described.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content) if content else (shipped / path).read_text())


def encodings(count: int, device: torch.device) -> tuple[Any, Condition]:
    """Random encodings of so many prompts, by their numbers; and that of none."""
    made = torch.randn(count + 1, 77, 768, generator=torch.Generator().manual_seed(0)).to(device)

    def of(keys: Tensor) -> Condition:
        return Condition(text=made[:count][keys.to(device)])

    return of, Condition(text=made[count:])


def preset_of(case: Case) -> Preset:
    """The method's for the model."""
    return next(p for p in registry().method(case.method).presets if p.name == PRESET[case.model])


def recipe_of(case: Case, teacher: Teacher) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
    """The method's recipe with the settings of the model's preset, these, and the preset's options of training."""
    method, preset = registry().method(case.method), preset_of(case)
    settings = {**preset.settings, **({"distance": "l2"} if case.method == "dmd" else {})}
    recipe = method().recipe(teacher, method.Config.model_validate(settings))
    for objective in recipe.objectives:
        objective.prepare()
    kept = ("lr", "precision", "float32_attention", "gradient_checkpointing")
    return recipe, settings, {key: preset.training[key] for key in kept if key in preset.training}


def measure(case: Case, batch: int, seconds: float, peak: float) -> dict[str, Any]:
    """Speed, MFU and memory of one training."""
    accelerator, began = make_accelerator(preset_of(case).training["precision"], "auto"), time.perf_counter()
    device = accelerator.device
    gpu = device.type == "cuda"
    with teacher_of(case.model, device) as teacher:
        recipe, settings, options = recipe_of(case, teacher)
        sources = synthetic_sources(recipe, teacher, device)
        period = recipe.student_every

        def trainer(**changes: Any) -> Trainer:
            training = {**options, "batch": 1, "duration": "1B", **changes}
            return Trainer(
                recipe, teacher, TrainingConfig.model_validate(training), accelerator=accelerator, seed=0,
                sources=sources,
            )  # fmt: skip

        plain = trainer(gradient_checkpointing=False)
        counted = counted_steps(plain, period)
        assert counted is not None
        del plain
        gc.collect()
        training = trainer(batch=batch, compile=case.compile)
        first = time.perf_counter()
        take(training, period, device)
        first = time.perf_counter() - first
        take(training, period, device)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        times = [take(training, period, device)]
        while sum(times) < seconds or len(times) < 3:
            times.append(take(training, period, device))
        step = statistics.median(times) / period
        flops = counted.flops / period * batch
        found: dict[str, Any] = {
            "model": case.model if gpu else ON_CPU[case.model], "method": case.method, "compile": case.compile,
            "batch": batch, "parameters": sum(p.numel() for p in teacher.denoiser.parameters()),
            "settings": settings, "training": options, "student_every": period,
            "seconds_per_step": round(step, 4), "images_per_second": round(batch / step, 2),
            "tflop_per_image": round(flops / batch / 1e12, 4), "mfu": round(flops / step / (peak * 1e12), 4),
            "first_steps_seconds": round(first, 1), "rounds": len(times),
            "weights_and_moments_gib": round(standing(training) / 2**30, 2),
        }  # fmt: skip
        if gpu:
            found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["seconds"] = round(time.perf_counter() - began, 1)
        return found


def take(trainer: Trainer, steps: int, device: torch.device) -> float:
    """Seconds of so many steps."""
    began = time.perf_counter()
    for _ in range(steps):
        trainer.train_step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def standing(trainer: Trainer) -> int:
    """Bytes that are there between steps: weights of every network, moments of those that are trained."""
    weights, _ = trainer.networks.weight_bytes()
    return weights + weight_bytes(trainer.teacher.denoiser) + trainer.networks.moment_bytes(trainer.config)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="written anew after each case")
    parser.add_argument(
        "--cases", type=Case.read, nargs="+", default=CASES, help="MODEL:METHOD:off|blocks|network each"
    )
    parser.add_argument("--batch", type=int, help="of every case, in the place of the papers' samples a GPU")
    parser.add_argument("--round-seconds", type=float, default=4.0, help="of timing, each case")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no case begins later than this")
    parser.add_argument("--peak-tflops", type=float, default=PEAK_TFLOPS, help="of the GPU, for MFU")
    given = parser.parse_args()
    began = time.monotonic()
    result: dict[str, Any] = {"peak_tflops": given.peak_tflops, "cases": [], "not_measured": []}
    for case in given.cases:
        if time.monotonic() - began > given.seconds:
            result["not_measured"].append({**vars(case), "why": f"later than --seconds {given.seconds:g}"})
            continue
        batch = given.batch or (BATCH.get((case.model, case.method), 32) if torch.cuda.is_available() else 4)
        try:
            found: Mapping[str, Any] = measure(case, batch, given.round_seconds, given.peak_tflops)
            result["cases"].append(found)
        except RuntimeError as error:  # out of memory, or a compiler's
            found = {**vars(case), "batch": batch, "why": str(error).partition("\n")[0][:300]}
            result["not_measured"].append(found)
        print(json.dumps({key: value for key, value in found.items() if key != "settings"}), flush=True)
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        write(given.json, result)
    if not result["cases"]:
        raise SystemExit("no case could be measured")


if __name__ == "__main__":
    main()
