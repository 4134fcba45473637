"""Isolation: the bits of an image's vector depend on the image alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from dinokit.extract import Forward, How, embed_batch, features_of
from dinokit.extract.forward import MOST_LANES, lanes_for
from dinokit.extract.prepare import Facts, Ready
from dinokit.extract.run import pinned_threads
from dinokit.extract.where import Blob
from dinokit.images import ExactPreparation, FastTransform
from dinokit.weights.load import Pretrained
from tests.extract.conftest import an_image

SLOTS = 8
ROUNDS = 1000
CLOSE = 2e-6


@pytest.fixture(scope="module", params=["eager", "fast"])
def some_pre(request: pytest.FixtureRequest, pre: Pretrained) -> Pretrained:
    return pre if request.param == "eager" else pre.optimize()


def ready_of(pre: Pretrained, data: bytes) -> Ready:
    return How(preparation=ExactPreparation(pre.transform))(Blob("x", data))


@pytest.mark.parametrize("lanes", [1, 2])
def test_good_vectors_are_bit_equal_to_single_runs(some_pre: Pretrained, lanes: int) -> None:
    """1,000 random batches: any neighbours, bad or good, in any place, a batch that is not full, in one lane or two."""
    features = features_of(some_pre, ["cls", "mean"])
    with pinned_threads(1, some_pre):
        forward = Forward(some_pre, ExactPreparation(some_pre.transform), features, SLOTS, lanes=lanes)
        images = [ready_of(some_pre, an_image(seed)) for seed in range(24)]
        alone = [forward([image], ["x"])[0] for image in images]
        bad = Ready(Facts(error_code="truncated", error="cut"))
        chance = random.Random(0)
        for _ in range(ROUNDS):
            chosen = [chance.choice([None, chance.randrange(24)]) for _ in range(chance.randrange(1, SLOTS + 1))]
            answers = forward([bad if number is None else images[number] for number in chosen], ["x"] * len(chosen))
            for number, answer in zip(chosen, answers, strict=True):
                assert answer is not None
                assert answer.ok == (number is not None)
                if number is not None:
                    single = alone[number]
                    assert single is not None
                    assert answer.norms == single.norms
                    assert all(np.array_equal(answer.vectors[name], single.vectors[name]) for name in single.vectors)


def test_lanes_do_as_one(pre: Pretrained) -> None:
    """Vectors, lengths and dense features of a batch in four lanes are those of one, within rounding; threads are as before."""
    images = [ready_of(pre, an_image(seed)) for seed in range(SLOTS)]
    before = torch.get_num_threads()
    found = []
    with pinned_threads(4, pre):
        for lanes in (1, 4):
            forward = Forward(
                pre, ExactPreparation(pre.transform), features_of(pre), SLOTS, ("patches",), "float32", lanes
            )
            found.append(forward(images, ["x"] * SLOTS))
    assert torch.get_num_threads() == before
    for one, four in zip(*found, strict=True):
        assert one is not None
        assert four is not None
        assert four.facts == one.facts
        assert four.norms == pytest.approx(one.norms, rel=1e-5)
        np.testing.assert_allclose(four.vectors["embedding"], one.vectors["embedding"], atol=CLOSE)
        np.testing.assert_allclose(four.dense["patches"], one.dense["patches"], atol=2e-5)


def test_lanes_are_for_few_threads_that_divide_the_batch(pre: Pretrained) -> None:
    assert lanes_for(pre, 2, 32) == 2
    assert lanes_for(pre, 2, 1) == 1
    assert lanes_for(pre, 3, 32) == 1
    assert lanes_for(pre, 1, 32) == 1
    assert lanes_for(pre, 2 * MOST_LANES, 32) == 1
    fast = pre.optimize()
    assert lanes_for(fast, 2, 32) == 2
    fast.model.plan = replace(fast.model.plan, compiled=True)  # type: ignore[assignment, type-var]
    assert lanes_for(fast, 2, 32) == 1


def test_images_of_any_sizes_share_a_batch_in_their_places(pre: Pretrained) -> None:
    """Without a crop each size runs by itself, filled up in the same way."""
    free = replace(pre, transform=replace(pre.transform, crop=None, resize=None))
    forward = Forward(free, ExactPreparation(free.transform), features_of(free), 4)
    images = [ready_of(free, an_image(1, *size)) for size in [(56, 70), (70, 56), (56, 70), (84, 56)]]
    together = forward(images, ["x"] * 4)
    for image, answer in zip(images, together, strict=True):
        single = forward([image], ["x"])[0]
        assert answer is not None
        assert single is not None
        assert np.array_equal(answer.vectors["embedding"], single.vectors["embedding"])


def test_columns_are_the_poolings_and_blocks_asked_for(pre: Pretrained) -> None:
    """One pass for all; each is what the model gives, normalised, and its length is kept."""
    features = features_of(pre, ["cls", "mean", "cls+mean"], [0, None, -1])
    names = [
        "embedding",
        "embedding_mean_block0",
        "embedding_cls_mean_block0",
        "embedding_cls",
        "embedding_mean",
        "embedding_cls_mean",
    ]
    assert [feature.column for feature in features] == names  # block -1 is the output, so it adds nothing
    data = an_image(3)
    answer = Forward(pre, ExactPreparation(pre.transform), features, 2)([ready_of(pre, data)], ["x"])[0]
    assert answer is not None
    with torch.no_grad():
        stream = list(pre.model.stream(pre.pixels(data)))
        for feature in features:
            x = pre.model.norm(stream[-1 if feature.block is None else feature.block + 1])
            expected = pre.model.tokens(x, (56, 56)).pool(feature.pooling)[0].numpy()
            found = answer.vectors[feature.column] * answer.norms[feature.column]
            assert np.abs(found - expected).max() <= CLOSE * np.abs(expected).max() * 10
            assert np.linalg.norm(answer.vectors[feature.column]) == pytest.approx(1, abs=1e-6)


def test_vectors_that_are_not_finite_are_errors(pre: Pretrained) -> None:
    """NaN from the network is a row that says so; its neighbours keep theirs."""

    class Poisoned(type(pre.model)):  # type: ignore[misc]
        def forward(self, images: torch.Tensor, *args: object) -> object:
            tokens = super().forward(images, *args)
            tokens.sequence[1] = float("nan")
            return tokens

    import copy

    model = copy.deepcopy(pre.model)
    model.__class__ = Poisoned
    forward = Forward(replace(pre, model=model), ExactPreparation(pre.transform), features_of(pre), 3)
    images = [ready_of(pre, an_image(seed)) for seed in range(3)]
    answers = forward(images, ["a", "b", "c"])
    assert [answer.facts.error_code for answer in answers if answer] == [None, "nonfinite_embedding", None]
    assert [answer.ok for answer in answers if answer] == [True, False, True]


def test_embed_batch_gives_a_row_an_image(pre: Pretrained, model_folder: object) -> None:
    """In order, NaN for what can't be used, a model by name too; the same bits whatever else is there."""
    images = [an_image(0), b"no image", an_image(1), None, *(an_image(seed) for seed in range(2, 9))]
    found = embed_batch(images, pre, exact=True)
    assert found.shape == (11, 64)
    assert np.isnan(found).all(1).tolist() == [image in (b"no image", None) for image in images]
    assert np.array_equal(embed_batch([images[0]], str(model_folder), exact=True)[0], found[0])
    assert np.array_equal(embed_batch(images[::-1], pre, exact=True)[-1], found[0])
    raw = embed_batch([images[0]], pre, exact=True, normalize=False)
    assert np.abs(raw[0] - pre(images[0]).cls[0].numpy()).max() <= CLOSE
    assert embed_batch([], pre).shape == (0, 64)
    assert np.isfinite(embed_batch([images[0]], pre)).all()


def test_the_fast_preparation_says_that_it_is_another(pre: Pretrained) -> None:
    """Vectors of the two ways have different identities."""
    assert FastTransform(pre.transform).fingerprint != ExactPreparation(pre.transform).fingerprint
