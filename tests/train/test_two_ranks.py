"""Two processes: recorded targets and centres, and that they train as one does."""

from __future__ import annotations

import copy

import pytest
import torch

from dinokit.train.losses import koleo
from dinokit.train.optim import GroupRule, adamw, parameter_groups
from dinokit.train.state import TrainState
from dinokit.train.targets import sinkhorn
from tests.train.golden import DTYPES, Recorded, assert_equal, leaves
from tests.train.test_step import small_state
from tests.train.two_ranks import training, work

SAME_IN_DOUBLE = 1e-9


@pytest.fixture(scope="module")
def ranks(ssl, tmp_path_factory) -> dict:
    """Both processes' results, and those of one process over the whole batch."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    student = small_state(drop_path=0.3).student
    state, alone = (
        TrainState.new(copy.deepcopy(student), lambda n: [adamw(parameter_groups(n, GroupRule()))]) for _ in range(2)
    )
    torch.save(state, folder / "state.pt")
    torch.multiprocessing.spawn(work, (str(folder), str(ssl)), nprocs=2)
    both = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return {"both": both, "history": training(alone, None), "alone": alone, "ssl": ssl}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["cls", "patch"])
def test_targets_and_centres_of_two_processes_are_the_references(ranks, kind, dtype):
    """Also where the processes hold different numbers of rows, and where one holds none."""
    data = Recorded(ranks["ssl"] / "two_ranks.npz", dtype)
    rows = [data[f"{kind}_logits_rank{rank}"] for rank in range(2)]
    for rank, results in enumerate(ranks["both"]):
        name = f"{kind}_probs_sinkhorn_rank{rank}"
        assert_equal(results[name, dtype], data[name])
        assert_equal(results[f"{kind}_center_after", dtype], data[f"{kind}_center_after"])
        assert_equal(results[f"{kind}_mean_of_rows", dtype], torch.cat(rows).mean(0))
    assert_equal(ranks["both"][1][f"{kind}_one_empty", dtype], sinkhorn(rows[1], data.number("temp")))
    assert ranks["both"][0][f"{kind}_one_empty", dtype].shape == (0, 24)


@pytest.mark.parametrize("dtype", DTYPES)
def test_koleo_over_two_processes_is_that_of_the_joined_rows(ranks, dtype):
    """The mean of both losses; and the mean of the gradients, as data-parallel training forms it."""
    (x,) = leaves(torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=dtype).flatten(0, 1))
    loss = koleo(x, neighbours=2)
    loss.backward()
    both = ranks["both"]
    assert_equal((both[0]["koleo", dtype] + both[1]["koleo", dtype]) / 2, loss.detach())
    assert_equal(torch.cat([r["koleo_grad", dtype] for r in both]) / 2, x.grad)


def test_two_processes_train_as_one(ranks):
    """Losses, student and teacher after three steps with masks, stochastic depth and gathered losses, in double precision."""
    for results in ranks["both"]:
        assert results["history"] == pytest.approx(ranks["history"], rel=SAME_IN_DOUBLE)
        for name in ("student", "teacher"):
            expected = getattr(ranks["alone"], name).state_dict()
            for parameter, tensor in results["state"][name].items():
                assert torch.allclose(tensor, expected[parameter], rtol=0, atol=SAME_IN_DOUBLE), parameter
