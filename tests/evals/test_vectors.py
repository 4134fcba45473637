"""k-NN, linear probes, logistic regression, few-shot and retrieval: equal to other implementations, right on planted labels."""

from __future__ import annotations

import functools
import json
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from dinokit.evals import knn as knn_module
from dinokit.evals import linear as linear_module
from dinokit.evals import logreg as logreg_module
from dinokit.evals.datasets import DatasetError
from dinokit.evals.features import head_columns
from dinokit.evals.fewshot import few_shot
from dinokit.evals.knn import knn, knn_leave_one_out
from dinokit.evals.linear import MOMENTUM, Heads, linear_probe, shuffled_batches, take
from dinokit.evals.logreg import C_GRID, fit_logreg, logreg, split
from dinokit.evals.retrieval import GroundTruth, read_ground_truth, retrieval_by_labels, retrieval_by_lists
from tests.tolerances import SAME_MATH

SKLEARN = 1e-5  # both stop where the gradient is small; float64
ALONE = 1e-5  # heads trained together and alone, hundreds of float32 steps


def clusters(num: int, num_classes: int = 4, d: int = 16, spread: float = 0.1, seed: int = 0):
    """Vectors around a mean each class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % num_classes
    means = torch.eye(num_classes, d)
    return means[labels] + spread * torch.randn(num, d, generator=generator), labels


def shuffled(labels: torch.Tensor, seed: int = 7) -> torch.Tensor:
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def brute_knn(train, labels, test, k, temperature, centred, leave_out):
    """One query at a time, in float64."""
    train, test = train.double().numpy(), test.double().numpy()
    if centred:
        mean = train.mean(0)
        train, test = train - mean, test - mean
    predicted = []
    for i, query in enumerate(test):
        cosines = train @ query / np.linalg.norm(train, axis=1) / np.linalg.norm(query)
        order = [j for j in np.argsort(-cosines) if not (leave_out and i == j)][:k]
        votes = np.zeros(int(labels.max()) + 1)
        for j in order:
            votes[labels[j]] += math.exp(cosines[j] / temperature)
        predicted.append(votes.argmax())
    return np.array(predicted)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.booleans(), st.integers(1, 40))
def test_knn_is_the_vote_of_the_nearest(seed, centred, leave_out, rows):
    """Against one query at a time, whatever the blocks, centred or not, leaving oneself out or not, k beyond the set too."""
    train, labels = clusters(31, spread=0.8, seed=seed)
    test, truth = (train, labels) if leave_out else clusters(13, spread=0.8, seed=seed + 1)
    options = {"ks": (1, 5, 100), "temperature": 0.2, "centred": centred}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn_module, "QUERY_ROWS", rows)
        patch.setattr(knn_module, "TRAIN_ROWS", rows + 2)
        call = functools.partial(knn_leave_one_out if leave_out else knn, train.numpy(), labels)
        score = call(**options) if leave_out else call(test, truth, **options)
    for k in (1, 5, 100):
        expected = brute_knn(train, labels, test, k, 0.2, centred, leave_out)
        assert score.top1[k] == pytest.approx((expected == truth.numpy()).mean())
    assert score.top5 == {}


def test_centring_finds_what_a_large_common_vector_hides():
    """Vectors that share a mean 1000 times their differences: float32 cosines are all 1 without it."""
    train, labels = clusters(40)
    offset = 1000 * torch.ones(16)
    plain = knn(train + offset, labels, train + offset, labels, ks=(3,)).top1[3]
    centred = knn(train + offset, labels, train + offset, labels, ks=(3,), centred=True).top1[3]
    assert centred == 1.0
    assert plain < centred


def test_top5_is_counted_where_there_are_more_than_five_classes():
    """And holds at least top-1."""
    train, labels = clusters(60, num_classes=8, spread=1.0)
    score = knn(train, labels, *clusters(40, num_classes=8, spread=1.0, seed=1))
    assert all(score.top5[k] >= score.top1[k] for k in score.top1)
    assert score.top1[score.best_k] == max(score.top1.values())


@pytest.mark.parametrize("judge", ["knn", "linear", "logreg"])
def test_planted_classes_are_found_and_shuffled_ones_are_not(judge):
    """100 % where classes are apart; chance (4 classes, 400 test vectors: 0.25 +- 0.11, five deviations) where labels are random."""
    train, labels = clusters(400)
    test, truth = clusters(400, seed=1)

    def top1(train_labels: torch.Tensor, truth: torch.Tensor) -> float:
        if judge == "knn":
            return knn(train, train_labels, test, truth, ks=(10,)).top1[10]
        if judge == "linear":
            return linear_probe(train, train_labels, test, truth, steps=300, batch_size=64).best.test
        return logreg(train, train_labels, test, truth, cs=C_GRID[12:30:6]).top1

    assert top1(labels, truth) == 1.0
    assert abs(top1(shuffled(labels), shuffled(truth, seed=8)) - 0.25) < 0.11


@pytest.mark.parametrize("c", [1e-6, 1e-2, 1.0, 1e3])
def test_logistic_regression_is_scikit_learns(c, monkeypatch):
    """The same minimum, read by blocks or not, from zero or from another C's."""
    features, labels = clusters(200, spread=1.0, d=8)
    monkeypatch.setattr(logreg_module, "BLOCK_ROWS", 64)
    start = fit_logreg(features.numpy(), labels, 4, 10 * c)
    found = fit_logreg(features.numpy(), labels, 4, c, start=start)
    expected = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12).fit(
        features.double().numpy(), labels.numpy()
    )
    assert np.abs(found.weight.numpy() - expected.coef_).max() < SKLEARN
    bias = found.bias - found.bias.mean()  # only differences of intercepts matter
    assert np.abs(bias.numpy() - (expected.intercept_ - expected.intercept_.mean())).max() < SKLEARN
    assert found.iterations > 0
    assert torch.equal(found.scores(features).argmax(1), torch.from_numpy(expected.predict(features.double().numpy())))


