"""The page of a run and its export: they stand alone, escape what they show, and open again."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import dinokit
from dinokit.train.export import card, pretrained, save_backbone
from dinokit.train.log import ALARM, SKIPPED, STOPPED, TRAIN, WATCH
from dinokit.train.page import charts_of, page_html, svg
from dinokit.train.run import build_network
from dinokit.weights.layouts import LAYOUTS
from tests.tolerances import SAME_MATH, max_error
from tests.train.small_run import run, small, values

BIRDER_LACKS = "mask_token"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run."""
    made = tmp_path_factory.mktemp("page") / "run"
    run(made)
    return made


def test_the_page_stands_alone(folder):
    """No script, nothing fetched; curves of what the log has, pictures of images, attention and components."""
    text = (folder / "page.html").read_text()
    assert "<script" not in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "default-src 'none'" in text
    assert "step 6 of 6" in text
    for title in ("Loss of class tokens", "Directions that features use", "Norms of gradients"):
        assert title in text
    assert "k-NN accuracy" not in text
    assert text.count('<div class="tiles">') == 3
    assert text.count("data:image/png") == 18
    for drawing in re.findall(r"<svg.*?</svg>", text):
        ElementTree.fromstring(drawing)


def test_what_is_shown_is_escaped():
    """Names and sentences of alarms are text, whatever they contain."""
    recipe = replace(small(), name="<b>x</b>")
    records = [
        {"step": 1, "kind": WATCH, "rankme": 2.0},
        {"step": 1, "kind": ALARM, "name": "rank", "text": "<i>less & less</i>"},
        {"step": 1, "kind": SKIPPED, "text": "<u>"},
    ]
    text = page_html(recipe, records)
    assert "<b>x</b>" not in text
    assert "&lt;i&gt;less &amp; less&lt;/i&gt;" in text
    assert "&lt;u&gt;" in text
    assert 'class="fine"' in page_html(recipe, records[:1])


def test_why_a_run_ended_by_itself_is_shown():
    """Whatever else the log says, with the curves that only runs with a teacher of features have."""
    records = [{"step": step, "kind": TRAIN, "class_features": 0.5, "patch_features": 0.4} for step in (1, 2)]
    text = page_html(small(), [*records, {"step": 2, "kind": STOPPED, "text": "ended after step 2: k-NN fell"}])
    assert "ended after step 2: k-NN fell" in text
    assert "No alarm" not in text
    assert "Distance to the teacher&#x27;s features" in text
    assert "Gram matrices" not in text


def test_an_alarm_that_has_passed_is_not_shown():
    """The page is about now."""
    records = [
        {"step": 1, "kind": WATCH}, {"step": 1, "kind": ALARM, "name": "rank", "text": "low"}, {"step": 2, "kind": WATCH},
    ]  # fmt: skip
    assert 'class="alarm"' in page_html(small(), records[:2])
    assert 'class="alarm"' not in page_html(small(), records)


def test_curves_go_where_the_numbers_are():
    """Later is further right, more is higher; what is not finite is left out, many points are thinned, one alone is drawn."""
    chart = charts_of(small())[0]
    records = [{"step": i, "kind": TRAIN, "dino": float(i)} for i in range(1, 2001)]
    records[5]["dino"] = math.nan
    found = ElementTree.fromstring(re.search(r"<svg.*</svg>", svg(chart, records))[0])
    points = [tuple(map(float, p.split(","))) for p in found.find("polyline").get("points").split()]
    assert 300 <= len(points) <= 500
    assert points == sorted(points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
    assert "polyline" in svg(chart, records[:1])
    assert svg(chart, []) == ""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_trained_network_goes_into_every_layout(folder, tmp_path, layout):
    """And gives the teacher's tokens again."""
    recipe = small()
    network = build_network(recipe)
    state = values(folder, 6)
    network.load_state_dict({n.removeprefix("teacher."): t for n, t in state.items() if n.startswith("teacher.")})
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = network.eval().backbone(pixels).sequence
        path = save_backbone(pretrained(network.backbone, recipe), tmp_path, layout)
        again = dinokit.load(path, num_heads=2).model(pixels).sequence
    assert max_error(expected, again) <= SAME_MATH


def test_the_export_opens_and_its_card_says_what_it_is(folder):
    """With the transform of training; the file with heads opens, too; sums in the card are those of the files."""
    pre = dinokit.load(folder / "export/model")
    heads = dinokit.load(folder / "export/teacher_with_heads.pth", num_heads=2)
    pixels = torch.randn(1, 3, 16, 16)
    assert torch.equal(pre.model(pixels).sequence, heads.model(pixels).sequence)
    assert pre.transform.crop == (16, 16)
    assert set(torch.load(folder / "export/teacher_with_heads.pth", weights_only=True)["teacher"]) == set(
        build_network(small()).state_dict()
    )
    text = (folder / "export/README.md").read_text()
    assert pre.provenance.sha256 in text
    recipe = json.loads(re.search(r"```json\n(.*?)```", text, re.S)[1])
    assert recipe["steps"] == 6
    assert "| rankme |" in text


def test_a_card_names_data_licence_and_alarms(tmp_path):
    """What is not known is said to be unknown."""
    records = [{"step": 9, "kind": TRAIN, "loss": 1.25}, {"step": 9, "kind": ALARM, "name": "rank", "text": "x"}]
    about = {"images": "photos", "number of images": 7, "license": "cc-by-4.0", "name": "birds"}
    text = card(replace(small(), init="some/weights"), records, about, [], tmp_path)
    for part in (
        "# birds",
        "license: cc-by-4.0",
        "number of images: 7",
        "| loss | 1.25 |",
        "Alarms in this run: rank",
        "some/weights",
    ):
        assert part in text
    assert "- not stated" in card(small(), [], {}, [], tmp_path)
