"""What a teacher's name means, and what is known of a teacher before its weights are there."""

import json

import pytest
import torch

from distillkit import (
    ClassLabels,
    Condition,
    DistillkitError,
    Pixels,
    Points,
    SampleRNG,
    Teacher,
    TeacherSpec,
    UsageError,
    build_denoiser,
    load_teacher,
)
from distillkit.models.store import resolve as resolving
from distillkit.models.store.card import TeacherOffer
from distillkit.models.store.resolve import cards, default_teacher, preset_name, resolve
from distillkit.progress import Quiet
from distillkit.registry import Plugin, gathered, registry


@pytest.fixture
def plugged(monkeypatch):
    """Installs plugins that offer teachers: plugged(package, {name: loader}), ..."""

    def install(*offers):
        others = [Plugin(package, package, "1.0", package, {"teachers": teachers}) for package, teachers in offers]
        found = gathered([*registry().plugins, *others])
        monkeypatch.setattr(resolving, "registry", lambda: found)

    return install


@pytest.fixture
def spoiled(tiny_teacher_folder, tmp_path):
    """The tiny teacher's folder with another teacher.json."""

    def write(**changes):
        folder = tmp_path / "spoiled"
        folder.mkdir()
        spec = json.loads((tiny_teacher_folder / "teacher.json").read_text()) | changes
        (folder / "teacher.json").write_text(json.dumps({key: v for key, v in spec.items() if v is not ...}))
        (folder / "model.safetensors").write_bytes((tiny_teacher_folder / "model.safetensors").read_bytes())
        return str(folder)

    return write


def test_cards_are_true_and_their_names_are_unique():
    names = [name for card in cards().values() for name in (card.name, *card.aliases)]
    assert len(names) == len(set(names)) > 20
    sizes: dict[str, int] = {}
    for card in cards().values():
        # Averages of one training have the same network.
        if (network := str(card.spec.network)) not in sizes:
            with torch.device("meta"):
                sizes[network] = sum(p.numel() for p in build_denoiser(card.spec.network).parameters())
        assert sizes[network] == card.parameters, card.name
        assert card.spec.licence and card.spec.source
        if card.url:
            assert card.published and card.reference.endswith((".npz", ".pkl"))
            assert any(known in card.spec.licence for known in ("NC", "MIT"))
            assert card.spec.shape[1] == card.spec.network["arguments"]["network"]["img_resolution"]
            # DiT's and SiT's models of latents alone were trained with labels dropped.
            dropped = card.spec.codec["kind"] == "distillkit:AutoencoderKL"
            assert bool(card.spec.conditioner.get("null_label")) == dropped


@pytest.mark.parametrize(
    ("typed", "name"),
    [("EDM-ImageNet64", "edm-imagenet64"), ("edm-imagenet-64x64-cond-adm", "edm-imagenet64"),
     ("imagenet64", "edm-imagenet64"), ("edm-cifar10", "edm-cifar10-cond"), ("edm-ffhq", "edm-ffhq64"),
     ("Digits", "digits")],
)  # fmt: skip
def test_aliases_mean_the_same_teacher_in_any_case(typed, name):
    assert resolve(typed).name == preset_name(typed) == name


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="edm-cifar10-cond"):
        resolve("edm-cifar10-conf")
    assert preset_name("edm-cifar100") == "edm-cifar100"


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_working_folder(name, tiny_teacher_folder, monkeypatch):
    monkeypatch.chdir(tiny_teacher_folder)
    assert resolve(".").spec.name == "tiny"
    with pytest.raises(UsageError, match="a teacher's name is empty"):
        resolve(name)


@pytest.mark.parametrize(
    ("name", "hint"), [("runs/none/teacher", "file or folder"), ("org/model", "folder; .* is called hf:org/model")]
)
def test_a_path_without_anything_is_answered_as_one(name, hint):
    with pytest.raises(UsageError, match=rf"no teacher at {name}: there is no such .*{hint}$"):
        resolve(name)


def test_averages_of_one_training_are_understood_and_not_all_listed():
    with pytest.raises(UsageError, match="Did you mean 'edm2-img512-xs-guid-fid'") as caught:
        resolve("edm2-img512-xs-guid-fidd")
    listed = str(caught.value).partition("Available: ")[2]
    assert "edm2-img512-xs," in listed and "-guid" not in listed


