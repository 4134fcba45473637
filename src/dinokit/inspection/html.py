"""The artefact report as one HTML file that stands alone: style inside, pictures as data, nothing fetched, no script.

Every text that comes from outside (names of files and models) is escaped. A content policy in the file forbids what it does not need.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from dinokit._version import __version__
from dinokit.analysis.charts import CLS, OUTLIER, PATCH, REGISTER, band_chart, layer_histogram, stacked_bars
from dinokit.analysis.colour import Scale, number
from dinokit.analysis.norms import LOWEST, PER_OCTAVE
from dinokit.analysis.panel import PAPER, Key, colour_bar, fit_width, key_strip
from dinokit.analysis.render import heat_map, outline_patches
from dinokit.inspection.artefacts import MAIN_RULE, ArtefactReport, LayerFindings
from dinokit.inspection.drawn import canvas
from dinokit.inspection.look import Look
from dinokit.inspection.see_maps import telling_layer

WIDTH = 960
WIDE, NARROW = (206, 214, 230), (158, 173, 205)  # from the 1st to the 99th percentile, from the 25th to the 75th
BINS_PER_OCTAVE = 8
LEFT_OUT = 0.01  # of all norms, at the lower end: a black patch without texture has almost none
EXAMPLE_WIDTH = 300
MAX_FAILED = 200
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e22; background: #fff; max-width: 960px; margin: 2.5rem auto;
  padding: 0 1rem }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; border-top: 1px solid #dee1e6; padding-top: 1.1rem; margin-top: 2rem }
img { max-width: 100%; height: auto }
.soft, figcaption { color: #696e76; font-size: .9rem }
.verdict { font-size: 1.1rem; background: #f4f6fa; border-left: 4px solid #566c96; padding: .8rem 1rem; margin: 1.2rem 0 }
.verdict.bad { border-color: #d62839; background: #fdf3f4 }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #eceef2 }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere }
tr.bad td { background: #fdf3f4 }
.scroll { overflow-x: auto }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 1rem }
figure { margin: 0 }
figcaption { overflow-wrap: anywhere }
"""


