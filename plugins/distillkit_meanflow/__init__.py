"""MeanFlow for distillkit: average velocities of a teacher's trajectories (Geng et al. 2025, arXiv 2505.13447)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distillkit import Denoiser, Method, Sampler, hookimpl


@hookimpl
def distillkit_methods() -> list[type[Method]]:
    from distillkit_meanflow.method import MeanFlow

    return [MeanFlow]


@hookimpl
def distillkit_networks() -> Mapping[str, Callable[..., Denoiser]]:
    from distillkit_meanflow.two_times import two_times

    return {"TwoTimes": two_times}


@hookimpl
def distillkit_samplers() -> Mapping[str, type[Sampler]]:
    from distillkit_meanflow.sampler import MeanFlowSampler

    return {"MeanFlowSampler": MeanFlowSampler}
