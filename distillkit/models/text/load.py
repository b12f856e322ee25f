"""Tokenizers and text encoders of transformers, from the files of a pipeline; no pickle is executed."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit.errors import DistillkitError, UsageError
from distillkit.models.bounds import TEXT_SIZES, TextSizes
from distillkit.models.diffusers.parts import PipelineParts
from distillkit.reading import validated
from distillkit.text import short

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")


def load_tokenizer(parts: PipelineParts, component: str) -> Any:
    """The tokenizer of a pipeline.

    Raises:
        UsageError: when it is missing.
        DistillkitError: when it cannot be read.
    """
    from transformers import AutoTokenizer

    place = parts.component(component)
    # Without one, transformers makes a tokenizer that knows nothing.
    if not any(path.name in VOCABULARIES or path.suffix == ".model" for path in place.iterdir()):
        raise UsageError(f"{place} has no vocabulary ({', '.join(VOCABULARIES)} or *.model)")
    try:
        with quietly():
            return AutoTokenizer.from_pretrained(str(place), local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        reason = str(error).partition("\n")[0][:300]
        raise DistillkitError(f"the tokenizer in {place} cannot be read ({type(error).__name__}: {reason})") from error


def load_text_model(
    parts: PipelineParts, component: str, kind: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A frozen text encoder of a pipeline, on a device.

    Args:
        kind: class of transformers, such as "CLIPTextModel".

    Raises:
        UsageError: when it is missing, or of another class than `kind`.
        DistillkitError: when it is damaged, or its weights are those of another model.
    """
    config, place = _described(parts, component, kind), parts.component(component)
    return made_model(kind, config, parts.weights(component, dtype), place, dtype).to(device)


def made_model(
    kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], place: Path, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A frozen model of transformers.

    Args:
        kind: its class, such as "CLIPModel".
        config: of its kind, whose sizes have been checked.
        tensors: its weights, by its names.
        place: where both were read.

    Raises:
        DistillkitError: when it cannot be made, or the weights are those of another model.
    """
    try:
        with quietly():
            cls, own = _class_of(kind, config, dtype)
            with torch.device("meta"):
                expected = cls(own)
            wrong = _differences(expected, tensors)
            if not wrong:
                model, report = cls.from_pretrained(
                    None, config=own, state_dict=dict(tensors), output_loading_info=True
                )
                wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    except Exception as error:  # transformers raises many kinds
        reason = str(error).partition("\n")[0][:300]
        raise DistillkitError(f"the {kind} in {place} cannot be made ({type(error).__name__}: {reason})") from error
    if wrong:
        raise DistillkitError(
            f"the weights in {place} are not those of its configuration: {len(wrong)} tensors differ or are missing, "
            f"such as {wrong[0]}"
        )
    return model.to(dtype).eval().requires_grad_(False)


def build_text_model(parts: PipelineParts, component: str, kind: str) -> nn.Module:
    """A text encoder as a pipeline's configuration describes it, with random weights in float32, in evaluation mode.

    Args:
        kind: class of transformers.

    Raises:
        UsageError: when it is missing, or of another class than `kind`.
        DistillkitError: when it is damaged, or no such network can be made.
    """
    config, place = _described(parts, component, kind), parts.component(component)
    try:
        with quietly():
            cls, own = _class_of(kind, config, torch.float32)
            model: nn.Module = cls(own)
    except Exception as error:  # transformers raises many kinds
        reason = str(error).partition("\n")[0][:300]
        raise DistillkitError(f"the {kind} in {place} cannot be made ({type(error).__name__}: {reason})") from error
    return model.eval()


def _described(parts: PipelineParts, component: str, kind: str) -> dict[str, Any]:
    """The configuration of a text encoder of the class `kind`."""
    config, place = parts.configuration(component), parts.component(component)
    named = config.get("architectures") or [kind]
    if not isinstance(named, list) or kind not in named:
        raise UsageError(f"{place} holds a {short(named[0] if isinstance(named, list) else named)}, and {kind} is due")
    validated(TEXT_SIZES.get(kind, TextSizes), config, str(place / "config.json"))
    return config


def _class_of(kind: str, config: Mapping[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """A class of transformers and its configuration."""
    import transformers

    cls = getattr(transformers, kind)
    # Releases before 4.56 know the former name alone.
    return cls, cls.config_class.from_dict({**config, **dict.fromkeys(("dtype", "torch_dtype"), _name(dtype))})


def _differences(expected: nn.Module, found: Mapping[str, Tensor]) -> list[str]:
    """Names of weights of another shape; and of those that are not there, where these are most: before memory is asked
    for them. transformers knows more names for a weight, so that few that seem to be missing may be there."""
    own = {name: value.shape for name, value in expected.named_parameters()}
    wrong = [name for name, shape in own.items() if name in found and found[name].shape != shape]
    held = sum(value.numel() for value in found.values())
    if sum(shape.numel() for shape in own.values()) > 2 * held:
        wrong += [name for name in own if name not in found]
    return sorted(wrong)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def quietly(*libraries: str) -> Iterator[None]:
    """Without the progress bars, reports and advice of these libraries, of which nothing is ours to show.

    Args:
        libraries: "transformers", which it is by default, and "diffusers".
    """
    with contextlib.ExitStack() as stack:
        for library in libraries or ("transformers",):
            logging = importlib.import_module(f"{library}.utils.logging")
            stack.callback(logging.set_verbosity, logging.get_verbosity())
            if logging.is_progress_bar_enabled():
                stack.callback(logging.enable_progress_bar)
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        yield