def test_logreg_chooses_c_on_what_it_holds_out():
    """The best on the held-out part, the smallest of equals; and every C is reported."""
    train, labels = clusters(120, spread=0.6)
    score = logreg(train, labels, *clusters(80, spread=0.6, seed=1), cs=(1e-3, 1.0, 1e-1))
    best = max(score.held_out.values())
    assert set(score.held_out) == {1e-3, 1e-1, 1.0}
    assert score.c == min(c for c, accuracy in score.held_out.items() if accuracy == best)
    assert len(C_GRID) == 45
    assert (C_GRID[0], C_GRID[-1]) == (pytest.approx(1e-6), pytest.approx(1e5))


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_split_has_two_parts_that_share_nothing(num, share, seed):
    """Each at least one; together all; the same for the same seed."""
    fitted, held = split(num, share, seed)
    assert len(fitted) >= 1
    assert len(held) >= 1
    assert sorted([*fitted.tolist(), *held.tolist()]) == list(range(num))
    assert torch.equal(split(num, share, seed)[1], held)


def test_heads_learn_together_what_each_learns_alone():
    """Every rate and every choice of columns against a linear layer with PyTorch's SGD and cosine schedule."""
    features, labels = clusters(90, d=10)
    columns = {"first": slice(0, 6), "all": slice(0, 10)}
    rates, steps = (0.01, 0.1, 1.0), 60
    heads = Heads(columns, 4, rates, 3, torch.device("cpu"))
    start = {name: weight.clone() for name, weight in heads.weights.items()}
    batches = shuffled_batches(90, 16, 5)
    chosen = [next(batches) for _ in range(steps)]
    for step, numbers in enumerate(chosen):
        heads.step(features[numbers], labels[numbers], (1 + math.cos(math.pi * step / steps)) / 2)
    for name, part in columns.items():
        for i, rate in enumerate(rates):
            layer = torch.nn.Linear(part.stop, 4)
            layer.weight.data.copy_(start[name][i])
            layer.bias.data.zero_()
            optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=MOMENTUM)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for numbers in chosen:
                optimizer.zero_grad()
                F.cross_entropy(layer(features[numbers][:, part]), labels[numbers]).backward()
                optimizer.step()
                schedule.step()
            assert (layer.weight - heads.weights[name][i]).abs().max() < ALONE
            assert (layer.bias - heads.biases[name][i]).abs().max() < ALONE


