"""The world that the teacher `shapes` was trained on: a grammar of sentences, and a program that draws them.

"a small red circle above a large blue square on white" is a `Scene`; its pictures are 32x32 RGB and differ in where the
things are and a little in how large they are. Nothing else is random, and nothing was collected: all is drawn here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product

import torch
from torch import Tensor

from distillkit.errors import UsageError

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("left of", "above", "right of", "below")
"""The last two are the first two seen from the other thing."""
BACKGROUNDS = ("white", "black", "grey")
WORDS = ("a", "on", *SIZES, *COLOURS, *SHAPES, "left", "right", "of", "above", "below", *BACKGROUNDS)
"""All words of the grammar."""

ATTRIBUTES = (
    "count", "first size", "first colour", "first shape", "relation", "second size", "second colour", "second shape",
    "background",
)  # fmt: skip
"""What can be read off a picture, in the order of `codes`. The first thing is the left or the upper one."""
KINDS = {"count": 2, "size": 2, "colour": 6, "shape": 3, "relation": 2, "background": 3}
"""How many values an attribute has, by the last word of its name."""

SIDE = 32
RGB = ((225, 45, 45), (35, 165, 70), (50, 80, 230), (245, 210, 40), (165, 50, 195), (50, 205, 225))
GROUND_RGB = ((245, 245, 245), (15, 15, 15), (128, 128, 128))
WIDTHS = ((9.5, 10.2), (13.5, 14.2))
"""Widths in pixels of small and large things, from and to."""
MARGIN, GAP, SIDEWAYS = 1.0, 1.0, 4.0
"""Pixels: free at the border, at least between two things, and at most off the middle across their relation."""
DRAWS = 6
"""Random numbers of a picture."""
SINGLE = 0.2
"""The share of scenes with one thing, where scenes are drawn at random."""


@dataclass(frozen=True)
class Thing:
    """One coloured shape.

    Attributes:
        size: one of SIZES.
        colour: one of COLOURS.
        shape: one of SHAPES.
    """

    size: str
    colour: str
    shape: str

    def __post_init__(self) -> None:
        _known("size", self.size, SIZES)
        _known("colour", self.colour, COLOURS)
        _known("shape", self.shape, SHAPES)


@dataclass(frozen=True)
class Scene:
    """What a sentence says: one thing, or two and how the first is placed to the second.

    Attributes:
        first: the thing that is named first.
        background: one of BACKGROUNDS.
        relation: one of RELATIONS, where there is a second thing.
        second: the thing that is named second.
    """

    first: Thing
    background: str
    relation: str | None = None
    second: Thing | None = None

    def __post_init__(self) -> None:
        _known("background", self.background, BACKGROUNDS)
        if (self.relation is None) != (self.second is None):
            raise ValueError("a scene has a relation and a second thing, or neither")
        if self.relation is not None:
            _known("relation", self.relation, RELATIONS)


def _known(what: str, value: str, values: Sequence[str]) -> None:
    if value not in values:
        raise ValueError(f"{value!r} is no {what}; the world has {', '.join(values)}")


def sentence(scene: Scene) -> str:
    """The scene in words; `parse` reads them back."""
    parts = [_phrase(scene.first)]
    if scene.second is not None:
        parts += [str(scene.relation), _phrase(scene.second)]
    return f"{' '.join(parts)} on {scene.background}"


def _phrase(thing: Thing) -> str:
    return f"a {thing.size} {thing.colour} {thing.shape}"


class _Words:
    """The words of a sentence, read from left to right."""

    def __init__(self, text: str) -> None:
        self.text, self.left = text, text.lower().split()

    def take(self, what: str, *values: str) -> str:
        """The value that comes next."""
        for value in values:
            words = value.split()
            if self.left[: len(words)] == words:
                del self.left[: len(words)]
                return value
        raise self.error(f"expected {what} ({', '.join(values)})")

    def error(self, reason: str) -> ValueError:
        found = f"at {self.left[0]!r}" if self.left else "at its end"
        return ValueError(f"the sentence {self.text!r} is not understood {found}: {reason}")


def parse(text: str) -> Scene:
    """The scene of a sentence such as "a large cyan square on grey", in any case.

    Raises:
        ValueError: naming the first word that is not understood and what was expected there.
    """
    words = _Words(text)
    first, second = _thing(words), None
    relation: str | None = words.take("a relation, or the background after 'on'", *RELATIONS, "on")
    if relation == "on":
        relation = None
    else:
        second = _thing(words)
        words.take("the background after", "on")
    background = words.take("a background", *BACKGROUNDS)
    if words.left:
        raise words.error("nothing may follow the background")
    return Scene(first, background, relation, second)


def scene_of(prompt: str) -> Scene:
    """The scene of a prompt that a person gave.

    Raises:
        UsageError: for what is no sentence of this world.
    """
    try:
        return parse(prompt)
    except ValueError as error:
        raise UsageError(f"the teacher shapes and its protocol know sentences of their world alone: {error}") from error


def _thing(words: _Words) -> Thing:
    words.take("a thing, which begins with", "a")
    return Thing(words.take("a size", *SIZES), words.take("a colour", *COLOURS), words.take("a shape", *SHAPES))


def all_scenes() -> Iterator[Scene]:
    """Each scene that there is a sentence for: 108 with one thing, 15,552 with two."""
    things = [Thing(*each) for each in product(SIZES, COLOURS, SHAPES)]
    yield from (Scene(first, ground) for first, ground in product(things, BACKGROUNDS))
    for first, relation, second, ground in product(things, RELATIONS, things, BACKGROUNDS):
        yield Scene(first, ground, relation, second)


def distinct_scenes(count: int, seed: int) -> list[Scene]:
    """`count` different scenes in random order; a share of at most SINGLE has one thing, which are at most 108.

    Raises:
        ValueError: for more than there are.
    """
    scenes = list(all_scenes())
    if count > len(scenes):
        raise ValueError(f"there are {len(scenes):,} scenes, not {count:,}")
    one = [scene for scene in scenes if scene.second is None]
    two = [scene for scene in scenes if scene.second is not None]
    generator = torch.Generator().manual_seed(seed)
    singles = max(min(len(one), int(SINGLE * count)), count - len(two))
    chosen = [one[i] for i in torch.randperm(len(one), generator=generator)[:singles].tolist()]
    chosen += [two[i] for i in torch.randperm(len(two), generator=generator)[: count - singles].tolist()]
    return [chosen[i] for i in torch.randperm(count, generator=generator).tolist()]


def shipped_prompts() -> list[str]:
    """The sentences that ship: 2,000 different ones."""
    return files(__package__).joinpath("prompts.txt").read_text(encoding="utf-8").splitlines()


def codes(scenes: Sequence[Scene]) -> Tensor:
    """What the pictures of scenes show: (N, 9) int64, the values' numbers in the order of ATTRIBUTES.

    Things are ordered as they are seen: "A right of B" and "B left of A" have the same codes. With one thing, the
    relation and the second thing are -1.
    """
    return torch.tensor([_codes(scene) for scene in scenes], dtype=torch.int64).reshape(-1, len(ATTRIBUTES))


def _codes(scene: Scene) -> list[int]:
    ground = BACKGROUNDS.index(scene.background)
    if scene.second is None or scene.relation is None:
        return [0, *_thing_codes(scene.first), -1, -1, -1, -1, ground]
    relation = RELATIONS.index(scene.relation)
    seen = (scene.first, scene.second) if relation < 2 else (scene.second, scene.first)
    return [1, *_thing_codes(seen[0]), relation % 2, *_thing_codes(seen[1]), ground]


def _thing_codes(thing: Thing) -> list[int]:
    return [SIZES.index(thing.size), COLOURS.index(thing.colour), SHAPES.index(thing.shape)]


def draw(scene: Scene, seed: int) -> Tensor:
    """One picture of a scene, (3, 32, 32) uint8; the same for the same scene and seed."""
    return draw_all(codes([scene]), torch.Generator().manual_seed(seed))[0]


def draw_all(described: Tensor, generator: torch.Generator, chunk: int = 4096) -> Tensor:
    """A picture of each row of `codes`: (N, 9) -> (N, 3, 32, 32) uint8, on the generator's device."""
    device = generator.device
    parts = [
        drawn(part.to(device), torch.rand(len(part), DRAWS, generator=generator, device=device))
        for part in described.split(chunk)
    ]
    return torch.cat(parts) if parts else torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8, device=device)


