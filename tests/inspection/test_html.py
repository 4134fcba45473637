"""The artefact report as HTML: it stands alone, escapes what comes from outside, and says what the numbers say."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinokit.analysis.planted import planted, planted_image
from dinokit.images import ImageTransform
from dinokit.inspection.artefacts import ArtefactReport, artefact_report
from dinokit.inspection.html import report_html
from dinokit.inspection.look import look
from dinokit.model import VisionTransformer
from dinokit.weights.load import Pretrained, Provenance

EVIL = '<script>alert("x")</script>&.png'
VOID = {"meta", "img", "br", "link", "input"}


class Reader(HTMLParser):
    """Every tag with its attributes, the text, and whether tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def model(num_registers: int = 0, name: str = "planted") -> Pretrained:
    config, weights = planted(num_registers)
    network = VisionTransformer(config).eval()
    network.load_state_dict(weights)
    transform = ImageTransform(resize=None, crop=None, mean=(0, 0, 0), std=(1, 1, 1))
    provenance = Provenance(name=name, path=Path("x"), files=(), layout="official")
    return Pretrained(model=network, transform=transform, provenance=provenance)


def image(outliers: tuple[int, ...], grid: tuple[int, int] = (4, 4)) -> np.ndarray:
    return (255 * planted_image(outliers, grid)[0].permute(1, 2, 0)).to(torch.uint8).numpy()


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


@pytest.fixture
def report() -> ArtefactReport:
    return artefact_report(model(), [image((3, 9)), image((3,)), image((), (4, 6)), EVIL])


def test_the_report_stands_alone(report):
    """No script, no link, no address but data: every picture is inside and can be decoded."""
    text = report_html(report, [look(model(), image((3, 9)), name="a.png")])
    reader = read(text)
    names = {tag for tag, _ in reader.tags}
    assert names.isdisjoint({"script", "link", "iframe", "object", "base", "form", "a"})
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 5
    for source in sources:
        kind, _, data = (source or "").partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.format == "PNG"
    assert not any(name.startswith("on") or name in ("href", "srcset") for _, found in reader.tags for name in found)


def test_names_from_outside_are_escaped(report):
    """Files and models may be called anything, bytes that are no text included."""
    odd = artefact_report(model(name='<img src="x">'), [image((3,)), EVIL, "\udcff.png"])
    text = report_html(odd, [look(model(), image((3,)), name=EVIL)])
    reader = read(text)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert EVIL in reader.text
    assert 'Artefacts in <img src="x">' in reader.text
    assert all((attributes["src"] or "").startswith("data:") for tag, attributes in reader.tags if tag == "img")
    assert "?.png" in reader.text
    text.encode()


def test_the_report_says_what_was_planted(report):
    """Which block writes the artefacts, in how many images, where; and which image could not be read."""
    text = read(report_html(report)).text
    assert "after block 3" in text
    assert "Block 3 writes them" in text
    assert "66.7\xa0% of the images" in text
    assert "largest 303" in text
    assert "3 images (2 of 4 x 4 patches, 1 of 4 x 6 patches), 1 more could not be read" in text
    assert "not_a_file" in text
    assert "no registers" in text


def test_a_clean_network_is_called_clean():
    """No artefacts, no map of where they are; one register is one register."""
    text = read(report_html(artefact_report(model(1), [image(())]))).text
    assert "No artefacts" in text
    assert "No patch is an artefact" in text
    assert "1 register" in text


def test_rows_with_artefacts_are_marked(report):
    """In the table of layers: those after block 3 and 4, no others."""
    rows = re.findall(r'<tr class="(bad|)"><td>(\d)', report_html(report))
    assert [(kind, layer) for kind, layer in rows if kind == "bad"] == [("bad", "3"), ("bad", "4")]