def test_only_heads_that_read_the_right_columns_find_the_class():
    """The class stands in the oldest of two blocks: heads on the last block alone can't tell, heads on both can."""
    planted, labels = clusters(400, d=8)
    noise = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    vectors = torch.cat([planted, noise], dim=1)  # block 1, block 2, mean patch
    columns = head_columns(8, 2, mean=True)
    assert list(columns) == ["1 block, cls", "1 block, cls+mean", "2 blocks, cls", "2 blocks, cls+mean"]
    score = linear_probe(
        vectors[:300], labels[:300], vectors[300:], labels[300:], columns=columns, steps=300, batch_size=64
    )
    assert len(score.heads) == 4 * 13
    by_columns = {name: max(head.test for head in score.heads if head.columns == name) for name in columns}
    assert by_columns["1 block, cls"] < 0.5
    assert by_columns["2 blocks, cls"] == 1.0
    assert score.best.columns.startswith("2 blocks")
    assert score.best_on_test.test >= score.best.test
    assert len(score.to_dict()["heads"]) == 52


def test_a_memory_mapped_train_set_gives_the_same_heads(tmp_path):
    """Rows come in the order asked for, and the result does not know where they lay."""
    train, labels = clusters(60)
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=train.shape)
    mapped[:] = train.numpy()
    numbers = torch.tensor([5, 2, 59, 2])
    assert torch.equal(take(mapped, numbers), train[numbers])
    options = {"steps": 20, "batch_size": 16, "rates": (0.1, 1.0)}
    assert linear_probe(mapped, labels, train, labels, **options) == linear_probe(
        train, labels, train, labels, **options
    )


def test_the_rate_falls_as_a_cosine_to_zero(monkeypatch):
    """Over the steps asked for: 1, then as PyTorch's schedule."""
    scales = []
    monkeypatch.setattr(Heads, "step", lambda self, features, labels, scale: scales.append(scale))
    linear_probe(*clusters(60), *clusters(8), steps=7, batch_size=16)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    expected = []
    for _ in range(7):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert scales == pytest.approx(expected)


