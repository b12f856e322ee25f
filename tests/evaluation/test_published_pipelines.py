"""Published few-step pipelines make what the lines on their pages make of the same noise, with tiny random weights."""

import logging
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    TCDScheduler,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from distillkit import DistillkitError, UsageError
from distillkit.evaluation.pipeline_scheduler import other_scheduler
from distillkit.evaluation.replacements import refused
from distillkit.evaluation.whole_pipeline import whole_pipeline
from distillkit.models.diffusers.published import PublishedConfig
from tests.models.pipelines import change, saved, sdxl, stable_diffusion
from tests.published import write_replacements

PROMPTS = ["a cat", "two dogs"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Stable Diffusion and SDXL, a LoRA of each, and other weights of SDXL's network."""
    folder = tmp_path_factory.mktemp("base")
    places = {
        "sd": stable_diffusion(folder / "sd", noise="PNDM", options={"skip_prk_steps": True}),
        "sdxl": sdxl(folder / "sdxl"),
    }
    for name, place in places.items():
        write_replacements(folder, name, place)
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    shapes = {"wide": ((4, 9), (32, 4)), "narrow": ((4, 32), (9, 4))}
    for name, (first, second) in shapes.items():
        factors = {f"{layer}.lora_A.weight": torch.ones(first), f"{layer}.lora_B.weight": torch.ones(second)}
        save_file(factors, folder / f"{name}.safetensors")
    own = UNet2DConditionModel(**{**UNet2DConditionModel.load_config(places["sd"] / "unet"), "time_cond_proj_dim": 8})
    own.save_pretrained(folder / "lcm-unet")
    return folder


def drawn(count=2):
    """Latents, and generators that go on behind them."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators]), generators


def theirs(pipeline, **call):
    latents, generators = drawn()
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(PROMPTS, latents=latents, generator=generators, output_type="np", **call).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def ours(place, steps, guidance, **published):
    whole = whole_pipeline(place, steps, guidance, published=PublishedConfig.of(**published))
    latents, generators = drawn()
    with torch.no_grad():
        made = whole.images(whole.pipeline(torch.device("cpu")), {"prompt": PROMPTS}, latents, generators)
    return whole, made


def loaded(place, **parts):
    return DiffusionPipeline.from_pretrained(place, use_safetensors=True, safety_checker=None, **parts)


def check(whole, made, wanted, evaluated):
    assert whole.evaluated == evaluated and whole.subject.sampler["timesteps"] == evaluated
    assert abs(made.float() - (wanted * 255)).max() < 0.6 and made.float().std() > 5


def test_lcm(base, tmp_path):
    """SimianLuo/LCM_Dreamshaper_v7: the guidance is an input of the network."""
    sd = loaded(base / "sd")
    unet = UNet2DConditionModel(**{**dict(sd.unet.config), "time_cond_proj_dim": 8})
    pipeline = LatentConsistencyModelPipeline(
        vae=sd.vae, text_encoder=sd.text_encoder, tokenizer=sd.tokenizer, unet=unet,
        scheduler=LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    place = saved(pipeline, tmp_path / "lcm")
    wanted = theirs(loaded(place), num_inference_steps=4, guidance_scale=8.0)
    whole, made = ours(place, 4, 8.0)
    check(whole, made, wanted, [999, 759, 499, 259])
    _, other = ours(place, 4, 4.0)
    assert (made != other).float().mean() > 0.05


@pytest.mark.parametrize("file", ["sd-lora", "sd-kohya.safetensors", "sd-kohya.bin"])
def test_lcm_lora(base, file):
    """latent-consistency/lcm-lora-sdv1-5, as a folder with diffusers' file, in kohya's names, and as torch saves it."""
    pipeline, call = loaded(base / "sd"), {"num_inference_steps": 2, "guidance_scale": 1.0}
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    where = {"weight_name": file} if file.startswith("sd-kohya") else {}
    pipeline.load_lora_weights(base if where else base / file, **where)
    scale = 1.0 if where else 0.5
    wanted = theirs(pipeline, **call, cross_attention_kwargs={"scale": scale})
    given = {"lora": str(base / file), "scheduler": "LCMScheduler", "lora_scale": scale}
    whole, made = ours(base / "sd", 2, 1.0, **given)
    check(whole, made, wanted, [999, 499])
    assert whole.subject.sampler["lora"] == file
    assert whole.subject.name.startswith(("sd + sd-kohya, 2 LCM", "sd + sd-lora, 2 LCM"))
    if not where:
        _, whole_lora = ours(base / "sd", 2, 1.0, **{**given, "lora_scale": 1.0})
        assert abs(whole_lora.float() - 255 * wanted).max() > 5, "half a LoRA is another"


@pytest.mark.parametrize("steps", [1, 2])
def test_turbo(base, tmp_path, steps):
    """stabilityai/sdxl-turbo: Euler with fresh noise, from the last step down, no guidance."""
    place = sdxl(tmp_path / "turbo", noise="EulerAncestralDiscrete", options={"timestep_spacing": "trailing"})
    wanted = theirs(loaded(place), num_inference_steps=steps, guidance_scale=0.0)
    whole, made = ours(place, steps, 0.0)
    check(whole, made, wanted, [999] if steps == 1 else [999, 499])
    assert "pure noise" not in whole.summary


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_lightning(base, name):
    """ByteDance/SDXL-Lightning: weights of the UNet over the base, Euler from the last step down."""
    file = base / f"{name}_2step_unet.safetensors"
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / name / "unet"))
    unet.load_state_dict(load_file(file))
    pipeline = loaded(base / name, unet=unet)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    wanted = theirs(pipeline, num_inference_steps=2, guidance_scale=0.0)
    whole, made = ours(
        base / name, 2, 0.0, weights=str(file), scheduler="EulerDiscreteScheduler,timestep_spacing=trailing"
    )
    check(whole, made, wanted, [999, 499])
    assert whole.subject.sampler["weights"] == file.name and f"{name} + {file.stem}" in whole.subject.name


def test_dmd2_sdxl(base):
    """tianweiy/DMD2: a pickle with the UNet's weights, LCMScheduler at its own steps; and one step at 399."""
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base / "sdxl" / "unet"))
    unet.load_state_dict(torch.load(base / "sdxl_4step_unet.bin", weights_only=True))
    pipeline = loaded(base / "sdxl", unet=unet)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    for steps in ([999, 749, 499, 249], [399]):
        wanted = theirs(pipeline, num_inference_steps=len(steps), guidance_scale=0, timesteps=steps)
        whole, made = ours(
            base / "sdxl", None, 0.0, weights=str(base / "sdxl_4step_unet.bin"), scheduler="LCMScheduler",
            timesteps=",".join(map(str, steps)),
        )  # fmt: skip
        check(whole, made, wanted, steps)
        assert whole.steps == len(steps) and "pure noise" not in whole.summary