def test_what_is_not_downloaded_can_be_planned_with(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reference = resolve("edm-cifar10-uncond")
    assert not reference.available and reference.download_bytes == 4 * reference.card.parameters
    with torch.device("meta"):
        teacher = reference.skeleton(Quiet())
    assert teacher.spec.shape == (3, 32, 32) and teacher.conditioner.count == 0
    with pytest.raises(DistillkitError, match="HF_HUB_OFFLINE"):
        reference.load(Quiet())


def test_embedded_teachers_bring_their_data_fresh_ones_too():
    assert default_teacher() == "digits"
    cpu = torch.device("cpu")
    for teacher in (load_teacher("digits"), resolve("digits").fresh(0)):
        images = teacher.images(cpu).batch(SampleRNG(0), 0, range(3))
        assert (
            images.sample.shape == (3, 1, 8, 8) and images.sample.min() >= -1 and len(images.condition["labels"]) == 3
        )
    assert (teacher.conditioner, teacher.codec, teacher.spec.weights_sha256) == (ClassLabels(classes=10), Pixels(), "")
    first, again = (resolve("digits").fresh(seed).denoiser.state_dict() for seed in (3, 3))
    assert all(torch.equal(first[key], again[key]) for key in first)
    mixture = load_teacher("mixture")
    points = mixture.images(cpu).batch(SampleRNG(0), 0, range(500)).sample
    assert points.shape == (500, 2) and mixture.spec.shape == (2,) and mixture.codec == Points()
    assert points.norm(dim=1).mean().sub(0.7).abs() < 0.02


def test_students_of_the_mixture_start_from_a_network_fitted_to_the_exact_denoiser():
    mixture = load_teacher("mixture")
    noise, points = torch.randn(256, 2), mixture.images(torch.device("cpu")).batch(SampleRNG(1), 0, range(256)).sample
    student = mixture.copy_denoiser()
    for t in (0.1, 1.0, 10.0):
        level = torch.full((256,), t)
        x = mixture.schedule.add_noise(points, noise, level)
        assert (student(x, level, Condition()) - mixture(x, level, Condition())).abs().mean() < 0.01
    assert student.description["kind"] == "distillkit:PointMLP"


def test_plugins_offer_teachers_and_the_built_in_keeps_its_name(plugged, tiny_teacher):
    plugged(("mine", {"tiny": lambda: tiny_teacher, "digits": lambda: tiny_teacher}))
    assert load_teacher("tiny") is tiny_teacher
    assert resolve("tiny").spec is None and resolve("tiny").available
    assert load_teacher("digits") is not tiny_teacher
    assert "mine" in resolving.registry().refused["teachers", "digits"]


def test_a_name_that_two_plugins_offer_is_refused_with_the_reason(plugged, tiny_teacher):
    plugged(("mine", {"tiny": lambda: tiny_teacher}), ("yours", {"tiny": lambda: tiny_teacher}))
    with pytest.raises(UsageError, match=r"mine.*yours"):
        resolve("tiny")


@pytest.mark.parametrize(("loader", "named"), [(lambda: 1 / 0, "ZeroDivisionError"), (lambda: "text", "str")])
def test_a_plugin_whose_teacher_fails_is_named(plugged, loader, named):
    plugged(("mine", {"odd": loader}))
    with pytest.raises(DistillkitError, match=r"odd.*mine 1\.0") as failed:
        load_teacher("odd")
    assert named in str(failed.value)


def test_a_plugin_s_card_gives_its_spec_and_aliases(plugged, tiny_teacher):
    card = cards()["digits"]
    spec = card.spec.model_copy(update={"name": "mine"})
    own = type(card)(spec, "mine", aliases=("edm-cifar10", "my-digits"))
    plugged(("mine", {"mine": TeacherOffer(own, lambda reporter, should_stop: tiny_teacher)}))
    assert resolve("my-digits").spec == spec and load_teacher("my-digits") is tiny_teacher
    assert resolve("edm-cifar10").name == "edm-cifar10-cond", "an alias of distillkit's own stays its own"


def test_a_folder_keeps_conditioner_codec_and_schedule(tiny_teacher_folder):
    reference = resolve(str(tiny_teacher_folder))
    teacher = reference.load(Quiet())
    assert reference.spec == teacher.spec and reference.preset_name == "tiny" and reference.available
    assert isinstance(teacher, Teacher) and teacher.conditioner == ClassLabels(classes=10)
    assert teacher.denoiser.description == teacher.spec.network
    assert teacher.schedule.model_dump() == teacher.spec.network["arguments"]["schedule"]


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"num_classes": 10}, DistillkitError, "num_classes"),
        ({"shape": []}, DistillkitError, "shape"),
        ({"network": {"kind": "other-package:Net", "arguments": {}}}, UsageError, "pip install other-package"),
        ({"network": {"class": "DhariwalUNet"}}, UsageError, "package:Name"),
        ({"conditioner": {"kind": "other-package:Prompts"}}, UsageError, "pip install other-package"),
        ({"codec": {"kind": "distillkit:Pixels", "vae": 1}}, DistillkitError, "vae"),
        ({"weights_sha256": "0" * 64}, DistillkitError, "sha256"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(spoiled, changes, error, named):
    folder = spoiled(**changes)
    with pytest.raises(error, match=named) as failed:
        load_teacher(folder)
    assert failed.value.exit_code == error.exit_code


def test_folders_without_a_teacher_are_named(tmp_path, tiny_teacher_folder):
    with pytest.raises(UsageError, match=r"teacher\.json"):
        load_teacher(str(tmp_path))
    (tmp_path / "teacher.json").write_bytes((tiny_teacher_folder / "teacher.json").read_bytes())
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        load_teacher(str(tmp_path))


def test_a_repository_that_is_not_cached_is_not_available(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    reference = resolve("hf:org/no-such-model@main")
    assert (reference.available, reference.spec, reference.download_bytes) == (False, None, None)
    assert reference.preset_name == "no-such-model"
    with pytest.raises(DistillkitError, match="hf:org/no-such-model@main"):
        reference.skeleton(Quiet())


def test_spec_is_plain_data():
    for card in cards().values():
        assert TeacherSpec.model_validate(json.loads(card.spec.model_dump_json())) == card.spec
