"""One function a picture: where tokens look, and what resembles them. Norms, PCA and segments are in `see_maps`.

Each takes what `look` found and gives a `Seen`: a panel, and plain values for JSON. Nothing runs the network again.
Source: attention of the class token: Caron et al. 2021, Fig. 1; of registers: Darcet et al. 2024, Fig. 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import ImageChops

from dinokit.analysis.attention import attention_budget, mass_mask
from dinokit.analysis.charts import CLS, OUTLIER, PATCH, REGISTER, stacked_bars
from dinokit.analysis.colour import Scale, number
from dinokit.analysis.panel import MARGIN, Key, Section, Tile, panel, panel_width
from dinokit.analysis.render import enlarge, mark_patch
from dinokit.analysis.similarity import patch_at, similarity_map, similarity_maps
from dinokit.inspection.drawn import (
    Map,
    Seen,
    about,
    balanced,
    block,
    canvas,
    heat_tile,
    outlier_keys,
    overlay_tile,
    peak,
    photo_tile,
    span,
    subtitle,
)
from dinokit.inspection.look import Look

PERCENTILE = 99.5  # one sink must not darken all the rest; the legend's pointed end says that there is more
MASS = 0.6  # as in the masks of DINO, Fig. 8
ATTENTION = "attention to a patch, %"
BUDGET = {
    "class token": CLS,
    "registers": REGISTER,
    "outlier patches": OUTLIER,
    "other patches": PATCH,
    "added key": (150, 90, 170),
}


def attention(found: Look, head: int | None = None) -> Seen:
    """Where the class token and each register look in one block: the mean over heads, each head, and the budget of every head.

    `head` shows that one alone, 0-based or negative from the end.

    Raises:
        ValueError: a head that is not there.
    """
    heads = _heads(found, head)
    maps = 100 * found.attention_map().numpy()
    mean, count = maps.mean(axis=0), len(maps)
    scale = Scale.of(mean, ATTENTION, percentile=PERCENTILE, zero=True)
    tiles = [
        photo_tile(found),
        overlay_tile(found, mean, scale, "over the photograph"),
        heat_tile(found, mean, scale, "as the network has it", f"largest {number(float(mean.max()))} %"),
        overlay_tile(found, mean, scale, "edges from the photograph", smooth=True),
        _mass_tile(found, mean),
    ]
    sections = [Section(f"Class token, mean of {count} heads", tiles, scale, outlier_keys(found), columns=5)]
    scale = Scale.of(maps[heads], ATTENTION, percentile=PERCENTILE, zero=True)
    tiles = [
        overlay_tile(found, maps[h], scale, f"head {h}", f"largest {number(float(maps[h].max()))} %", strength=0.8)
        for h in heads
    ]
    heading = "Class token, head by head" if head is None else f"Class token, head {heads[0]}"
    sections.append(Section(heading, tiles, scale, columns=balanced(len(tiles))))
    if found.num_registers:
        sections.append(_attention_of_tokens(found, "Registers, mean of heads", 1))
    rows = budget(found)
    shown = [*(["mean of heads"] if head is None else []), *(f"head {h}" for h in heads)]
    sections.append(_budget_section({name: rows[name] for name in shown}))
    picture = panel(sections, title=f"Attention in {block(found)}", subtitle=subtitle(found))
    numbers = {
        **about(found),
        "layer": found.layer,
        "budget": {name: rows[name] for name in shown},
        "peaks": {f"head {h}": peak(maps[h] / 100) for h in heads},
    }
    return Seen(picture, numbers)


def budget(found: Look) -> dict[str, dict[str, float]]:
    """Shares of the class token's attention, by head and for their mean; each row sums to 1.

    "outlier patches" stand out before or after the block. "added key" is what goes to the key that a repair by attention bias adds.
    """
    outliers = found.outliers[found.layer] | found.outliers[found.layer + 1]
    spent = attention_budget(found.attention[None].double(), outliers[None], found.num_registers)
    parts = {
        "class token": spent.cls[0],
        "registers": spent.registers[0].sum(dim=-1),
        "outlier patches": spent.outliers[0],
        "other patches": spent.normal[0],
        "added key": spent.elsewhere[0],
    }
    rows = {
        f"head {h}": {name: float(values[h]) for name, values in parts.items()} for h in range(len(found.attention))
    }
    return {"mean of heads": {name: float(values.mean()) for name, values in parts.items()}, **rows}


def similarity(looks: Sequence[Look], query: tuple[int, int]) -> Seen:
    """Cosine of one patch, (row, column) in the first image, with every patch of all images.

    Raises:
        ValueError: outside of the grid, or no image.
    """
    if not looks:
        raise ValueError("no image to take the patch from.")
    token = patch_at(looks[0].features, *query)
    maps = [similarity_map(token, found.features).numpy() for found in looks]
    scale = Scale.of(np.concatenate([m.ravel() for m in maps]), "cosine with the marked patch")
    sections = []
    for i, (found, values) in enumerate(zip(looks, maps, strict=True)):
        marked = canvas(found) if i else mark_patch(canvas(found), query, found.grid)
        note = "" if i else f"patch in row {query[0]}, column {query[1]}"
        tiles = [
            Tile(marked, found.name or "photograph", note),
            heat_tile(found, values, scale, "cosine", f"mean {number(float(values.mean()))}, {span(values)}"),
            overlay_tile(found, values, scale, "over the photograph"),
            overlay_tile(found, values, scale, "edges from the photograph", smooth=True),
        ]
        sections.append(Section("" if i else "Patches like the marked one", tiles, None if i else scale))
    picture = panel(sections, title=f"Similarity after {block(looks[0])}", subtitle=subtitle(looks[0]))
    rows = [
        {**about(found), "mean": float(m.mean()), "min": float(m.min()), "nearest": _nearest(m, None if i else query)}
        for i, (found, m) in enumerate(zip(looks, maps, strict=True))
    ]
    return Seen(picture, {"query": list(query), "layer": looks[0].layer, "images": rows})


def registers(found: Look) -> Seen:
    """What each register attends to in one block, and which patches resemble it afterwards; the class token beside them.

    Raises:
        ValueError: the network has no registers.
    """
    if not found.num_registers:
        raise ValueError(f"{found.model} has no registers to look at.")
    maps = similarity_maps(found.tokens.sequence[0, : found.prefix], found.features).numpy()
    label = "cosine with a patch"
    scale = Scale.symmetric(maps, label) if maps.min() < 0 < maps.max() else Scale.of(maps, label)
    names = _token_names(found)
    tiles = [overlay_tile(found, m, scale, name, span(m), strength=0.8) for name, m in zip(names, maps, strict=True)]
    tiles = [photo_tile(found), *tiles]
    picture = panel(
        [
            _attention_of_tokens(found, "What each token attends to, mean of heads", 0),
            Section("Patches that resemble each token", tiles, scale, columns=balanced(len(tiles), 6)),
        ],
        title=f"Registers in {block(found)}",
        subtitle=subtitle(found),
    )
    spent = found.attention.mean(dim=0)
    rows = {
        name: {
            "norm": float(found.norms[found.layer + 1, i]),
            "attention_to_patches": float(spent[i, found.prefix :].sum()),
            "attention_peak": peak(found.attention_map(i).mean(dim=0).numpy()),
            "cosine_min": float(maps[i].min()),
            "cosine_max": float(maps[i].max()),
        }
        for i, name in enumerate(names)
    }
    return Seen(picture, {**about(found), "layer": found.layer, "tokens": rows})


def _budget_section(rows: dict[str, dict[str, float]]) -> Section:
    used = [
        name for name in BUDGET if name not in ("registers", "added key") or any(row[name] > 0 for row in rows.values())
    ]
    bars = [(name, [row[part] for part in used]) for name, row in rows.items()]
    chart = stacked_bars(bars, [BUDGET[name] for name in used], width=panel_width(4) - 2 * MARGIN)
    keys = [Key(BUDGET[name], name) for name in used]
    return Section("What the class token spends its attention on", chart=chart, keys=keys)


def _attention_of_tokens(found: Look, heading: str, first: int) -> Section:
    maps = np.stack([100 * found.attention_map(i).mean(dim=0).numpy() for i in range(first, found.prefix)])
    scale = Scale.of(maps, ATTENTION, percentile=PERCENTILE, zero=True)
    tiles = [
        overlay_tile(found, m, scale, name, f"{number(float(m.sum()))} % to patches", strength=0.8)
        for name, m in zip(_token_names(found)[first:], maps, strict=True)
    ]
    if first == 0:  # the registers' own panel begins with the photograph
        tiles = [photo_tile(found), *tiles]
    return Section(heading, tiles, scale, [] if first else outlier_keys(found), columns=balanced(len(tiles), 6))


def _mass_tile(found: Look, values: Map) -> Tile:
    """The photograph, dark but for the fewest patches that hold most of a map."""
    inside = mass_mask(torch.from_numpy(values).flatten(), MASS).reshape(found.grid).numpy()
    ground = canvas(found)
    lit = enlarge(
        np.where(inside[..., None], np.uint8(255), np.uint8(60)).repeat(3, axis=2), (ground.height, ground.width)
    )
    share = f"{100 * inside.mean():.0f} % of the patches"
    return Tile(ImageChops.multiply(ground, lit), f"{100 * MASS:.0f} % of what patches get", share)


def _token_names(found: Look) -> list[str]:
    return ["class token", *(f"register {i}" for i in range(1, found.prefix))]


def _heads(found: Look, head: int | None) -> list[int]:
    count = found.attention.shape[0]
    if head is None:
        return list(range(count))
    if not -count <= head < count:
        raise ValueError(f"head {head} of {count}: heads go from 0 to {count - 1}.")
    return [head % count]


def _nearest(values: Map, left_out: tuple[int, int] | None, count: int = 5) -> list[dict[str, Any]]:
    order = np.argsort(-values, axis=None, kind="stable")
    places = [divmod(int(i), values.shape[1]) for i in order[: count + 1]]
    kept = [place for place in places if place != left_out][:count]
    return [{"row": row, "column": column, "cosine": float(values[row, column])} for row, column in kept]
