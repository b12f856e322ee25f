"""The world of shapes: what its sentences say, what its drawings show, and that the classifier reads them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillkit.embedded.shapes import classifier, world
from distillkit.embedded.shapes.world import Scene, Thing, codes, draw, draw_all, parse, sentence

THINGS = st.builds(Thing, *map(st.sampled_from, (world.SIZES, world.COLOURS, world.SHAPES)))
GROUNDS = st.sampled_from(world.BACKGROUNDS)
ONE = st.builds(Scene, THINGS, GROUNDS)
TWO = st.builds(Scene, THINGS, GROUNDS, st.sampled_from(world.RELATIONS), THINGS)
TURNED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RED, BLUE = Thing("small", "red", "circle"), Thing("large", "blue", "square")


@given(ONE | TWO)
def test_sentences_are_read_back(scene):
    words = sentence(scene)
    assert parse(words) == scene
    assert parse(f"  {words.upper()} ".replace(" ", "  ")) == scene
    assert set(words.split()) <= set(world.WORDS)


def test_a_sentence_is_what_it_is_expected_to_be():
    scene = Scene(RED, "white", "above", BLUE)
    assert sentence(scene) == "a small red circle above a large blue square on white"
    assert sentence(Scene(BLUE, "grey")) == "a large blue square on grey"


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("", "at its end", "begins with"),
        ("a tiny red circle on white", "'tiny'", "small, large"),
        ("a small pink circle on white", "'pink'", "red, green"),
        ("a small red star on white", "'star'", "circle, square, triangle"),
        ("a small red circle left a large blue square on white", "'left'", "left of, above"),
        ("a small red circle above white", "'white'", "begins with"),
        ("a small red circle above a large blue square", "at its end", "background"),
        ("a small red circle on pink", "'pink'", "white, black, grey"),
        ("a small red circle on white and more", "'and'", "nothing may follow"),
    ],
)
def test_what_is_not_understood_is_named(text, found, expected):
    with pytest.raises(ValueError, match="is not understood") as error:
        parse(text)
    assert found in str(error.value) and expected in str(error.value)


def test_scenes_that_the_world_has_not_are_refused():
    with pytest.raises(ValueError, match=r"'pink' is no colour; the world has red"):
        Thing("small", "pink", "circle")
    with pytest.raises(ValueError, match="a relation and a second thing, or neither"):
        Scene(RED, "white", "above")
    with pytest.raises(ValueError, match="'behind' is no relation"):
        Scene(RED, "white", "behind", BLUE)


def test_all_scenes_are_different_and_those_that_ship_are_among_them():
    scenes = list(world.all_scenes())
    assert len(scenes) == len(set(scenes)) == 108 + 15_552
    prompts = world.shipped_prompts()
    assert prompts == [sentence(scene) for scene in world.distinct_scenes(2000, 0)]
    assert len(set(prompts)) == 2000 and {parse(text) for text in prompts} <= set(scenes)
    assert len(set(world.distinct_scenes(len(scenes), 1))) == len(scenes)
    with pytest.raises(ValueError, match="15,660"):
        world.distinct_scenes(15_661, 0)


@given(TWO)
def test_turned_round_the_picture_is_the_same(scene):
    turned = Scene(scene.second, scene.background, TURNED[scene.relation], scene.first)
    assert torch.equal(codes([scene]), codes([turned]))
    assert torch.equal(draw(scene, 3), draw(turned, 3))


@settings(max_examples=50)
@given(ONE | TWO, st.integers(0, 2**32))
def test_a_drawing_depends_on_scene_and_seed_alone(scene, seed):
    picture = draw(scene, seed)
    assert picture.shape == (3, 32, 32) and picture.dtype == torch.uint8
    assert torch.equal(picture, draw(scene, seed))
    assert not torch.equal(picture, draw(scene, seed + 1))


@settings(max_examples=100)
@given(TWO, st.integers(0, 1000))
def test_drawings_show_two_things_apart_in_their_places(scene, seed):
    """Measured in pixels: how much of each is covered by a thing's paint, on its side of the gap."""
    picture = draw(scene, seed).double()
    ground = torch.tensor(world.GROUND_RGB[world.BACKGROUNDS.index(scene.background)]).double()[:, None, None]
    strength = (picture - ground).abs().sum(0)
    painted = strength > 0.3 * strength.max()  # the tip of a triangle covers up to 0.28 of the pixel before it
    assert not painted[[0, -1]].any() and not painted[:, [0, -1]].any(), "touches the border"
    across = 0 if scene.relation in ("left of", "right of") else 1
    order = (scene.first, scene.second) if scene.relation in ("left of", "above") else (scene.second, scene.first)
    begin = painted.any(across).nonzero()[0].item()
    low, high = world.WIDTHS[world.SIZES.index(order[0].size)]
    ends = range(begin + round(low) - 1, begin + round(high) + 3)
    gap = min(ends, key=lambda line: strength.select(1 - across, line).sum().item())
    for thing, side in zip(order, (slice(0, gap), slice(gap + 1, None)), strict=True):
        paint = torch.tensor(world.RGB[world.COLOURS.index(thing.colour)]).double()[:, None, None]
        cover = ((picture - ground) * (paint - ground)).sum(0) / (paint - ground).square().sum()
        cover = cover[:, side] if across == 0 else cover[side]
        width = cover.amax(0).sum().item()
        low, high = world.WIDTHS[world.SIZES.index(thing.size)]
        assert low - 1.5 < width < high + 1.5, (thing, width)
        filled = cover.sum().item() / ((low + high) / 2) ** 2
        assert {"circle": 0.66 < filled < 0.92, "square": filled > 0.85, "triangle": filled < 0.65}[thing.shape], filled


