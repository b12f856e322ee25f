"""How a published few-step model is put together from a pipeline of diffusers, and called: as data."""

from __future__ import annotations

from itertools import pairwise
from pathlib import PurePath
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from distillkit.errors import UsageError
from distillkit.reading import first_problem


def _parsed(value: Any) -> Any:
    """'999,749' -> (999, 749); what is none stays for the message."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else value


Timesteps = Annotated[
    tuple[Annotated[int, Field(ge=0, le=1_000_000)], ...], Field(max_length=10_000), BeforeValidator(_parsed)
]
"""Training steps, descending; text such as '999,749,499,249' is understood."""
Place = Annotated[str, Field(min_length=1, max_length=4096)]
"""A path, `hf:ORG/REPO[@REVISION]`, or `hf:ORG/REPO/FILE[@REVISION]`."""


class PublishedConfig(BaseModel):
    """What a pipeline gets in the place of its own parts, and what it is called with beside steps and guidance."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lora: Place | None = Field(None, description="LoRA file, or a repository with pytorch_lora_weights.safetensors")
    lora_scale: float = Field(1.0, ge=-100, le=100, description="what the LoRA is multiplied with")
    weights: Place | None = Field(
        None,
        description="file with the weights of its UNet or transformer, or a folder or repository of such a network",
    )
    scheduler: Place | None = Field(
        None,
        description="scheduler of diffusers in the place of its own, with options: "
        "EulerDiscreteScheduler,timestep_spacing=trailing; or a scheduler_config.json",
    )
    timesteps: Timesteps = Field((), description="at which it is evaluated, in the place of the scheduler's choice")
    eta: float | None = Field(None, ge=0, le=1, description="share of fresh noise in a step, of DDIM and TCD")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if any(a <= b for a, b in pairwise(self.timesteps)):
            raise ValueError(f"timesteps {_written(self.timesteps)}: must be descending")
        if self.lora is None and self.lora_scale != 1.0:
            raise ValueError("lora_scale goes with lora, and none is given")
        return self

    @classmethod
    def of(cls, **given: object) -> Self:
        """What a person asked for, None where nothing.

        Raises:
            UsageError: for a value that cannot be; names the option.
        """
        try:
            return cls.model_validate({name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            name, _, problem = first_problem(error).partition(":")
            option = f"--{name.partition('.')[0].replace('_', '-')}:" if problem else ""
            raise UsageError(f"{option}{problem or name}") from error

    @property
    def recorded(self) -> dict[str, Any]:
        """What a record says of it: names, never paths. The steps are known by then."""
        given = self.model_dump(exclude_defaults=True, exclude={"timesteps"})
        for name in ("lora", "weights", "scheduler"):
            if name in given and not given[name].startswith("hf:"):
                given[name] = PurePath(given[name]).name
        return given

    @property
    def suffix(self) -> str:
        """What a name has behind it, so that a pipeline that is called in another way is not taken for the same."""
        options = "" if self.scheduler is None else self.scheduler.partition(",")[2]
        parts = (
            f"at {','.join(map(str, self.timesteps))}" if self.timesteps else "", options.replace(",", ", "),
            f"eta {self.eta:g}" if self.eta is not None else "",
            f"LoRA times {self.lora_scale:g}" if self.lora_scale != 1 else "",
        )  # fmt: skip
        return "".join(f", {part}" for part in parts if part)

    @property
    def options(self) -> tuple[str, ...]:
        """Those that were given, as they are written on the command line."""
        given = self.model_dump(exclude_defaults=True)
        return tuple(f"--{name.replace('_', '-')} {_written(value)}" for name, value in given.items())

    def refuse_for(self, what: str, *, but: tuple[str, ...] = ()) -> None:
        """Refuse options where they change nothing.

        Args:
            what: why they do not.
            but: fields that are followed.

        Raises:
            UsageError: naming the first that was given.
        """
        rest = self.model_copy(update={name: PLAIN_SAMPLING.model_dump()[name] for name in but})
        for option in rest.options:
            raise UsageError(f"{option} is for pipelines of diffusers that are sampled by a scheduler, and {what}")


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


PLAIN_SAMPLING = PublishedConfig()
"""The pipeline's own parts, called with steps and guidance alone."""
