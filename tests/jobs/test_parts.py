"""The losses of an autoencoder and of a text encoder, and the settings of a training of all parts."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch.distributions import Normal, kl_divergence

from distillkit import Condition, Images, SampleRNG, UsageError
from distillkit.contracts.step import Draws
from distillkit.jobs.autoencoder import Autoencoder, AutoencoderConfig, spread
from distillkit.jobs.contrastive import Contrastive
from distillkit.jobs.teacher_config import ALL, asked_part, resolve_parts, resolve_teacher
from distillkit.models.store.prompts import own_prompts, write_prompts
from tests.models import pipelines


class Served:
    """One batch, whatever is asked for."""

    def __init__(self, sample, **fields):
        self.images = Images(sample, Condition(**fields))

    def batch(self, rng, step, indices):
        return self.images


def draws(sample, **fields):
    return Draws(index=3, indices=range(len(sample)), rng=SampleRNG(1), device=torch.device("cpu"),
                 sources={Images: Served(sample, **fields)})  # fmt: skip


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_loss_of_an_autoencoder_is_its_papers(distance):
    torch.manual_seed(0)
    model: AutoencoderKL = pipelines.vae()
    config = AutoencoderConfig(reconstruction=distance, edges_weight=0.3, kl_weight=0.2)
    x, step = torch.rand(3, 3, 16, 16) * 2 - 1, None
    step = draws(x)
    loss = Autoencoder(model, config).loss(step)
    code = model.encode(x).latent_dist
    z = code.mean + code.std * SampleRNG(1).normal("code", 3, range(3), code.mean.shape[1:])
    compare = F.l1_loss if distance == "l1" else F.mse_loss
    y = model.decode(z).sample
    edges = sum(compare(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
    kl = kl_divergence(Normal(code.mean, code.std), Normal(0.0, 1.0)).sum() / x.numel()
    torch.testing.assert_close(loss, compare(y, x) + 0.3 * edges + 0.2 * kl)
    torch.testing.assert_close(step.logged["kl"], kl.detach())


def test_the_scale_of_latents_is_that_of_codes_as_they_are_drawn():
    torch.manual_seed(0)
    learner = Autoencoder(pipelines.vae(), AutoencoderConfig())
    x = torch.rand(50, 3, 16, 16) * 2 - 1
    mean, std = spread(learner, x)
    code = learner.model.encode(x).latent_dist
    drawn = torch.stack([code.sample() for _ in range(8)])
    assert mean == pytest.approx(drawn.mean().item(), abs=0.01) and std == pytest.approx(drawn.std().item(), rel=0.01)
    assert std > 1.05 * code.mean.std().item(), "the spread of the codes' noise counts too"


class Fixed(torch.nn.Module):
    """Gives each row's own vector."""

    def __init__(self, vectors):
        super().__init__()
        self.vectors = vectors
        self.config = type("Config", (), {"hidden_size": vectors.shape[1]})

    def forward(self, rows):
        return type("Output", (), {"pooler_output": self.vectors[rows.flatten(1)[:, 0].long()]})


def test_the_contrastive_loss_is_a_symmetric_cross_entropy_without_twins_as_negatives():
    torch.manual_seed(0)
    texts, pictures = torch.randn(4, 6), torch.randn(4, 6)
    learner = Contrastive(Fixed(texts), Fixed(pictures), 5)
    rows = torch.arange(4.0)

    def loss(tokens):
        return learner.loss(draws(rows[:, None, None, None], tokens=tokens))

    a = F.normalize(pictures @ learner.picture_projection.weight.T, dim=1)
    b = F.normalize(texts @ learner.text_projection.weight.T, dim=1)
    logits, right = a @ b.T / 0.07, torch.arange(4)
    found = loss(torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]]))
    torch.testing.assert_close(found, (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2)
    # Pictures 0 and 1 have one text: neither is the other's negative.
    twins = loss(torch.tensor([[0, 0], [0, 0], [2, 0], [3, 0]]))
    logits = a @ b[torch.tensor([0, 0, 2, 3])].T / 0.07
    logits[0, 1] = logits[1, 0] = -math.inf
    torch.testing.assert_close(twins, (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2)
    with torch.no_grad():
        learner.log_scale.fill_(20.0)
    step = draws(rows[:, None, None, None], tokens=torch.arange(4)[:, None])
    learner.loss(step)
    assert step.logged["temperature"].item() == pytest.approx(0.01)


def test_a_teacher_with_data_for_all_parts_is_trained_whole_and_shares_the_duration():
    assert asked_part({"name": "shapes"}) == ALL and asked_part({"name": "digits"}) == "network"
    assert asked_part({"name": "shapes", "like": "runs/a/pipeline"}) == "network"
    whole = resolve_parts({"name": "shapes"}).parts
    assert list(whole) == ["autoencoder", "text-encoder", "network"]
    assert whole["autoencoder"].autoencoder.kl_weight == 0.012 and whole["network"].training.warmup == 224_000
    short = resolve_parts({"name": "shapes", "training": {"duration": "100k", "batch": 16}}).parts
    lengths = {part: config.training.duration for part, config in short.items()}
    assert sum(lengths.values()) == pytest.approx(100_000, abs=2)
    for part, config in whole.items():
        share = config.training.duration / sum(other.training.duration for other in whole.values())
        assert lengths[part] == pytest.approx(100_000 * share, abs=1) and short[part].training.batch == 16
    with pytest.raises(UsageError, match="duration"):
        resolve_parts({"name": "shapes", "training": {"duration": "long"}})
    assert resolve_teacher({"name": "shapes", "part": "autoencoder"}).training.batch == 256


def test_a_pipeline_brings_its_prompts_where_they_are_few_and_lines(tmp_path):
    write_prompts(tmp_path, ["a cat", "ein Bär"])
    assert list(own_prompts(tmp_path).texts) == ["a cat", "ein Bär"]
    for others in (["two\nlines"], [""], [" blank"], ["x" * 2**20]):
        write_prompts(tmp_path, ["a cat"])
        write_prompts(tmp_path, others)
        assert own_prompts(tmp_path) is None, others