def drawn(described: Tensor, uniform: Tensor) -> Tensor:
    """A picture of each row of `codes`, all that is random in it from uniforms in [0, 1): (N, 9) and (N, 6) ->
    (N, 3, 32, 32) uint8."""
    device = described.device
    two, relation = described[:, 0] == 1, described[:, 4].clamp(min=0)
    things = torch.stack([described[:, 1:4], described[:, 5:8].clamp(min=0)], 1)  # (N, 2, size colour shape)
    low, high = torch.tensor(WIDTHS, device=device)[things[..., 0]].unbind(-1)
    width = low + (high - low) * uniform[:, :2]
    centre = _centres(width, relation, two, uniform[:, 2:])
    pixels = torch.arange(SIDE, device=device) + 0.5
    dx = pixels[None, None, None, :] - centre[..., 0, None, None]
    dy = pixels[None, None, :, None] - centre[..., 1, None, None]
    cover = _coverage(dx, dy, width[..., None, None] / 2, things[..., 2, None, None])  # (N, 2, 32, 32)
    cover[:, 1] *= two[:, None, None]
    picture = torch.tensor(GROUND_RGB, device=device)[described[:, 8]].float()[:, :, None, None]
    paint = torch.tensor(RGB, device=device)[things[..., 1]].float()[..., None, None]  # (N, 2, 3, 1, 1)
    for each in range(2):
        picture = torch.lerp(picture, paint[:, each], cover[:, each, None])
    return picture.round().to(torch.uint8)


