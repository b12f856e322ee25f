"""student.json: everything that makes a student anew from its weights, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from distillkit.contracts.adapter import AdapterConfig
from distillkit.contracts.denoiser import Denoiser, adapted_in
from distillkit.contracts.guide import Guide, GuideSpec
from distillkit.contracts.random import SampleRNG
from distillkit.contracts.sampler import Sampler
from distillkit.contracts.student import StudentGenerator
from distillkit.contracts.teacher import SampleShape, Teacher, TeacherSpec
from distillkit.errors import UsageError
from distillkit.models.adapters import building_on
from distillkit.models.build import built_light
from distillkit.models.counting import count_evaluations
from distillkit.models.diffusers.options import PLAIN, PipelineConfig
from distillkit.names import Name
from distillkit.reading import check_format, validated
from distillkit.registry import registry

if TYPE_CHECKING:
    from distillkit.contracts.conditioner import Conditioner

FORMAT = 2


class AdapterDescription(BaseModel):
    """What was trained beside the teacher's weights, and where these are found again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: AdapterConfig
    teacher: str = Field(min_length=1, max_length=4096, description="by which the teacher can be asked for again")
    pipeline: PipelineConfig = PLAIN
    base_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the weights that it was trained beside")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of these weights then")


class Imported(BaseModel):
    """Where a student comes from that was not trained here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    source: str = Field(min_length=1, max_length=4096, description="the file, or the repository and the file")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the published weights")
    licence: str = Field("", max_length=10_000, description="of the weights")


class StudentDescription(BaseModel):
    """What a student is, how it is sampled and where it comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    distillkit: Name = Field(description="version that wrote it")
    method: Name
    method_package: Name = Field(description="distribution and version that the method came from")
    settings: dict[str, Any] = Field(description="the method's settings")
    teacher: TeacherSpec
    network: dict[str, Any] = Field(description="kind and arguments of the student's own network")
    adapter: AdapterDescription | None = Field(
        None, description="of a student whose weights are the teacher's with adapters beside them"
    )
    sampler: dict[str, Any] = Field(description="kind and fields of the sampler")
    conditioner: dict[str, Any] = Field(description="kind and fields of the maker of its conditions")
    codec: dict[str, Any] = Field(description="kind and fields of the way to what people look at")
    shape: SampleShape = Field(description="of a sample, without the batch")
    nfe: float = Field(ge=0, le=1e6, description="network evaluations for one sample, measured")
    guidance: float = Field(1.0, ge=0, le=1e6, description="guidance weight that the student has learnt in")
    guide: GuideSpec | None = Field(
        None, description="the network that guidance led away from then; none for no condition"
    )
    images_seen: int = Field(ge=0)
    imported: Imported | None = Field(None, description="of a student that was trained elsewhere: its publication")
    remarks: tuple[Annotated[str, Field(max_length=10_000)], ...] = Field(
        (), max_length=1000, description="what a reader of its figures should know"
    )
    weights_sha256: str = ""


def describe_student(
    generator: StudentGenerator,
    teacher: Teacher,
    *,
    method: str,
    method_package: str,
    settings: Mapping[str, Any] | None = None,
    images_seen: int = 0,
    guidance: float = 1.0,
    guide: Guide | None = None,
    remarks: Sequence[str] = (),
    nfe: float | None = None,
    reference: str = "",
    pipeline: PipelineConfig = PLAIN,
) -> StudentDescription:
    """The description of a student, from which it can be loaded wherever the packages of its parts are installed.

    Args:
        teacher: whose conditioner and codec the student uses.
        settings: the method's, as plain data.
        guidance: weight that the student has learnt in.
        guide: the network that guidance led away from then.
        nfe: network evaluations of a sample where they were measured already; by default one sample is made.
        reference: by which the teacher can be asked for again, whose weights a student of adapters needs; its name by
            default.
        pipeline: what was asked of the teacher's pipeline then.

    Raises:
        UsageError: for a network, sampler, conditioner or codec that no plugin offers, or a network whose weights do
            not fit its description: such a student could never be loaded.
    """
    network = dict(generator.denoiser.description or {})
    _require_buildable(generator.denoiser, network)
    conditioner = _described("conditioners", teacher.conditioner)
    codec = _described("codecs", teacher.codec)
    return StudentDescription(
        distillkit=version("distillkit"),
        method=method,
        method_package=method_package,
        settings=dict(settings or {}),
        teacher=teacher.spec.model_copy(
            update={
                "network": dict(teacher.denoiser.description or teacher.spec.network),
                "conditioner": conditioner,
                "codec": codec,
            }
        ),
        network=network,
        adapter=_described_adapter(generator.denoiser, reference or teacher.spec.name, pipeline),
        sampler=described_sampler(generator.sampler),
        conditioner=conditioner,
        codec=codec,
        shape=generator.shape,
        nfe=measured_nfe(generator, teacher.conditioner) if nfe is None else nfe,
        guidance=guidance,
        guide=guide.facts if guide else None,
        images_seen=images_seen,
        remarks=tuple(remarks),
    )


