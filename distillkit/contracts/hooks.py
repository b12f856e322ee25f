"""Hook specifications: what a plugin package may implement.

A package becomes a plugin by an entry point in the group `distillkit` that names a module with functions
marked by `hookimpl`:

    [project.entry-points.distillkit]
    kd = "my_package"

Every hook returns what the plugin offers, by name. distillkit's own methods, teachers, networks, samplers and the rest
come by the same hooks. A name that distillkit has stays distillkit's, and a name that two other plugins offer is given
to neither; who is refused is named with the reason, and the order in which plugins are installed never matters. What is
offered as a callable is called when it is asked for, so that loading a plugin costs nothing.

What a file describes (a student's network, sampler, conditioner, codec) names its kind as `package:Name`, with the
distribution that offers it and the name in its hook; a student is loaded wherever that package is installed.

A module may say `DISTILLKIT_API = 2`; a plugin written for another version of this interface is then named and left out
instead of failing somewhere inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from distillkit.contracts.codec import Codec
    from distillkit.contracts.conditioner import Conditioner
    from distillkit.contracts.denoiser import Denoiser
    from distillkit.contracts.method import Method
    from distillkit.contracts.sampler import Sampler
    from distillkit.contracts.source import Source
    from distillkit.contracts.teacher import Teacher
    from distillkit.contracts.text import TextEncoder

API_VERSION = 2
"""Version of the interface between distillkit and plugins; raised when plugins must change."""

Pipeline = Any
"""`distillkit.Pipeline`, which lives above the contracts."""
Described = Any
"""`distillkit.Described`, which lives above the contracts."""
FeatureExtractor = Any
"""`distillkit.FeatureExtractor`, which lives above the contracts."""
Measure = Any
"""`distillkit.Measure`, which lives above the contracts."""
Student = Any
"""`distillkit.Student`, which lives above the contracts."""

GROUP = "distillkit"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Tracker(Protocol):
    """An experiment tracker. What it raises is a warning, and the run goes on without it.

    It may also have `log_picture(title, path, images)`, called with every grid of samples, and
    `log_table(title, columns, rows, images)`, called with the closing table.
    """

    def log(self, values: Mapping[str, float], images: int) -> None:
        """Means of a logging interval, or figures, by name, after so many images."""

    def close(self) -> None:
        """The run has ended, or was stopped."""


@hookspec
def distillkit_methods() -> Sequence[type[Method]]:  # type: ignore[empty-body]
    """The method classes that this plugin offers; `distillkit run NAME`."""


@hookspec
def distillkit_teachers() -> Mapping[str, Callable[[], Teacher]]:  # type: ignore[empty-body]
    """Teachers by name, loaded when they are asked for; `--teacher NAME`."""


@hookspec
def distillkit_networks() -> Mapping[str, Callable[..., Denoiser]]:  # type: ignore[empty-body]
    """Denoisers by name: classes or functions of plain keyword arguments, which a description keeps."""


@hookspec
def distillkit_samplers() -> Mapping[str, type[Sampler]]:  # type: ignore[empty-body]
    """Samplers of students by name."""


@hookspec
def distillkit_conditioners() -> Mapping[str, type[Conditioner]]:  # type: ignore[empty-body]
    """Conditioners by name."""


@hookspec
def distillkit_encoders() -> Mapping[str, type[TextEncoder]]:  # type: ignore[empty-body]
    """Text encoders by name; what `Prompts` makes conditions with."""


@hookspec
def distillkit_families() -> Mapping[str, Callable[[Pipeline], Described]]:  # type: ignore[empty-body]
    """What a diffusers pipeline is as a teacher, by the class of its network, such as "UNet2DConditionModel"."""


@hookspec
def distillkit_codecs() -> Mapping[str, type[Codec]]:  # type: ignore[empty-body]
    """Codecs by name."""


@hookspec
def distillkit_sources() -> Mapping[str, type[Source[Any]]]:  # type: ignore[empty-body]
    """Sources of training data by name; their settings become options `--NAME-FIELD`."""


@hookspec
def distillkit_extractors() -> Mapping[str, Callable[[], FeatureExtractor]]:  # type: ignore[empty-body]
    """Feature extractors for evaluation by name; `--extractor NAME`."""


@hookspec
def distillkit_protocols() -> Mapping[str, Mapping[str, Any] | Callable[[], Measure]]:  # type: ignore[empty-body]
    """Evaluation protocols by name: the fields of a preset file, or a function that makes the measure itself;
    `--protocol NAME`."""


@hookspec
def distillkit_trackers() -> Mapping[str, Callable[[str, Mapping[str, Any]], Tracker]]:  # type: ignore[empty-body]
    """Trackers by name, made from the run's name and its configuration in one level, {"training.lr": 1e-3}, with
    "project", "folder" and "resumed" beside it; `--report-to NAME`."""


@hookspec
def distillkit_exporters() -> Mapping[str, Callable[..., None]]:  # type: ignore[empty-body]
    """Ways to write a student into an empty folder, by name: (student, folder), and a keyword `self_contained` where
    there is a choice; `distillkit export STUDENT --to NAME`."""
