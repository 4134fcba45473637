"""`dinokit demo --artefacts`: the registers paper on the planted model, where every number is known; with pictures.

The model is constructed, not trained (`dinokit.analysis.planted`): it shows the tools, and what they must find.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dinokit.cli.common import say

if TYPE_CHECKING:
    from PIL import Image

    from dinokit.inspection.look import Look
    from dinokit.weights.load import Pretrained

MARKERS = (3, 9)


def run(out: Path) -> None:
    """Find the planted artefacts, find the neurons that write them, move them to a register; four pictures in `out`."""
    from dinokit.inspection import see, see_maps
    from dinokit.inspection.look import look
    from dinokit.repair import TestTimeRegisters, calibrate

    pre, picture = planted_pretrained(), planted_picture()
    say(
        "The model is CONSTRUCTED: two patches become artefacts by design, so that every number below is known beforehand.\n"
    )
    before = look(pre, picture, name="two marker patches")
    found = calibrate(pre.model, [pre.pixels(picture)], norm_block=-2, top_block=2)
    names = ", ".join(f"block {block} neuron {neuron}" for block, neuron in found.neurons)
    form = TestTimeRegisters(pre.model, found.neurons)
    repaired = replace(pre, model=form, provenance=replace(pre.provenance, name="planted model, repaired"))
    after = look(repaired, picture, name="the same patches")
    click.echo(_table(before, after))
    click.echo(f"\nwritten by  {names}   (planted: block 2 neuron 3, block 2 neuron 7)")
    for name, seen in {
        "planted_norms.png": see_maps.norms(before),
        "planted_attention.png": see.attention(before),
        "repaired_norms.png": see_maps.norms(after),
        "repaired_attention.png": see.attention(after),
    }.items():
        _save(seen.picture, out / name)
        click.echo(f"wrote {out / name}")
    say(
        "\nOn your own images and model:  dinokit see IMAGE --kind norms;  dinokit repair FOLDER --out repair.safetensors"
    )


def planted_pretrained() -> Pretrained:
    """The planted model with a transform under which a picture's colours are its input."""
    from dinokit.analysis.planted import planted
    from dinokit.images import ImageTransform
    from dinokit.model import VisionTransformer
    from dinokit.weights.load import Pretrained, Provenance

    config, weights = planted()
    model = VisionTransformer(config).eval()
    model.load_state_dict(weights)
    colours = replace(ImageTransform.squash(config.image_size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    provenance = Provenance(name="planted model", path=Path("planted"), files=(), layout="official")
    return Pretrained(model=model, transform=colours, provenance=provenance)


def planted_picture() -> Image.Image:
    """The picture whose red patches become artefacts."""
    import numpy as np
    from PIL import Image

    from dinokit.analysis.planted import planted_image

    return Image.fromarray((255 * planted_image(MARKERS)[0].permute(1, 2, 0).numpy()).astype(np.uint8))


def _table(before: Look, after: Look) -> str:
    """Norms after each block, as the model is and repaired."""
    from dinokit.inspection import see_maps

    lines = [f"{'':<14}{'as it is':^28}{'with a test-time register':^34}"]
    lines.append(
        f"{'layer':<14}{'median':>8}{'largest':>9}{'outliers':>10}{'median':>12}{'largest':>9}{'register':>10}"
    )
    rows = zip(see_maps.norms(before).numbers["layers"], see_maps.norms(after).numbers["layers"], strict=True)
    for old, new in rows:
        lines.append(
            f"{old['after_block']:<14}{old['median']:>8.2f}{old['max']:>9.2f}{len(old['outliers']):>10}"
            f"{new['median']:>12.2f}{new['max']:>9.2f}{new['registers'][0]:>10.2f}"
        )
    return "\n".join(line.rstrip() for line in [*lines, "(layer 0 enters the first block; block i makes layer i + 1)"])


def _save(picture: Image.Image, path: Path) -> None:
    from dinokit.atomic import write_atomically

    write_atomically(path, lambda file: picture.save(file, "PNG"))