def test_the_classifier_reads_drawings_wholly_right():
    scenes = world.distinct_scenes(1000, 5)
    network, scale = classifier.shapes_cnn()
    pictures = draw_all(codes(scenes), torch.Generator().manual_seed(99)).float() / 127.5 - 1
    with torch.inference_mode():
        features = network.features(pictures)
        shares = classifier.agreement(network.head(features), scenes)
    assert shares["whole"].mean() >= 0.998
    assert features.shape == (1000, 128)
    assert torch.cov(features.double().T).trace().sqrt() == pytest.approx(scale, rel=0.05)


def logits_of(described):
    """Of a classifier that is certain of these codes."""
    parts = [
        torch.nn.functional.one_hot(c.clamp(min=0), n) for c, n in zip(described.T, classifier.VALUES, strict=True)
    ]
    return torch.cat(parts, 1).float()


@given(ONE | TWO)
def test_a_picture_as_the_sentence_says_agrees_wholly(scene):
    shares = classifier.agreement(logits_of(codes([scene])), [scene])
    assert shares["all"] == shares["whole"] == shares["count"] == shares["colour"] == 1
    assert bool(shares["relation"].isnan()) == (scene.second is None)


@pytest.mark.parametrize(
    ("seen", "share", "wrong"),
    [
        (Scene(Thing("small", "red", "square"), "white", "above", BLUE), 8 / 9, {"shape": 0.5}),
        (Scene(Thing("large", "red", "circle"), "white", "above", BLUE), 8 / 9, {"size": 0.5}),
        (Scene(Thing("small", "cyan", "circle"), "white", "above", BLUE), 8 / 9, {"colour": 0.5}),
        (Scene(RED, "black", "above", BLUE), 8 / 9, {"background": 0.0}),
        (Scene(RED, "white", "left of", BLUE), 8 / 9, {"relation": 0.0}),
        (Scene(RED, "white"), 4 / 9, {"count": 0.0, "size": 0.5, "colour": 0.5, "shape": 0.5, "relation": 0.0}),
        (Scene(RED, "white", "below", BLUE), 3 / 9, {"size": 0.0, "colour": 0.0, "shape": 0.0}),
    ],
)
def test_agreement_counts_what_is_as_asked(seen, share, wrong):
    asked = Scene(RED, "white", "above", BLUE)
    shares = classifier.agreement(logits_of(codes([seen])), [asked])
    assert shares["all"].item() == pytest.approx(share) and shares["whole"] == 0
    assert {k: v.item() for k, v in shares.items() if k not in ("all", "whole") and v != 1} == wrong


def test_a_second_thing_that_is_not_there_has_nothing_as_asked():
    """Whatever the classifier's other heads say where it counts one thing: here, what is asked."""
    asked = [Scene(RED, "white", "left of", RED)]
    shares = classifier.agreement(logits_of(codes([Scene(RED, "white")])), asked)
    assert shares["all"].item() == pytest.approx(4 / 9) and shares["relation"] == 0 and shares["colour"] == 0.5


def test_agreement_is_for_each_sentence():
    asked = [Scene(RED, "white"), Scene(RED, "black")]
    shares = classifier.agreement(logits_of(codes([asked[0], asked[0]])), asked)
    assert shares["all"].tolist() == [1.0, 0.8]
    with pytest.raises(ValueError, match="2 pictures cannot be compared with 1 sentences"):
        classifier.agreement(logits_of(codes(asked)), asked[:1])