def report_html(report: ArtefactReport, examples: Sequence[Look] = ()) -> str:
    """The whole file as text (UTF-8). `examples` are images to show, outliers outlined in the layer where they are clearest."""
    first = report.first_outlier_layer
    shown = _shown_layer(report)
    parts = [
        f"<h1>Artefacts in {_text(report.model)}</h1>",
        f'<p class="soft">{_counts(report)}</p>',
        f'<p class="verdict{" bad" if first is not None else ""}">{_verdict(report)}</p>',
        "<h2>Norms of tokens through the network</h2>",
        _norm_chart(report),
        "<h2>Their distribution, layer by layer</h2>",
        _distribution(report),
        f"<h2>Where in the picture, after block {shown.layer}</h2>",
        _positions(report, shown),
        "<h2>What the class token spends its attention on, last block</h2>",
        _budget(report),
        "<h2>Layer by layer</h2>",
        _layer_table(report),
        f"<h2>What other rules say, after block {shown.layer}</h2>",
        _rule_table(report, shown),
    ]
    if examples:
        parts += ["<h2>Examples</h2>", _examples(examples)]
    if report.failed:
        parts += ["<h2>Images that could not be read</h2>", _failed(report)]
    parts.append(
        f'<p class="soft">Made by dinokit {__version__}. Norms are those before the final layer norm. '
        "Source of the measurements: Darcet et al. 2024, Vision Transformers Need Registers.</p>"
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Artefacts in {_text(report.model)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    """Escaped, and without bytes of file names that are no text."""
    return html.escape(str(value).encode("utf-8", "replace").decode())


def _picture(image: Image.Image, alt: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" width="{image.width}" height="{image.height}" alt="{_text(alt)}">'


def _under(image: Image.Image, *legends: Image.Image) -> Image.Image:
    """A picture with its legends in a line above it, at the right."""
    tall = max(legend.height for legend in legends) + 8
    sheet = Image.new("RGB", (image.width, image.height + tall), PAPER)
    x = image.width
    for legend in reversed(legends):
        x -= legend.width + 16
        sheet.paste(legend, (x, 0))
    sheet.paste(image, (0, tall))
    return sheet


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Cells are HTML already; each row comes with its class."""
    titles = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for kind, cells in rows)
    return f'<div class="scroll"><table><tr>{titles}</tr>{body}</table></div>'


def _percent(share: float) -> str:
    return f"{number(round(100 * share, 3))}&nbsp;%"


def _counts(report: ArtefactReport) -> str:
    sizes = ", ".join(f"{count} of {rows} x {columns} patches" for (rows, columns), count in report.grids.items())
    registers = {0: "no registers", 1: "1 register"}.get(report.num_registers, f"{report.num_registers} registers")
    failed = f", {len(report.failed)} more could not be read" if report.failed else ""
    return f"{report.num_images} images ({sizes}){failed} &middot; 1 class token, {registers} &middot; {len(report.layers) - 1} blocks"


def _share(found: LayerFindings) -> float:
    return found.rules[MAIN_RULE].num_outliers / max(found.patches.total + found.patches.num_nonfinite, 1)


def _shown_layer(report: ArtefactReport) -> LayerFindings:
    """With the largest share of artefacts among layers that have a population of them; else the last."""
    marked = [found for found in report.layers if found.has_artefacts]
    return max(marked, key=_share) if marked else report.layers[-1]


def _verdict(report: ArtefactReport) -> str:
    first = report.first_outlier_layer
    if first is None:
        return (
            "No artefacts: in no layer do the norms of patches fall into ordinary ones and a population far above them."
        )
    shown = _shown_layer(report)
    images = shown.rules[MAIN_RULE].num_images / report.num_images
    origin = f"Block {first} writes them" if first else "They are in the embedding already"
    median, largest = number(shown.patches.quantile(0.5)), number(shown.patches.maximum)
    return (
        f"Artefacts: after block {shown.layer}, {_percent(_share(shown))} of the patches, in {_percent(images)} of the images, "
        f"have norms far above the others (median {median}, largest {largest}). {origin}."
    )


def _norm_chart(report: ArtefactReport) -> str:
    layers = report.layers

    def quantiles(share: float) -> np.ndarray:
        return np.array([found.patches.quantile(share) for found in layers])

    bands = [(WIDE, quantiles(0.01), quantiles(0.99)), (NARROW, quantiles(0.25), quantiles(0.75))]
    lines = [(PATCH, quantiles(0.5)), (OUTLIER, np.array([found.patches.maximum for found in layers]))]
    lines.append((CLS, np.array([found.cls.quantile(0.5) for found in layers])))
    lines += [
        (REGISTER, np.array([found.registers[i].quantile(0.5) for found in layers]))
        for i in range(report.num_registers)
    ]
    keys = [
        Key(WIDE, "98 % of patches"),
        Key(NARROW, "50 %"),
        Key(PATCH, "median"),
        Key(OUTLIER, "largest"),
        Key(CLS, "class token"),
    ]
    keys += [Key(REGISTER, "registers")] if report.num_registers else []
    return _picture(_under(band_chart(bands, lines, width=WIDTH), key_strip(keys)), "norms of tokens after each block")


def _distribution(report: ArtefactReport) -> str:
    counts = np.stack([
        found.patches.counts.view(-1, PER_OCTAVE // BINS_PER_OCTAVE).sum(dim=1).numpy() for found in report.layers
    ])  # fmt: skip
    together = counts.sum(axis=0)
    first = int(np.searchsorted(together.cumsum(), LEFT_OUT * together.sum()))
    last = int(np.flatnonzero(together)[-1])
    counts = counts[:, first : last + 1]
    edges = LOWEST * 2.0 ** (np.arange(first, last + 2) / BINS_PER_OCTAVE)
    chart, scale = layer_histogram(counts.astype(np.float64), edges, width=WIDTH)
    note = f"Of each layer's patches; the smallest {_percent(LEFT_OUT)} of all norms are left out."
    sheet = _picture(_under(chart, colour_bar(scale)), "distribution of patch norms after each block")
    return f"<figure>{sheet}<figcaption>{note}</figcaption></figure>"


def _positions(report: ArtefactReport, shown: LayerFindings) -> str:
    grid = max(report.grids, key=lambda each: report.grids[each])
    frequency = 100 * report.position_frequency(shown.layer, grid).numpy()
    if not frequency.any():
        return '<p class="soft">No patch is an artefact in any image.</p>'
    scale = Scale.of(frequency, "images in which the patch is an artefact, %", zero=True)
    side = 420
    height = round(side * grid[0] / grid[1])
    sheet = _under(heat_map(frequency, scale, (height, side)), colour_bar(scale))
    most = _percent(float(frequency.max()) / 100)
    note = f"{report.grids[grid]} images of {grid[0]} x {grid[1]} patches; the most frequent place in {most} of them."
    return f"<figure>{_picture(sheet, 'where artefacts are')}<figcaption>{note}</figcaption></figure>"


def _budget(report: ArtefactReport) -> str:
    colours = [CLS, REGISTER, OUTLIER, PATCH, (150, 90, 170)]
    names = ["class token", "registers", "outlier patches", "other patches", "added key"]

    def shares(budget: dict[str, float]) -> list[float]:
        registers = sum(share for name, share in budget.items() if name.startswith("register_"))
        return [
            max(0.0, s) for s in (budget["cls"], registers, budget["outliers"], budget["normal"], budget["elsewhere"])
        ]

    rows = [("of all tokens", shares(report.budget)), ("of patches alone", shares(report.budget_of_patches))]
    used = [i for i in range(5) if any(row[i] > 0 for _, row in rows)]
    bars = stacked_bars([(name, [row[i] for i in used]) for name, row in rows], [colours[i] for i in used], width=WIDTH)
    return _picture(_under(bars, key_strip([Key(colours[i], names[i]) for i in used])), "attention of the class token")


def _layer_table(report: ArtefactReport) -> str:
    head = ["after block", "median", "99th percentile", "largest", "class token", "artefacts", "images with artefacts"]
    rows = []
    for found in report.layers:
        cells = [
            str(found.layer) if found.layer else "0 (embedding)",
            *(
                number(value)
                for value in (found.patches.quantile(0.5), found.patches.quantile(0.99), found.patches.maximum)
            ),
            number(found.cls.quantile(0.5)),
            _percent(_share(found)),
            _percent(found.rules[MAIN_RULE].num_images / report.num_images),
        ]
        rows.append(("bad" if found.has_artefacts else "", cells))
    return (
        _table(head, rows)
        + '<p class="soft">Coloured: the norms of all images together have a population of outliers.</p>'
    )


def _rule_table(report: ArtefactReport, shown: LayerFindings) -> str:
    rows = []
    for name, count in shown.rules.items():
        median = count.thresholds.quantile(0.5)
        threshold = number(median) if count.thresholds.total else "-"
        share = count.num_outliers / max(shown.patches.total, 1)
        images = count.num_images / report.num_images
        cells = [
            f"<code>{_text(name)}</code> {_text(report.rules[name])}",
            threshold,
            _percent(share),
            _percent(images),
        ]
        rows.append(("", cells))
    note = (
        "A percentile marks its share of any network, 3 sigma is blind to 10 % and more, 150 fits DINOv2's giant only."
    )
    return _table(["rule", "median threshold", "of patches", "of images"], rows) + f'<p class="soft">{note}</p>'


def _examples(looks: Sequence[Look]) -> str:
    figures = []
    for found in looks:
        layer = telling_layer(found)
        mask = found.outliers[layer].reshape(found.grid).numpy()
        ground = canvas(found)
        scale = Scale.logarithmic(found.norm_map(layer), "norm")
        norms = outline_patches(heat_map(found.norm_map(layer), scale, (ground.height, ground.width)), mask)
        half = EXAMPLE_WIDTH // 2
        pictures = [fit_width(image, half) for image in (outline_patches(ground, mask), norms)]
        sheet = Image.new("RGB", (2 * half + 4, pictures[0].height), PAPER)
        for i, picture in enumerate(pictures):
            sheet.paste(picture, (i * (half + 4), 0))
        norm = found.norms[layer, found.prefix :]
        marked = f"{int(mask.sum())} of {mask.size} patches after block {layer}"
        text = f"{found.name}: {marked}, norms {number(float(norm.min()))} to {number(float(norm.max()))}"
        figures.append(f"<figure>{_picture(sheet, found.name)}<figcaption>{_text(text)}</figcaption></figure>")
    return f'<div class="grid">{"".join(figures)}</div>'


def _failed(report: ArtefactReport) -> str:
    rows = [("", [_text(name), _text(code)]) for name, code in report.failed[:MAX_FAILED]]
    rest = len(report.failed) - MAX_FAILED
    more = f'<p class="soft">and {rest} more; --json lists all.</p>' if rest > 0 else ""
    return _table(["image", "reason"], rows) + more