def _centres(width: Tensor, relation: Tensor, two: Tensor, uniform: Tensor) -> Tensor:
    """Where things are: widths (N, 2), relations (N,), whether there are two (N,), (N, 4) in [0, 1) -> (N, 2, xy)."""
    free = SIDE - width.sum(1) - 2 * MARGIN - GAP
    before, until = uniform[:, :2].sort(dim=1).values.unbind(1)
    along = torch.stack([
        MARGIN + free * before + width[:, 0] / 2,
        MARGIN + free * until + width[:, 0] + GAP + width[:, 1] / 2,
    ], 1)  # fmt: skip
    across = SIDE / 2 + SIDEWAYS * (2 * uniform[:, 2:] - 1)
    centre = torch.stack([along, across], 2)
    centre = torch.where((relation == 0)[:, None, None], centre, centre.flip(2))
    alone = MARGIN + width[:, :1] / 2 + (SIDE - 2 * MARGIN - width[:, :1]) * uniform[:, :2]
    return torch.where(two[:, None, None], centre, alone[:, None, :])


def _coverage(dx: Tensor, dy: Tensor, half: Tensor, shape: Tensor) -> Tensor:
    """How much of each pixel a shape covers, in [0, 1], from the signed distance of its centre to the outline.

    Args:
        dx, dy: from the thing's centre, in pixels; y grows downwards.
        half: half of the thing's width, which is also its height.
        shape: the number in SHAPES.
    """
    circle = torch.hypot(dx, dy) - half
    square = torch.maximum(dx.abs(), dy.abs()) - half
    triangle = torch.maximum((2 * dx.abs() - dy - half) / 5**0.5, dy - half)
    distance = torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))
    return (0.5 - distance).clamp(0, 1)
