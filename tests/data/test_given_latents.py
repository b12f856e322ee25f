"""Latents and text embeddings that the data bring: the teacher's, scaled once, and as the autoencoder means them."""

import fsspec
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from distillkit import ClassLabels, DistillkitError, Prompts, SampleRNG, SourceJob, UsageError, load_teacher
from distillkit.data.config import DataConfig
from distillkit.data.files import open_images
from distillkit.data.given_latents import LatentReader, read_format
from distillkit.data.images import ImageSource
from tests.data.streams import in_memory, npy, pictured, tensors
from tests.data.teachers import LENGTH, WIDTH, HalfSize, Letters, linear_teacher
from tests.models import pipelines

CPU = torch.device("cpu")
SHAPE = (6, 4, 4)
SHIFT, SCALING = 0.5, 0.25


class Shifted(HalfSize):
    """Latents (z - 0.5) * 0.25 of codes z."""

    def scaled(self, mean: Tensor, deviation: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return (mean - SHIFT) * SCALING, None if deviation is None else deviation * SCALING


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLKIT_CACHE", str(tmp_path / "cache"))
    yield
    fsspec.filesystem("memory").store.clear()


def latent(k, shape=SHAPE, scale=4.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(k)) * scale


def source(path, conditioner=None, **config):
    teacher = linear_teacher(SHAPE, conditioner or ClassLabels(classes=10), Shifted())
    made = ImageSource(teacher, DataConfig(path=path, workers=0, **config))
    made.batch = 4
    return made


def served(path, count=8, **options):
    """All samples of an epoch, by their class, and the line that says what they are."""
    stream = source(path, **options).open(SourceJob(CPU))
    batches = [stream.batch(SampleRNG(0), step, range(4)) for step in range(count // 4)]
    found = {}
    for batch in batches:
        found |= dict(zip(batch.condition["labels"].tolist(), batch.sample, strict=True))
    return found, stream.summary


def labelled(samples):
    return [{**sample, "cls": str(k).encode()} for k, sample in enumerate(samples)]


WAYS = {
    "npy": lambda z: {"npy": npy(z)},
    "named npy beside other arrays": lambda z: {"latent.npy": npy(z), "other.npy": npy(torch.zeros(3))},
    "half": lambda z: {"latent.npy": npy(z.half())},
    "a batch of one": lambda z: {"npy": npy(z[None])},
    "safetensors in bf16": lambda z: {"safetensors": tensors(latents=z.bfloat16(), text=torch.zeros(2))},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scaled", ["yes", "no"])
def test_latents_are_scaled_once(way, scaled):
    path = in_memory("a", [3, 5], labelled([WAYS[way](latent(k)) for k in range(8)]))
    found, said = served(path, latents_scaled=scaled)
    assert sorted(found) == list(range(8))
    for k, sample in found.items():
        expected = latent(k) if scaled == "yes" else (latent(k) - SHIFT) * SCALING
        torch.testing.assert_close(sample, expected, rtol=1e-2, atol=5e-2)
    assert "6 x 4 x 4" in said and ("not scaled" in said) == (scaled == "no")
    dtype = {"half": "float16", "safetensors in bf16": "bfloat16"}.get(way, "float32")
    assert dtype in said


def test_means_and_log_variances_are_drawn_from():
    """As an encoder gives them: twice the channels. Every draw is another, about the mean, as wide as they say."""
    mean, variance = latent(0), torch.full(SHAPE, 2.0)
    path = in_memory("a", [4], labelled([{"moments.npy": npy(torch.cat([mean, variance]))} for _ in range(4)]))
    stream = source(path).open(SourceJob(CPU))
    drawn = torch.cat([stream.batch(SampleRNG(0), step, range(4)).sample for step in range(50)])
    noise = (drawn / SCALING + SHIFT - mean) / variance.div(2).exp()
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert "log-variances" in stream.summary
    again = source(path).open(SourceJob(CPU)).batch(SampleRNG(0), 0, range(4)).sample
    assert torch.equal(again, drawn[:4])
    with pytest.raises(UsageError, match="log-variances are not scaled"):
        source(path, latents_scaled="yes").check()


def test_whether_they_are_scaled_is_recorded_or_asked_for():
    recorded = [{"safetensors": tensors({"scaled": "true"}, latent=latent(k, scale=1.0))} for k in range(8)]
    path = in_memory("a", [8], labelled(recorded))
    found, said = served(path)
    assert torch.equal(found[3], latent(3, scale=1.0)) and "as the data record" in said
    with pytest.raises(UsageError, match="records that its latents are scaled"):
        source(path, latents_scaled="no").check()
    plain = in_memory("b", [8], labelled([{"npy": npy(latent(k))} for k in range(8)]))
    with pytest.raises(UsageError, match=r"--data-latents-scaled yes .* standard deviation [34]\.\d\d"):
        source(plain).check()


def test_parquet_columns_of_lists(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "latent": [latent(k).tolist() for k in range(8)],
        "label": list(range(8)),
        "bytes": [npy(latent(k)) for k in range(8)],
    }
    table = pa.table(columns).replace_schema_metadata({"scaled": "true"})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    for name in ("latent", "bytes"):
        found, said = served(str(tmp_path / "x.parquet"), latent_column=name)
        torch.testing.assert_close(found[5], latent(5))
        assert "as the data record" in said


def test_a_doubtful_scale_is_said():
    path = in_memory("a", [8], labelled([{"npy": npy(latent(k, scale=1.0))} for k in range(8)]))
    assert "should it be --data-latents-scaled yes?" in served(path, latents_scaled="no")[1]


@pytest.mark.parametrize(
    ("samples", "config", "said"),
    [
        ([{"npy": npy(torch.zeros(4, 8, 8))}], {}, r"are \(4, 8, 8\) and those of the teacher linear are \(6, 4, 4\)"),
        ([{"a.npy": npy(latent(0)), "b.npy": npy(latent(1))}], {}, "which array is the latent"),
        ([{"a.npy": npy(latent(0))}], {"latent_column": "b"}, "no such array"),
        ([{"npy": npy(latent(0))}], {"flip": True}, "--data-flip is for images, before the autoencoder"),
        ([{"npy": npy(latent(0))}], {"resolution": 8}, "--data-resolution is for images"),
        ([{"pt": b"PK"}], {}, "a pickle"),
    ],
)
def test_latents_of_something_else_are_refused(samples, config, said):
    path = in_memory("a", [1], labelled(samples))
    with pytest.raises(UsageError, match=said):
        source(path, **{"latents_scaled": "yes", **config}).check()


@pytest.mark.parametrize("bad", [torch.full(SHAPE, float("nan")), torch.zeros(6, 4, 2), torch.zeros(SHAPE).int()])
def test_a_bad_latent_among_others_is_named(bad):
    samples = labelled([{"npy": npy(latent(k))} for k in range(40)] + [{"npy": npy(bad)}])
    stream = source(in_memory("a", [41], [{**s, "cls": b"1"} for s in samples]), latents_scaled="yes").open(
        SourceJob(CPU)
    )
    with pytest.raises(DistillkitError, match=r"memory://a/00.tar, sample 40"):
        for step in range(11):
            stream.batch(SampleRNG(0), step, range(4))


def test_latents_for_a_teacher_of_pixels_are_refused():
    path = in_memory("a", [1], labelled([{"npy": npy(latent(0))}]))
    with pytest.raises(UsageError, match="without an autoencoder"):
        ImageSource(linear_teacher(SHAPE), DataConfig(path=path)).check()


def with_text(encoder, texts):
    made = []
    for k, text in enumerate(texts):
        fields = encoder.encode([text])
        arrays = {name: fields[name][0] for name in ("text", "mask", "pooled")}
        made.append({"latent.npy": npy(latent(k)), "emb.safetensors": tensors(**arrays)})
    return made


TEXTS = [f"text {k}" for k in range(8)]
GIVEN = {"latents_scaled": "yes", "embedding_columns": "text,mask,pooled"}


def test_embeddings_of_the_data_take_the_place_of_captions():
    encoder = Letters()
    path = in_memory("a", [8], with_text(encoder, TEXTS))
    stream = source(path, Prompts(encoder=encoder), **GIVEN).open(SourceJob(CPU))
    assert f"text {LENGTH} x {WIDTH}" in stream.summary and "of the empty prompt" in stream.summary
    seen = []
    for step in range(2):
        batch = stream.batch(SampleRNG(0), step, range(4))
        numbers = [next(k for k in range(8) if torch.equal(latent(k), row)) for row in batch.sample]
        expected = encoder.encode([TEXTS[k] for k in numbers])
        for name in ("text", "mask", "pooled"):
            torch.testing.assert_close(batch.condition[name], expected[name])
        assert set(batch.condition) == set(expected) and torch.equal(batch.condition["sizes"], expected["sizes"])
        seen += numbers
    assert sorted(seen) == list(range(8))


def test_embeddings_beside_images():
    encoder = Letters()
    samples = [{**pictured(1, k)[0], "text.npy": npy(encoder.encode([t])["text"][0])} for k, t in enumerate(TEXTS)]
    samples = [{**s, "mask.npy": npy(encoder.encode([t])["mask"][0])} for s, t in zip(samples, TEXTS, strict=True)]
    teacher = linear_teacher((3, 8, 8), Prompts(encoder=encoder))
    made = ImageSource(teacher, DataConfig(path=in_memory("a", [8], samples), workers=0, embedding_columns="text,mask"))
    made.batch = 4
    batch = made.open(SourceJob(CPU)).batch(SampleRNG(0), 0, range(4))
    numbers = ((batch.sample[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    torch.testing.assert_close(batch.condition["text"], encoder.encode([TEXTS[k] for k in numbers])["text"])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("text,mask,pooled,nothing", "the encoder of linear gives text"),
        ("pooled", "text of linear's encoder is missing"),
        ("text=emb,mask,pooled", "no array emb"),
        ("text=pooled,mask,pooled", r"is \(12,\) and the encoder's text is \(8, 12\) \(tokens, width\)"),
    ],
)
def test_embeddings_of_another_encoder_are_refused(columns, said):
    path = in_memory("a", [8], with_text(Letters(), TEXTS))
    with pytest.raises(UsageError, match=said):
        source(path, Prompts(encoder=Letters()), **{**GIVEN, "embedding_columns": columns}).check()


def test_embeddings_for_classes_or_without_a_stream_are_refused(tmp_path):
    path = in_memory("a", [8], labelled(with_text(Letters(), TEXTS)))
    with pytest.raises(UsageError, match="takes no text"):
        source(path, **GIVEN).check()
    (tmp_path / "0.png").write_bytes(pictured(1)[0]["png"])
    made = ImageSource(linear_teacher(), DataConfig(path=str(tmp_path), embedding_columns="text"))
    with pytest.raises(UsageError, match="for streams of tar or parquet"):
        made.check()


def test_what_diffusers_autoencoder_gives_is_shifted_and_scaled_as_its_codec_does(tmp_path):
    """SD3's autoencoder in small, with a shift: its moments as people store them are what the teacher sees."""
    folder = pipelines.sd3(tmp_path / "sd3", third=False)
    teacher = load_teacher(str(folder))
    channels, side = teacher.spec.shape[0], teacher.codec.decoded_shape(teacher.spec.shape)[1]
    pixels = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        code = vae.encode(pixels.float() / 127.5 - 1).latent_dist
    shift, scaling = vae.config.shift_factor, vae.config.scaling_factor
    assert shift and scaling != 1
    mean, deviation = (code.mean - shift) * scaling, code.std * scaling
    torch.testing.assert_close(teacher.codec.distribution(pixels), (mean, deviation), rtol=1e-4, atol=1e-5)
    samples = [{"moments.npy": npy(moments), "txt": b"a"} for moments in code.parameters]
    files = open_images(in_memory("a", [4], samples))
    read = LatentReader(files, read_format(files, DataConfig(path="x"), teacher), teacher.codec)
    for k in range(4):
        found_mean, found_deviation = read(k)
        torch.testing.assert_close(found_mean, mean[k], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found_deviation, deviation[k], rtol=1e-4, atol=1e-5)
    plain = open_images(in_memory("b", [4], [{"npy": npy(value)} for value in code.mean]))
    config = DataConfig(path="x", latents_scaled="no")
    assert channels == 4
    found = LatentReader(plain, read_format(plain, config, teacher), teacher.codec)(2)
    torch.testing.assert_close(found[0], mean[2], rtol=1e-4, atol=1e-5)
    assert found[1] is None
    wrong = open_images(in_memory("c", [1], [{"npy": npy(torch.zeros(4, side, side))}]))
    with pytest.raises(UsageError, match="another autoencoder or another size"):
        read_format(wrong, config, teacher)