@pytest.mark.parametrize("call", [{"steps": 1, "eta": 1.0, "timesteps": "800"}, {"steps": 2, "eta": 0.3}])
def test_hyper_sd_tcd(base, call):
    """ByteDance/Hyper-SD: a LoRA, fused; TCDScheduler with its share of fresh noise."""
    pipeline = loaded(base / "sdxl")
    pipeline.load_lora_weights(base, weight_name="sdxl-kohya.safetensors")
    pipeline.fuse_lora()
    pipeline.scheduler = TCDScheduler.from_config(pipeline.scheduler.config)
    given = {"eta": call["eta"], "num_inference_steps": call["steps"], "guidance_scale": 0.0}
    given |= {"timesteps": [800]} if "timesteps" in call else {}
    wanted = theirs(pipeline, **given)
    rest = {name: value for name, value in call.items() if name != "steps"}
    whole, made = ours(
        base / "sdxl", call["steps"], 0.0, lora=str(base / "sdxl-kohya.safetensors"), scheduler="TCDScheduler", **rest
    )
    check(whole, made, wanted, [800] if "timesteps" in call else [999, 499])
    assert whole.subject.sampler["eta"] == call["eta"]


@pytest.mark.parametrize("clipped", [False, True])
def test_hyper_sd_ddim(base, tmp_path, clipped):
    """Its LoRAs of a fixed number of steps: DDIM from the last step down; what diffusers corrects in the configuration
    of the pipeline's own scheduler as it loads it, the other scheduler has too."""
    place = base / "sd"
    if clipped:
        place = shutil.copytree(place, tmp_path / "sd")
        DDIMScheduler.from_config(loaded(base / "sd").scheduler.config, clip_sample=True).save_pretrained(
            place / "scheduler"
        )
        change(place / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    pipeline = loaded(place)
    pipeline.load_lora_weights(base, weight_name="sd-kohya.safetensors")
    pipeline.fuse_lora()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    wanted = theirs(pipeline, num_inference_steps=2, guidance_scale=0.0)
    whole, made = ours(
        place, 2, 0.0, lora=str(base / "sd-kohya.safetensors"),
        scheduler="DDIMScheduler,timestep_spacing=trailing",
    )  # fmt: skip
    check(whole, made, wanted, [999, 499])


def test_a_network_of_its_own_configuration(base):
    """latent-consistency/lcm-sdxl: a UNet alone, which takes the guidance as an input."""
    pipeline = loaded(base / "sd", unet=UNet2DConditionModel.from_pretrained(base / "lcm-unet"))
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    wanted = theirs(pipeline, num_inference_steps=2, guidance_scale=8.0)
    whole, made = ours(base / "sd", 2, 8.0, weights=str(base / "lcm-unet"), scheduler="LCMScheduler")
    check(whole, made, wanted, [999, 499])


def test_a_first_step_that_is_not_that_of_pure_noise_is_said(base):
    whole = whole_pipeline(base / "sd", 2, 1.0, published=PublishedConfig(scheduler="DDIMScheduler"))
    assert "t = 501, 1" in whole.summary and "timestep_spacing is leading" in whole.summary
    trailing = PublishedConfig(scheduler="DDIMScheduler,timestep_spacing=trailing")
    assert "pure noise" not in whole_pipeline(base / "sd", 2, 1.0, published=trailing).summary


def test_a_lora_that_names_its_adapter_is_read(base, tmp_path):
    """`lora_A.default_0.weight`: diffusers passes over it without a word."""
    file = base / "sd-lora" / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    named = {name.replace(".weight", ".default_0.weight"): value for name, value in load_file(file).items()}
    save_file(named, tmp_path / "named.safetensors", metadata)
    plain = {"scheduler": "LCMScheduler"}
    _, without = ours(base / "sd", 2, 1.0, **plain)
    _, wanted = ours(base / "sd", 2, 1.0, lora=str(file), **plain)
    _, made = ours(base / "sd", 2, 1.0, lora=str(tmp_path / "named.safetensors"), **plain)
    assert torch.equal(made, wanted) and not torch.equal(made, without)


@pytest.mark.parametrize(("change", "named"), [("one factor", "and not .*lora_B"), ("nan", "NaN")])
def test_a_damaged_lora_is_refused(base, tmp_path, change, named):
    weights = load_file(base / "sd-lora" / "pytorch_lora_weights.safetensors")
    name = next(name for name in weights if name.endswith("lora_B.weight"))
    if change == "nan":
        weights[name][0] = float("nan")
    else:
        del weights[name]
    save_file(weights, tmp_path / "damaged.safetensors")
    with pytest.raises(DistillkitError, match=named):
        ours(base / "sd", 2, 1.0, lora=str(tmp_path / "damaged.safetensors"), scheduler="LCMScheduler")


def test_records_of_other_calls_have_other_names(base):
    given = [
        {"scheduler": "LCMScheduler"}, {"scheduler": "LCMScheduler", "timesteps": "999,499"},
        {"scheduler": "EulerDiscreteScheduler"}, {"scheduler": "EulerDiscreteScheduler,timestep_spacing=trailing"},
        {"scheduler": "TCDScheduler", "eta": 1.0}, {"scheduler": "TCDScheduler"},
        {"lora": str(base / "sd-lora"), "scheduler": "TCDScheduler"},
        {"lora": str(base / "sd-lora"), "scheduler": "TCDScheduler", "lora_scale": 0.5},
    ]  # fmt: skip
    names = {whole_pipeline(base / "sd", 2, 1.0, published=PublishedConfig.of(**one)).subject.name for one in given}
    assert len(names) == len(given) and "sd, 2 LCMScheduler steps, at 999,499" in names


def test_everything_that_samples_depend_on_is_in_the_identity(base, tmp_path):
    (tmp_path / "other").mkdir()
    lora = shutil.copy(base / "sd-kohya.safetensors", tmp_path / "sd-kohya.safetensors")
    other = tmp_path / "other" / "sd-kohya.safetensors"
    save_file({name: value * 2 for name, value in load_file(lora).items()}, other)
    schedulers = [tmp_path / "tcd.json", tmp_path / "other" / "tcd.json"]
    for path, prediction in zip(schedulers, ("epsilon", "v_prediction"), strict=True):
        TCDScheduler(prediction_type=prediction).save_config(path.parent)
        (path.parent / "scheduler_config.json").rename(path)
    plain = {"lora": str(base / "sd-kohya.safetensors"), "scheduler": "TCDScheduler"}

    def seen(guidance, **given):
        return str(whole_pipeline(base / "sd", 2, guidance, published=PublishedConfig.of(**given)).identity())

    found = [
        seen(1.0, **plain), seen(2.0, **plain), seen(1.0, **{**plain, "lora": str(other)}),
        seen(1.0, **plain, lora_scale=0.5), seen(1.0, **plain, eta=0.5), seen(1.0, scheduler="TCDScheduler"),
        seen(1.0, **plain, weights=str(base / "sd_2step_unet.safetensors")), seen(1.0, **plain, timesteps=(9, 1)),
        seen(1.0, **{**plain, "scheduler": "TCDScheduler,prediction_type=v_prediction"}),
        *(seen(1.0, **{**plain, "scheduler": str(path)}) for path in schedulers),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert seen(1.0, **{**plain, "lora": str(lora)}) == found[0], "the same wherever the file is"


def test_pictures_of_a_published_pipeline(inside, base, tmp_path):
    """The same sample whatever the batch, with fresh noise between evaluations."""
    given = ("--steps", "2", "--lora", base / "sd-lora", "--scheduler", "TCDScheduler", "--eta", "1", "--guidance", "1",
             "--prompt", "a cat", "--prompt", "two dogs", "--num", "3")  # fmt: skip
    made = []
    for batch in (3, 1):
        done = inside("sample", base / "sd", *given, "--batch", batch, "--output", f"of-{batch}")
        assert done.returncode == 0 and "2 network evaluation(s) each" in done.stdout, done.stderr
        paths = sorted((tmp_path / f"of-{batch}").glob("*.png"))
        made.append(np.stack([np.asarray(Image.open(path)).astype(int) for path in paths]))
    assert abs(made[0] - made[1]).max() <= 1 and abs(made[0][0] - made[0][2]).max() > 10
    assert (tmp_path / "of-3" / "000002.txt").read_text() == "a cat\n"


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        (("--lora", "{base}/sdxl-kohya.safetensors", "--steps", "2"), 2, "another network"),
        (("--lora", "{base}/sd_2step_unet.safetensors", "--steps", "2"), 2, "holds no layers"),
        (("--lora", "none.safetensors", "--steps", "2"), 2, "--lora none.safetensors"),
        (("--lora", "{base}/sd-lora"), 2, "--steps N"),
        (("--lora-scale", "0.5", "--steps", "2"), 2, "lora_scale goes with lora"),
        (("--weights", "{base}/sd-kohya.safetensors", "--steps", "2"), 2, "give it as --lora"),
        (("--lora", "{base}/wide.safetensors", "--steps", "2"), 2, "lora_A.weight' is (4, 9), and the layer's"),
        (("--lora", "{base}/narrow.safetensors", "--steps", "2"), 2, "lora_B.weight' is (9, 4), and the layer's"),
        (("--scheduler", "LCMScheduler,num_train_timesteps=10000000", "--steps", "2"), 2, "from 1 to 1,000,000"),
        (("--weights", "{base}/sdxl", "--steps", "2"), 2, "cross_attention_dim"),
        (("--scheduler", "FlowMatchEulerDiscreteScheduler", "--steps", "2"), 2, "flow models"),
        (("--weights", "{base}/sdxl_2step_unet.safetensors", "--steps", "2"), 1, "do not fit the unet of"),
        (("--weights", "{base}/sdxl/vae", "--steps", "2"), 2, "AutoencoderKL"),
        (("--weights", "none", "--steps", "2"), 2, "--weights none"),
        (("--weights", "{base}/evil.bin", "--steps", "2"), 1, "system"),
        (("--scheduler", "LCMSchedular", "--steps", "2"), 2, "LCMSchedular"),
        (("--scheduler", "StableDiffusionPipeline", "--steps", "2"), 2, "no scheduler"),
        (("--scheduler", "LCMScheduler,spacing=trailing", "--steps", "2"), 2, "no option"),
        (("--scheduler", "LCMScheduler,trailing", "--steps", "2"), 2, "OPTION=VALUE"),
        (("--scheduler", "none.json", "--steps", "2"), 2, "none.json"),
        (("--scheduler", "DDIMScheduler", "--timesteps", "999,499"), 2, "--timesteps"),
        (("--scheduler", "LCMScheduler", "--timesteps", "499,999"), 2, "timesteps 499,999: must be descending"),
        (("--scheduler", "LCMScheduler", "--timesteps", "1999,999"), 2, "--timesteps"),
        (("--timesteps", "999,499", "--scheduler", "LCMScheduler", "--steps", "3"), 2, "--steps 3"),
        (("--scheduler", "LCMScheduler", "--steps", "2", "--eta", "1"), 2, "--eta"),
        (("--scheduler", "LCMScheduler", "--steps", "60"), 2, "--steps"),
        (("--scheduler", "LCMScheduler", "--steps", "2", "--solver", "ddim"), 2, "--solver"),
        (("--scheduler", "LCMScheduler", "--steps", "2", "--nfe", "2"), 2, "--nfe"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(inside, base, tmp_path, given, code, named):
    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'canary'}",)

    if not (base / "evil.bin").exists():
        torch.save({"x": Evil()}, base / "evil.bin")
    failed = inside("sample", base / "sd", "--prompt", "a cat", *(part.format(base=base) for part in given))
    assert failed.returncode == code and named in failed.stderr, failed.stderr
    assert "Traceback" not in failed.stderr and "fault of distillkit" not in failed.stderr, failed.stderr
    assert not (tmp_path / "canary").exists()


def test_other_libraries_bars_and_remarks_are_not_shown():
    libraries = [diffusers_logging, transformers_logging]
    before = [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    try:
        for library in libraries:
            library.enable_progress_bar()
            library.set_verbosity_info()
        with refused("a pipeline"):
            assert not any(library.is_progress_bar_enabled() for library in libraries)
            assert {library.get_verbosity() for library in libraries} == {logging.ERROR}
        assert all(library.is_progress_bar_enabled() for library in libraries)
        assert {library.get_verbosity() for library in libraries} == {logging.INFO}
    finally:
        for library, (bars, verbosity) in zip(libraries, before, strict=True):
            (library.enable_progress_bar if bars else library.disable_progress_bar)()
            library.set_verbosity(verbosity)


def test_schedulers_of_flow_models_are_for_flow_models():
    flow = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UsageError, match=r"DDIMScheduler is for noise.*FlowMatchEulerDiscreteScheduler, for flow"):
        other_scheduler("DDIMScheduler", flow)
    asked = "DPMSolverMultistepScheduler,use_flow_sigmas=true,prediction_type=flow_prediction"
    assert other_scheduler(asked, flow).config.use_flow_sigmas
    with pytest.raises(UsageError, match="for flow models"):
        other_scheduler(asked, DDIMScheduler())


def test_a_teacher_stays_one(inside, base, tmp_path):
    """`teachers sample` and `--solver` sample a pipeline by a solver, however many steps are asked for."""
    given = (base / "sd", "--prompt", "a cat", "--steps", "2", "--num", "1", "--output", "one.png")
    for words in (("teachers", "sample", *given), ("sample", *given, "--solver", "ddim")):
        done = inside(*words)
        assert done.returncode == 0 and "own pipeline" not in done.stdout, done.stderr
    assert "own pipeline, PNDMScheduler" in inside("sample", *given).stdout
    failed = inside("teachers", "sample", *given, "--eta", "0.5")
    assert failed.returncode == 2 and "--eta 0.5" in failed.stderr


def test_options_of_pipelines_are_for_pipelines(inside, tiny_teacher_folder):
    failed = inside("sample", tiny_teacher_folder, "--scheduler", "LCMScheduler", "--steps", "2")
    assert failed.returncode == 2 and "--scheduler LCMScheduler is for pipelines" in failed.stderr
    failed = inside("evaluate", tiny_teacher_folder, "--timesteps", "9,1")
    assert failed.returncode == 2 and "--timesteps 9,1 is for pipelines" in failed.stderr
