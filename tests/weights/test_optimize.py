"""`Pretrained.optimize`: the same object with a fast network inside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dinokit.images import ImageTransform
from dinokit.model import LinearHead
from dinokit.weights.files import write_safetensors
from dinokit.weights.load import Pretrained, load
from dinokit.weights.repaired import repair
from tests.model.test_vit import make
from tests.tolerances import FAST, max_error


@pytest.fixture
def pre(tiny, tmp_path) -> Pretrained:
    """A tiny network from a file, with a classifier."""
    write_safetensors(tmp_path / "tiny.safetensors", make(tiny).state_dict())
    found = load(tmp_path / "tiny.safetensors", num_heads=2)
    return replace(found, transform=ImageTransform.squash(70), head=LinearHead(tiny.embed_dim, 5).eval())


@pytest.fixture
def rng_image() -> np.ndarray:
    """A picture of noise."""
    return np.random.default_rng(0).integers(0, 256, (90, 110, 3), np.uint8)


def test_tokens_and_classes_stay(pre, rng_image):
    """Everything that a `Pretrained` gives, it gives again, and says how it is run."""
    fast = pre.optimize()
    assert pre.plan is None
    assert fast.plan is not None
    assert fast.plan.because
    assert (fast.transform, fast.provenance) == (pre.transform, pre.provenance)
    assert max_error(fast(rng_image).sequence, pre(rng_image).sequence) <= FAST
    assert max_error(fast.logits([rng_image]), pre.logits([rng_image])) <= FAST


def test_a_reduced_dtype_is_a_wish(pre, rng_image):
    """Where the machine would be slower with it, float32 comes out; the classifier follows."""
    fast = pre.optimize(dtype=torch.bfloat16)
    tokens = fast(rng_image)
    assert tokens.sequence.dtype == fast.plan.dtype == fast.dtype
    assert fast.logits([rng_image]).dtype == fast.plan.dtype


def test_a_repaired_model_is_optimized_as_such(pre, rng_image):
    """Repair first, then optimize."""
    repaired = repair(pre, "mask_keys")
    fast = repaired.optimize()
    assert fast.provenance.form == repaired.provenance.form
    assert max_error(fast(rng_image).sequence, repaired(rng_image).sequence) <= FAST


def test_a_fast_model_does_not_move(pre):
    """Its weights are packed for one place."""
    with pytest.raises(ValueError, match="moved or cast"):
        pre.optimize().to("cpu")