def test_linear_rates_grow_with_the_batch():
    """At twice the batch a rate is twice as large, as the protocol has it."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        real = Heads.__init__
        patch.setattr(
            Heads,
            "__init__",
            lambda self, c, n, rates, *rest: (seen.append(list(rates)), real(self, c, n, rates, *rest))[1],
        )
        for size in (16, 32):
            linear_probe(*clusters(60), *clusters(8), steps=1, batch_size=size, rates=(0.256,))
    assert seen == [[pytest.approx(0.016)], [pytest.approx(0.032)]]
    assert linear_module.LEARNING_RATES[0] == 1e-5
    assert len(linear_module.LEARNING_RATES) == 13


def test_few_shots_suffice_where_classes_are_apart():
    """Both learners; the same seed draws the same episodes, and more shots never leave out the first ones."""
    train, labels = clusters(80)
    test = clusters(40, seed=1)
    scores = few_shot(train, labels, *test, shots=(1, 5), episodes=3)
    assert {(s.shots, s.learner): s.accuracy for s in scores} == dict.fromkeys(
        [(1, "centroid"), (1, "logreg"), (5, "centroid"), (5, "logreg")], 1.0
    )
    noisy, truth = clusters(400, spread=0.5)
    one, five = few_shot(
        noisy, truth, *clusters(400, spread=0.5, seed=1), shots=(1, 5), learners=("centroid",), episodes=8
    )
    assert one.accuracy + one.interval < five.accuracy
    again = few_shot(noisy, truth, *clusters(400, spread=0.5, seed=1), shots=(1, 5), learners=("centroid",), episodes=8)
    assert again == (one, five)


def test_few_shot_episodes_can_have_fewer_classes():
    """Two of four: chance is one half, and only their images are judged."""
    train, labels = clusters(200)
    test, truth = clusters(400, seed=1)
    (score,) = few_shot(train, shuffled(labels), test, truth, shots=(5,), learners=("centroid",), ways=2, episodes=20)
    assert abs(score.accuracy - 0.5) < 0.2
    for wrong, message in (
        ({"shots": (60,)}, "smallest class has 50"),
        ({"ways": 9}, "2 to 4 classes"),
        ({"learners": ("x",)}, "learner 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            few_shot(train, labels, test, truth, **wrong)


def test_retrieval_by_labels_leaves_the_query_out():
    """Perfect where classes are apart; for random vectors the mean precision is about the share of the class."""
    score = retrieval_by_labels(*clusters(40))
    assert score.map == 1.0
    assert score.precision_at[5] == 1.0
    assert score.queries == 40
    noise = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    assert retrieval_by_labels(noise, torch.arange(400) % 4).map == pytest.approx(0.25, abs=0.05)
    alone = retrieval_by_labels(torch.eye(3), torch.tensor([0, 0, 1]))
    assert alone.queries == 2


GALLERY = ("a", "b", "c", "d")


def truth_of(**lists: tuple[int, ...]) -> GroundTruth:
    empty = {"easy": (), "hard": (), "junk": ()}
    return GroundTruth(GALLERY, ("q",), ({**empty, **lists},), (None,))


def test_easy_medium_and_hard_look_for_different_images():
    """Gallery ranked a, b, c, d. Easy wants a and passes over c; hard wants c behind b (a passed over): area 1/4."""
    gallery = F.normalize(torch.tensor([[4.0, 0, 0, 0], [3, 1, 0, 0], [2, 2, 0, 0], [1, 3, 0, 0]]), dim=1)
    found = retrieval_by_lists(torch.tensor([[1.0, 0, 0, 0]]), gallery, truth_of(easy=(0,), hard=(2,)), ks=(1, 2))
    assert found["easy"].map == 1.0
    assert found["hard"].map == pytest.approx(0.25)
    assert found["medium"].map == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert found["medium"].precision_at == {1: 1.0, 2: 0.5}
    nothing = retrieval_by_lists(torch.eye(1, 4), gallery, truth_of(easy=(0,)))
    assert nothing["hard"].queries == 0
    with pytest.raises(ValueError, match="speak of 1 and 4"):
        retrieval_by_lists(gallery, gallery, truth_of())


def test_ground_truth_is_read_from_pickles_of_plain_values_only(tmp_path):
    """The benchmark's own files and JSON give the same; a pickle that would run something does not run."""
    content = {
        "imlist": ["a", "b"],
        "qimlist": ["q"],
        "gnd": [{"bbx": [1.0, 2, 3, 4], "easy": [0], "hard": [1], "junk": []}],
    }
    (tmp_path / "g.json").write_text(json.dumps(content))
    (tmp_path / "g.pkl").write_bytes(pickle.dumps(content))
    truth = read_ground_truth(tmp_path / "g.pkl")
    assert truth == read_ground_truth(tmp_path / "g.json")
    assert truth.lists[0] == {"easy": (0,), "hard": (1,), "junk": ()}
    assert truth.boxes == ((1.0, 2.0, 3.0, 4.0),)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"imlist": print}))
    with pytest.raises(DatasetError, match=r"would run builtins\.print"):
        read_ground_truth(tmp_path / "bad.pkl")
    content["gnd"][0]["easy"] = [7]
    (tmp_path / "g.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="beyond the 2 images"):
        read_ground_truth(tmp_path / "g.json")
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(DatasetError, match="expected imlist"):
        read_ground_truth(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: knn(x, y, x[:, :3], y), "wide"),
        (lambda x, y: knn(x, y, x, y, ks=(0,)), "k is at least 1"),
        (lambda x, y: knn(x, y[:2], x, y), "each vector needs one label"),
        (lambda x, y: knn_leave_one_out(x[:1], y[:1]), "two or more"),
        (lambda x, y: fit_logreg(x, y, 2), "classes are 2"),
        (lambda x, y: fit_logreg(x, y, 4, 0.0), "above 0"),
        (lambda x, y: linear_probe(x, y, x, y, steps=0), "at least 1"),
        (lambda x, y: split(1, 0.5, 0), "two rows"),
    ],
)
def test_what_can_not_be_judged_is_refused(call, message):
    """With the value and the rule."""
    with pytest.raises(ValueError, match=message):
        call(*clusters(8))


def test_the_gradient_of_logistic_regression_is_that_of_its_loss():
    """Against autograd, in float64."""
    features, labels = clusters(20, d=5)
    point = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    mean = torch.arange(5.0, dtype=torch.float64)
    logits = (features.double() - mean) @ point[:, :5].T + point[:, 5]
    loss = F.cross_entropy(logits, labels) + point[:, :5].square().sum() / (2 * 0.3 * 20)
    (expected,) = torch.autograd.grad(loss, point)
    value, gradient = logreg_module.loss_and_gradient(point.detach(), features, labels, 0.3, mean)
    assert abs(value - loss.detach()) < SAME_MATH
    assert (gradient - expected).abs().max() < SAME_MATH
