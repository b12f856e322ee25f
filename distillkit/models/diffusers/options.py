"""What a teacher leaves to whoever uses it: the size of a pipeline's pictures, the guidance that its network embeds,
and which other network guides it."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillkit.counts import Size
from distillkit.errors import UsageError
from distillkit.reading import first_problem


class PipelineConfig(BaseModel):
    """How the teacher is used; what is not given is as its files say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resolution: Size | None = Field(
        None, description="size of a latent teacher's pictures in pixels: 768, or WIDTHxHEIGHT; its own if none"
    )
    embedded_guidance: float | None = Field(
        None, ge=0, le=1000,
        description="guidance that is an input of the teacher's network (FLUX.1-dev); its own if none",
    )  # fmt: skip
    guide_with: str | None = Field(
        None, min_length=1, max_length=4096,
        description="a smaller, less trained or unconditional teacher, by name, folder or file, that guidance leads "
        "away from (autoguidance); the teacher's own prediction without a condition if none",
    )  # fmt: skip

    @classmethod
    def of(cls, resolution: object, embedded_guidance: object, guide_with: object = None) -> Self:
        """What a person asked for, None where nothing.

        Raises:
            UsageError: for what is no size or weight; names the option.
        """
        try:
            return cls.model_validate(
                {"resolution": resolution, "embedded_guidance": embedded_guidance, "guide_with": guide_with}
            )
        except ValidationError as error:
            name, _, problem = first_problem(error).partition(":")
            raise UsageError(f"--{name.partition('.')[0].replace('_', '-')}:{problem}") from error

    @property
    def unguided(self) -> PipelineConfig:
        """What is asked of the teacher's own files."""
        return self.model_copy(update={"guide_with": None})

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width of pictures."""
        return None if self.resolution is None else (self.resolution[1], self.resolution[0])

    @property
    def options(self) -> tuple[str, ...]:
        """Those that were given, as they are written on the command line."""
        size = () if self.resolution is None else ("--resolution {}x{}".format(*self.resolution),)
        guidance = () if self.embedded_guidance is None else (f"--embedded-guidance {self.embedded_guidance:g}",)
        guide = () if self.guide_with is None else (f"--guide-with {self.guide_with}",)
        return (*size, *guidance, *guide)

    @property
    def suffix(self) -> str:
        """What a name has behind it, so that a teacher at another size is not taken for the same."""
        size = "" if self.resolution is None else " {}x{}".format(*self.resolution)
        return size + ("" if self.embedded_guidance is None else f" embedded guidance {self.embedded_guidance:g}")

    def refuse_for(self, what: str) -> None:
        """Refuse options where they change nothing.

        Args:
            what: why they do not.

        Raises:
            UsageError: naming the first that was given.
        """
        for option in self.unguided.options:
            raise UsageError(f"{option} is for pipelines of diffusers that are sampled as teachers, and {what}")
        if self.guide_with is not None:
            raise UsageError(f"--guide-with {self.guide_with} is for teachers, and {what}")

    def require_guidance(self, weight: float) -> None:
        """Refuse a guide that would not be evaluated.

        Raises:
            UsageError: for guidance 1.
        """
        if self.guide_with is not None and weight == 1:
            raise UsageError(unused_guide(self.guide_with))


def unused_guide(name: str) -> str:
    """What is said of a guide that would not be evaluated."""
    return (
        f"--guide-with {name}: with guidance 1 the teacher's prediction is taken as it is, and the guide would not be "
        "evaluated; give --guidance, such as 2, as well"
    )


PLAIN = PipelineConfig()
"""As the teacher's files say."""
