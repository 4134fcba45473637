"""The page of a run: one HTML file that stands alone, with curves as inline SVG and pictures of what the teacher sees.

Promise: nothing fetched, no script; every text escaped. It is written anew at each look, so it can be open in a browser meanwhile.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dinokit._version import __version__
from dinokit.analysis.attention import cls_maps
from dinokit.analysis.colour import Scale, number
from dinokit.analysis.pca import PatchPCA
from dinokit.analysis.render import enlarge, heat_map
from dinokit.atomic import write_atomically
from dinokit.model import VisionTransformer
from dinokit.train.log import ALARM, SKIPPED, STOPPED, TRAIN, WATCH, Record
from dinokit.train.recipe import TrainingRecipe
from dinokit.train.settings import to_json

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 26
COLOURS = "#3b6fb6", "#d2691e", "#3a8f5c", "#8a5ab0", "#6b6f76"
MOST_POINTS = 400
SHOWN, TILE = 6, 128
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e22; background: #fff; max-width: 980px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; border-top: 1px solid #dee1e6; padding-top: 1rem; margin-top: 1.8rem }
.soft, figcaption { color: #60656d; font-size: .9rem }
.alarm { background: #fdf3f4; border-left: 4px solid #d62839; padding: .6rem 1rem; margin: .6rem 0 }
.fine { background: #f3f8f4; border-left: 4px solid #3a8f5c; padding: .6rem 1rem; margin: .6rem 0 }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 1.2rem }
figure { margin: 0 } svg { width: 100%; height: auto } text { font: 11px system-ui, sans-serif; fill: #60656d }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: 6px } .tiles img { width: 100%; image-rendering: pixelated }
pre { background: #f5f6f8; padding: .8rem; overflow-x: auto; font-size: .8rem }
"""


@dataclass(frozen=True)
class Chart:
    """Curves of some of the log's numbers: (name in the log, words). `level` is a dashed line with words."""

    title: str
    kind: str
    curves: tuple[tuple[str, str], ...]
    log: bool = False
    level: tuple[float, str] | None = None


def charts_of(recipe: TrainingRecipe) -> list[Chart]:
    """What the page draws, where the log has it."""
    uniform = math.log(recipe.heads.prototypes)
    return [
        Chart("Loss of class tokens", TRAIN, (("dino", "DINO"),), level=(uniform, "ln K: guessing")),
        Chart("Loss of masked patches", TRAIN, (("ibot", "iBOT"),)),
        Chart("Distance to the teacher's features", TRAIN, (("class_features", "class"), ("patch_features", "patches"))),
        Chart("Gram matrices, against the anchor", TRAIN, (("gram", "Gram"),)),
        Chart("KoLeo", TRAIN, (("koleo_0", "first crop"), ("koleo_1", "second crop"))),
        Chart("Directions that features use", WATCH, (("rankme", "RankMe"),)),
        Chart("k-NN accuracy", WATCH, (("knn", "k-NN"),)),
        Chart("Entropy of targets", TRAIN, (("target_entropy", "entropy"),), level=(uniform, "ln K")),
        Chart("Largest prototype's share", TRAIN, (("largest_prototype_share", "share"),), log=True),
        Chart(
            "Norms of gradients, before clipping", TRAIN,
            (("norm_backbone", "backbone"), ("norm_dino_head", "head"), ("norm_ibot_head", "patch head")), log=True,
        ),
        Chart(
            "The class token's attention", WATCH,
            (("attention_registers", "registers"), ("attention_outliers", "outliers"), ("attention_cls", "itself")),
        ),
        Chart("Patches of high norm", WATCH, (("outlier_share", "share"),)),
        Chart("Learning rate", TRAIN, (("lr", "rate"),)),
        Chart("Teacher: momentum", TRAIN, (("momentum", "momentum"),)),
    ]  # fmt: skip


def write_page(
    path: Path,
    recipe: TrainingRecipe,
    records: Sequence[Record],
    backbone: VisionTransformer | None = None,
    pixels: Float[Tensor, "n c h w"] | None = None,
) -> Path:
    """Write the page of what the log has so far; with a teacher and images, pictures of them, too."""
    text = page_html(recipe, records, backbone, pixels)
    return write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def page_html(
    recipe: TrainingRecipe,
    records: Sequence[Record],
    backbone: VisionTransformer | None = None,
    pixels: Float[Tensor, "n c h w"] | None = None,
) -> str:
    """The whole file as text."""
    step = records[-1]["step"] if records else 0
    figures = [svg(chart, records) for chart in charts_of(recipe)]
    parts = [
        f"<h1>{_text(recipe.name)}: step {step:,} of {recipe.steps:,}</h1>",
        f'<p class="soft">{step * recipe.batch_size:,} images seen, {recipe.batch_size} a step; {recipe.model.depth} blocks of width '
        f"{recipe.model.embed_dim}, {recipe.model.num_register_tokens} registers.</p>",
        _words(records),
        f'<h2>Curves</h2><div class="grid">{"".join(figure for figure in figures if figure)}</div>',
    ]
    if backbone is not None and pixels is not None and len(pixels):
        parts.append(_pictures(backbone, pixels[:SHOWN], recipe))
    recipe_text = _text(json.dumps(to_json(recipe), indent=2))
    parts.append(f"<h2>Recipe</h2><details><summary>all settings</summary><pre>{recipe_text}</pre></details>")
    parts.append(f'<p class="soft">Made by dinokit {__version__}.</p>')
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(recipe.name)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value).encode("utf-8", "replace").decode())


