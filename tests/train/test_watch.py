"""What a run looks at, and when it raises an alarm."""

from __future__ import annotations

import math

import pytest
import torch

from dinokit.analysis.rank import rankme
from dinokit.train.log import ALARM, TRAIN, WATCH
from dinokit.train.run import build_network
from dinokit.train.watch import TokenWatcher, alarms, is_news
from tests.train.small_run import small

K = 12


def records(
    dino: float = 0.5 * math.log(K), share: float = 0.1, ranks=(10.0, 10.0), knn=(0.5, 0.5), step: int = 100
) -> list[dict]:
    first, second = ({"kind": WATCH, "rankme": r, "knn": a} for r, a in zip(ranks, knn, strict=True))
    line = {"kind": TRAIN, "dino": dino, "largest_prototype_share": share}
    return [{"step": 0, **first}, *({"step": s, **line} for s in range(step - 8, step)), {"step": step, **second}]


def names(found) -> list[str]:
    return [alarm.name for alarm in alarms(found, small("steps=100"), 16)]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({}, []),
        ({"dino": 0.995 * math.log(K)}, ["uniform"]),
        ({"dino": 0.98 * math.log(K)}, []),
        ({"share": 0.6}, ["concentrated"]),
        ({"ranks": (10.0, 6.9)}, ["rank"]),
        ({"ranks": (10.0, 7.1)}, []),
        ({"ranks": (1.0, 1.5)}, ["rank"]),
        ({"knn": (0.8, 0.7)}, ["knn"]),
        ({"knn": (0.8, 0.73)}, []),
        ({"dino": math.log(K), "ranks": (10.0, 2.0)}, ["uniform", "rank"]),
    ],
)
def test_alarms_go_off_where_they_should(seen, expected):
    """And not just short of it."""
    assert names(records(**seen)) == expected


def test_a_run_has_time_before_alarms():
    """A fifth of its steps, and the warm-up."""
    assert names(records(dino=math.log(K), step=19)) == []
    assert names(records(dino=math.log(K), step=20)) == ["uniform"]
    assert alarms(records(dino=math.log(K), step=50), small("steps=100", "warm_up=60"), 16) == []


def test_an_alarm_says_what_to_change_and_what_it_is_now():
    """Names of settings as --set takes them, with their values."""
    (alarm,) = alarms(records(ranks=(10.0, 2.0)), small("steps=100", "koleo=0.25"), 16)
    assert "losses.koleo, now 0.25" in alarm.text
    assert "2.0, from 10.0 at the start" in alarm.text
    (alarm,) = alarms(records(dino=math.log(K)), small("steps=100"), 16)
    assert "ln K = 2.485" in alarm.text
    assert "schedule.teacher_temperature_end, now 0.02" in alarm.text


def test_a_run_without_targets_has_no_alarms_about_them():
    """Features alone are learnt from some teachers: such a log has no loss of class tokens."""
    found = [{key: value for key, value in r.items() if "dino" not in key and "share" not in key} for r in records()]
    assert not {"uniform", "concentrated"} & set(names(found))


def test_the_same_alarm_is_news_once():
    """Until a look without it."""
    found = records(ranks=(10.0, 2.0))
    (alarm,) = alarms(found, small("steps=100"), 16)
    assert is_news(alarm, found)
    found += [{"step": 100, "kind": ALARM, "name": "rank"}, {"step": 101, "kind": WATCH, "rankme": 2.0}]
    assert not is_news(alarm, found)
    found.append({"step": 102, "kind": WATCH, "rankme": 2.0})
    assert is_news(alarm, found)


def test_features_of_nothing_but_zeros_have_rank_0_and_raise_an_alarm():
    """A network that has died is looked at like any other: the run goes on, and says so."""
    network = build_network(small()).eval()
    torch.nn.init.zeros_(network.backbone.norm.weight)
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert TokenWatcher(pixels)(network.backbone)["rankme"] == 0
    assert names(records(ranks=(10.0, 0.0))) == ["rank"]


def test_looking_changes_nothing_and_repeats_itself():
    """The same numbers twice; shares sum to at most 1; more images than are looked at together."""
    network = build_network(small()).eval()
    pixels = torch.randn(70, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = {name: t.clone() for name, t in network.state_dict().items()}
    state = torch.random.get_rng_state()
    watcher = TokenWatcher(pixels)
    found = watcher(network.backbone)
    assert found == watcher(network.backbone)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    shares = [found[f"attention_{name}"] for name in ("cls", "registers", "outliers")]
    assert all(0 <= share <= 1 for share in shares)
    assert sum(shares) <= 1
    assert found["rankme"] == pytest.approx(rankme(network.backbone(pixels).cls), rel=1e-4)
