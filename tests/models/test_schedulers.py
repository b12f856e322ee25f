"""Grids, starts and steps of diffusers' own DDIM and Euler schedulers, for the configurations that pipelines have."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import nn

from distillkit import Condition, DistillkitError, Teacher, TeacherSpec, UsageError
from distillkit.diffusion import PredictionDenoiser
from distillkit.models.diffusers.predictions import time_scale
from distillkit.models.diffusers.scheduler import Grid, noise_of

SHAPE = (4, 6, 4)
STEPS = (1, 2, 4, 7, 30)


class Smooth(nn.Module):
    """A network that looks at x and at the time, for which every error of either shows."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, t, condition=None):
        t = torch.as_tensor(t).float().reshape(-1, 1, 1, 1) * self.scale
        return torch.tanh(0.7 * x + torch.sin(t / 150)) + 0.1 * x.roll(1, -1)


def teacher_of(config, grid=None):
    noise = noise_of(config, "scheduler_config.json", grid)
    model = Smooth(time_scale(noise.schedule.model_dump()))
    return Teacher(PredictionDenoiser(model, noise.schedule, noise.prediction), TeacherSpec(name="smooth", shape=SHAPE))


def by_diffusers(scheduler, noise):
    x, network = noise * getattr(scheduler, "init_noise_sigma", 1.0), Smooth()
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(given, t), t, x).prev_sample
    return x


def assert_equal(config, scheduler, solver, steps, grid=None, shape=SHAPE, **asked):
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(steps))
    scheduler.set_timesteps(**(asked or {"num_inference_steps": steps}))
    theirs = by_diffusers(scheduler, noise)
    ours = teacher_of(config, grid).sample(noise, Condition(), steps=steps, solver=solver)
    # Their cumulative products of betas are of float32, ours of float64: where next to nothing of the signal is left
    # (cosine), their alpha has three digits. Their Euler's sampler goes from noise of 4096 to the sample in float32
    # where the terminal SNR is zero: numbers of 12,000 are rounded by up to 5e-4, twice or three times.
    tolerance = 2e-3 if solver == "euler" and config.get("rescale_betas_zero_snr") else 2e-4
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), (solver, steps)


SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
VARIANCE_PRESERVING = {
    "stable diffusion": {**SCALED, "timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
    "without offset, to the clean sample": {**SCALED, "steps_offset": 0, "set_alpha_to_one": True},
    "trailing": {**SCALED, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    "linspace": {**SCALED, "timestep_spacing": "linspace", "set_alpha_to_one": False},
    "linear": {"beta_schedule": "linear", "clip_sample": False, "prediction_type": "v_prediction"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "timestep_spacing": "trailing"},
    "zero terminal SNR": {
        **SCALED, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction",
    },
    "zero terminal SNR, leading": {**SCALED, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_ddim(name):
    scheduler = DDIMScheduler(**VARIANCE_PRESERVING[name])
    for steps in STEPS:
        assert_equal(dict(scheduler.config) | {"_class_name": "DDIMScheduler"}, scheduler, "ddim", steps)


def test_ddim_that_clips():
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=True, clip_sample_range=0.5)
    for steps in STEPS:
        assert_equal(dict(scheduler.config) | {"_class_name": "DDIMScheduler"}, scheduler, "ddim", steps)


@pytest.mark.parametrize("kind", [PNDMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_other_configurations_read_as_ddim(kind):
    own = {key: value for key, value in SCALED.items() if key != "clip_sample"}
    config = dict(kind(**own, steps_offset=1, timestep_spacing="leading").config) | {"_class_name": kind.__name__}
    config.pop("_use_default_values")  # in a file there is no telling
    for steps in (4, 7):
        assert_equal(config, DDIMScheduler.from_config(config, clip_sample=False), "ddim", steps)


@pytest.mark.parametrize("sigmas", ["", "use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_euler(name, sigmas):
    own = {k: v for k, v in VARIANCE_PRESERVING[name].items() if k not in ("clip_sample", "set_alpha_to_one")}
    scheduler = EulerDiscreteScheduler(**own, **({sigmas: True} if sigmas else {}))
    for steps in STEPS if not sigmas else (2, 7):
        if not sigmas or not own.get("rescale_betas_zero_snr"):
            config = dict(scheduler.config) | {"_class_name": "EulerDiscreteScheduler"}
            assert_equal(config, scheduler, "euler", steps)


@pytest.mark.parametrize("terminal", [None, 0.02])
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_flow_with_the_schedulers_grid_and_with_even_fractions(shift, terminal):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=terminal)
    config = dict(scheduler.config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    for steps in STEPS:
        if steps == 1 and terminal:  # diffusers divides 0 by 0 there
            continue
        assert_equal(config, scheduler, "euler", steps, Grid(own=True))
        even = [1 - k / steps for k in range(steps)]
        assert_equal(config, scheduler, "euler", steps, Grid(), sigmas=even)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 64, 48)])
def test_flow_whose_shift_goes_by_the_size(shape, kind):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind, max_shift=1.2)
    config = dict(scheduler.config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    mu = calculate_shift(shape[1] * shape[2] // 4, 256, 4096, 0.5, 1.2)
    for steps in STEPS:
        even = [1 - k / steps for k in range(steps)]
        assert_equal(config, scheduler, "euler", steps, Grid(patch=2), shape=shape, sigmas=even, mu=mu)
        own = Grid(own=True, patch=2)
        assert_equal(config, scheduler, "euler", steps, own, shape=shape, num_inference_steps=steps, mu=mu)


REFUSED = [
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous"}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
    ("DDIMScheduler", {"thresholding": True}),
    ("DDIMScheduler", {"beta_schedule": "sigmoid"}),
    ("DDIMScheduler", {"prediction_type": "flow"}),
    ("DDIMScheduler", {"num_train_timesteps": 10**9}),
    ("DDIMScheduler", {"beta_start": "0"}),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": "wide"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 7}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "time_shift_type": "cubic"}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "base_image_seq_len": 5000}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(kind, options):
    patch = 2 if len(options) > 1 else 0
    with pytest.raises(UsageError) as refused:
        noise_of({"_class_name": kind, **options}, "x/scheduler_config.json", Grid(patch=patch))
    said = str(refused.value)
    assert said.startswith("x/scheduler_config.json") and len(said) < 400
    named = {"base_image_seq_len": "5000", "shift": "wide", "num_train_timesteps": "num_train_timesteps|steps",
             "shift_terminal": "terminal",
             "beta_schedule": "sigmoid"}.get(list(options)[-1], list(options)[-1])  # fmt: skip
    assert any(part in said for part in named.split("|")), said


def test_an_unknown_scheduler_is_named_with_those_that_are_known():
    with pytest.raises(DistillkitError, match=r"VQDiffusionScheduler.*DDIMScheduler.*FlowMatchEuler"):
        noise_of({"_class_name": "VQDiffusionScheduler"}, "x")