def _described_adapter(denoiser: Denoiser, reference: str, pipeline: PipelineConfig) -> AdapterDescription | None:
    adapted = adapted_in(denoiser)
    if adapted is None or adapted.adapter is None or adapted.base is None:
        return None
    values = {"layers": adapted.adapter, "teacher": reference, "pipeline": pipeline}
    return AdapterDescription.model_validate(
        {**values, "base_sha256": adapted.base.sha256, "dtype": adapted.base.dtype}
    )


def described_sampler(sampler: Sampler) -> dict[str, Any]:
    """{"kind": "package:Name", ...fields} of a sampler.

    Raises:
        UsageError: where no plugin offers its class.
    """
    return _described("samplers", sampler)


def _described(kind: str, part: Any) -> dict[str, Any]:
    if description := registry().describe(kind, part):
        return description
    name = type(part).__name__
    raise UsageError(
        f"the {kind[:-1]} {name} is offered by no plugin, so the student could never be loaded; "
        f'offer it by the hook distillkit_{kind}: return {{"{name}": {name}}}'
    )


def _require_buildable(denoiser: Denoiser, network: Mapping[str, Any]) -> None:
    """Refuse a network that its description does not build anew: another kind, other names or shapes of weights."""
    name = type(denoiser).__name__
    if not network:
        raise UsageError(
            f"the network {name} has no description, so the student could never be loaded; offer it by the hook "
            'distillkit_networks and make it by distillkit.build_denoiser({"kind": "package:Name", "arguments": ...})'
        )
    adapted = adapted_in(denoiser)
    lent = building_on(adapted.base, adapted.adapter) if adapted and adapted.base and adapted.adapter else nullcontext()
    with lent:
        anew = built_light(network)
    if strange := difference(denoiser, anew.state_dict()):
        raise UsageError(
            f"the student's network {name} does not fit its description {network['kind']}, so it could never be "
            f"loaded: {strange} in what the description builds; describe the network that is trained "
            "(distillkit.changed_network), and make it by distillkit.build_denoiser"
        )


def difference(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """The first weight whose name or shape differs: '"model.bias" is (4,) in the network and missing'; or nothing."""
    own, others = ({name: tuple(value.shape) for name, value in w.items()} for w in (network.state_dict(), weights))
    strange = sorted(name for name in own.keys() | others.keys() if own.get(name) != others.get(name))
    if not strange:
        return ""
    first = strange[0]
    return f"{first} is {own.get(first, 'missing')} in the network and {others.get(first, 'missing')}"


@torch.inference_mode()
def measured_nfe(generator: StudentGenerator, conditioner: Conditioner) -> float:
    """Network evaluations of one sample, counted while it is made."""
    device, rng = next(generator.parameters()).device, SampleRNG(0)
    modes = {module: module.training for module in generator.modules()}

    def noise(purpose: str) -> Tensor:
        return rng.normal(purpose, 0, [0], generator.shape).to(device)

    try:
        condition = conditioner.encode(conditioner.in_turn([0])).to(device)
        with count_evaluations(generator.denoiser) as evaluations:
            generator.eval()(noise("sample"), condition, lambda k: noise(f"renoise/{k}"))
        return float(evaluations())
    finally:
        for module, training in modes.items():
            module.training = training


def read_description(values: Any, origin: str) -> StudentDescription:
    """A description that was read from a file.

    Args:
        origin: the file, for messages.

    Raises:
        DistillkitError: when it is no description, or one of another version.
    """
    check_format(values, FORMAT, origin)
    return validated(StudentDescription, values, origin)