def _words(records: Sequence[Record]) -> str:
    looks = [record["step"] for record in records if record["kind"] == WATCH]
    last = looks[-1] if looks else -1
    now = [r for r in records if r["kind"] == ALARM and r["step"] == last]
    skipped = [r for r in records if r["kind"] == SKIPPED]
    found = [f'<p class="alarm">{_text(r["text"])}</p>' for r in records if r["kind"] == STOPPED]
    found += [f'<p class="alarm"><b>{_text(r["name"])}</b>, step {r["step"]:,}: {_text(r["text"])}</p>' for r in now]
    if skipped:
        found.append(f'<p class="alarm">{len(skipped)} steps skipped, the last: {_text(skipped[-1]["text"])}</p>')
    return "".join(found) or '<p class="fine">No alarm at the last look.</p>'


def svg(chart: Chart, records: Sequence[Record]) -> str:
    """A figure with one line a curve; empty where the log has none of them."""
    lines = []
    for name, words in chart.curves:
        points = [
            (r["step"], r[name]) for r in records if r["kind"] == chart.kind and name in r and math.isfinite(r[name])
        ]
        if chart.log:
            points = [(x, y) for x, y in points if y > 0]
        if points:
            lines.append((words, points[:: max(1, len(points) // MOST_POINTS)]))
    if not lines:
        return ""
    values = [y for _, points in lines for _, y in points] + ([chart.level[0]] if chart.level else [])
    low, high = min(values), max(values)
    if low == high == 0:
        high = 1.0
    elif high - low < 1e-12 * max(abs(low), abs(high)):
        low, high = (low / 2, high * 2) if chart.log else (low - 0.5 * abs(low), high + 0.5 * abs(high))
    elif not chart.log:
        low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    scale = Scale(low, high, log=chart.log)
    last = max(max(x for x, _ in points) for _, points in lines)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / max(last, 1)
        return across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * float(scale.place(np.array(y)))

    parts = []
    for tick in scale.ticks():
        y = at(0, tick)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eceef2"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_text(number(tick))}</text>')
    parts += [
        f'<text x="{at(x, low)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{x:,.0f}</text>'
        for x in Scale(0, max(last, 1)).ticks()
    ]
    if chart.level is not None:
        y = at(0, chart.level[0])[1]
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#9aa0a8" stroke-dasharray="5 4"/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{y + 13:.1f}" text-anchor="end">{_text(chart.level[1])}</text>')
    for colour, (_, points) in zip(COLOURS, lines, strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.7"/>')
        x, y = at(*points[-1])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>')
    keys = ", ".join(
        f'<span style="color:{colour}">&#9632;</span> {_text(words)} {_text(number(points[-1][1]))}'
        for colour, (words, points) in zip(COLOURS, lines, strict=False)
    )
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(chart.title)}">{"".join(parts)}</svg>'
    return f"<figure><b>{_text(chart.title)}</b>{drawing}<figcaption>{keys}</figcaption></figure>"


@torch.no_grad()
def _pictures(backbone: VisionTransformer, pixels: Float[Tensor, "n c h w"], recipe: TrainingRecipe) -> str:
    """Images, the class token's attention in the last block, and patches coloured by one PCA over all of them."""
    aug, config = recipe.augmentation, backbone.config
    *_, before, x = backbone.stream(pixels.to(backbone.cls_token))
    tokens = backbone.tokens(backbone.norm(x), (pixels.shape[-2], pixels.shape[-1]))
    weights = backbone.block_weights(config.depth - 1, before)
    attention = cls_maps(weights, config.num_register_tokens, tokens.grid).mean(dim=1).float().cpu().numpy()
    maps = list(tokens.patch_map.float().cpu())
    mean, std = (torch.tensor(v)[:, None, None] for v in (aug.mean, aug.std))
    size = (TILE, round(TILE * tokens.grid[1] / tokens.grid[0]))
    rows: list[list[Image.Image]] = [[], [], []]
    finite = bool(np.isfinite(attention).all()) and all(bool(torch.isfinite(m).all()) for m in maps)
    pca = PatchPCA.fit(maps) if finite else None
    for i, image in enumerate(pixels.float().cpu()):
        shown = ((image * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        rows[0].append(Image.fromarray(shown))
        if pca is not None:
            rows[1].append(heat_map(attention[i], Scale.of(attention[i], "attention", zero=True), size))
            rows[2].append(enlarge((pca.transform(maps[i]) * 255).round().byte().numpy(), size))
    titles = (
        "images",
        "attention of the class token, last block, mean of heads",
        "patches by three principal components",
    )
    found = ["<h2>What the teacher sees</h2>"]
    for title, tiles in zip(titles, rows, strict=True):
        if tiles:
            pictures = "".join(_picture(tile, title) for tile in tiles)
            found.append(f'<figure><div class="tiles">{pictures}</div><figcaption>{title}</figcaption></figure>')
    return "\n".join(found)


def _picture(image: Image.Image, alt: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="{_text(alt)}">'
