"""`dinokit demo`: the main job from beginning to end on real photographs, without a network.

The model is the tiny one that comes with the package, trained on calculated images alone: what one gets, not how good DINOv2 is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import open_model, say
from dinokit.errors import DinokitError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from dinokit.weights.load import Pretrained

# Photographs among what scikit-image ships inside its package; the rest there are diagrams and microscopy.
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png",
               "camera.png", "coins.png", "grass.png", "gravel.png", "brick.png", "moon.png")  # fmt: skip
SHOWN = 4  # photographs in the picture of patches
CAT = "chelsea.png"


@click.command()
@click.option("--out", "-o", type=click.Path(path_type=Path, file_okay=False), default="demo-out", show_default=True)
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True), multiple=True, help="Your own files or folders instead."
)
@click.option("--model", "-m", help="A model of your choice instead of the tiny one that comes along.")
@click.option(
    "--artefacts", is_flag=True, help="The registers paper on a constructed model: artefacts found and repaired."
)
def command(out: Path, images: tuple[Path, ...], model: str | None, artefacts: bool) -> None:
    """Embed a dozen photographs, compare them, look at their patches, and write what you get into a folder.

    \b
    dinokit demo
    dinokit demo --artefacts
    dinokit demo --model facebook/dinov2-with-registers-small --images photos/
    """
    from dinokit.atomic import write_atomically, write_json
    from dinokit.cli.sheet import similarity_sheet
    from dinokit.extract import embed_images, list_images
    from dinokit.weights.zoo import OFFLINE_MODEL

    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    if artefacts:
        from dinokit.cli import planted_demo

        planted_demo.run(out)
        return
    paths = list_images(images) if images else [str(path) for path in bundled_photographs()]
    if not paths:
        raise click.UsageError("no images there; name files, or folders with .jpg, .png, ... below them.")
    if model is None:
        model = OFFLINE_MODEL
        say("The model is TINY and has seen calculated images alone: it knows textures and edges, and nothing of cats.")
        say("With a network that does: dinokit demo --model facebook/dinov2-with-registers-small\n")
    pre = open_model(model)
    click.echo(_describe(pre))
    rows = [row for row in embed_images(pre, paths, pool="cls+mean") if _reported(row)]
    if not rows:
        raise click.UsageError("none of the images could be read.")
    vectors = _normalised([row.embedding for row in rows])
    similarity = vectors @ vectors.T
    kept = [Path(row.path) for row in rows]
    click.echo(_neighbours(kept, similarity))
    write_json(out / "embeddings.json", {"paths": [str(path) for path in kept], "embeddings": vectors.tolist()})
    click.echo(f"\nwrote {out / 'embeddings.json'} ({len(rows)} x {vectors.shape[1]})")
    pictures = {"similarity.png": similarity_sheet(kept, similarity, title=_title(pre)), **_looked_at(pre, kept)}
    for name, picture in pictures.items():
        write_atomically(out / name, lambda file, picture=picture: picture.save(file, "PNG"))  # type: ignore[misc]
        click.echo(f"wrote {out / name}")
    say(f"done in {time.perf_counter() - start:.1f} s")
    say(_next_steps(model))


def bundled_photographs() -> list[Path]:
    """Those of scikit-image that are on disk.

    Raises:
        DinokitError: scikit-image is not installed.
    """
    import importlib.util

    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise DinokitError(
            "the demo's photographs come with scikit-image, which is not installed: pip install 'dinokit[demo]', or use --images."
        )
    folder = Path(found.origin).parent / "data"
    return [folder / name for name in PHOTOGRAPHS if (folder / name).is_file()]


def _looked_at(pre: Pretrained, paths: list[Path]) -> dict[str, Image.Image]:
    """Patches of the first photographs as colours, and attention in one: the cat, if she is there."""
    from dinokit.inspection import see, see_maps
    from dinokit.inspection.look import look

    looks = [look(pre, str(path), name=path.name) for path in paths[:SHOWN]]
    cat = next((found for found, path in zip(looks, paths, strict=False) if path.name == CAT), looks[0])
    return {
        "patches.png": see_maps.pca(looks, see_maps.fit_basis(looks)).picture,
        "attention.png": see.attention(cat).picture,
    }


def _reported(row: Any) -> bool:
    if row.error_code:
        say(f"{row.error_code}: {row.error}")
    return row.embedding is not None


def _normalised(vectors: list[Any]) -> np.ndarray:
    """Rows of length 1, after the mean of the collection is taken off: what all pictures share says nothing about any."""
    import numpy as np

    stacked = np.stack(vectors).astype(np.float64)
    centred = stacked - stacked.mean(axis=0) if len(stacked) > 2 else stacked
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def _describe(pre: Pretrained) -> str:
    from dinokit.model.cost import num_parameters

    config = pre.config
    return (
        f"model      {pre.provenance.name} ({num_parameters(config) / 1e6:.1f} M parameters, {config.num_register_tokens} registers, "
        f"{pre.provenance.layout} layout, sha256 {pre.provenance.sha256[:12]})\n"
        f"image ->   {1 + config.num_register_tokens} + {(224 // config.patch_size) ** 2} tokens of {config.embed_dim} at 224 x 224; "
        f"the embedding here is class token + mean patch"
    )


def _neighbours(paths: list[Path], similarity: np.ndarray) -> str:
    lines = [f"\n{'photograph':<24} {'nearest':<24} cosine"]
    for i, path in enumerate(paths):
        others = [j for j in range(len(paths)) if j != i]
        if others:
            nearest = max(others, key=lambda j: float(similarity[i, j]))
            lines.append(f"{path.name:<24} {paths[nearest].name:<24} {similarity[i, nearest]:+.3f}")
    return "\n".join(lines)


def _title(pre: Pretrained) -> str:
    config = pre.config
    return f"Cosine similarity of embeddings ({pre.provenance.name}, {config.embed_dim} wide, {config.num_register_tokens} registers)"


def _next_steps(model: str) -> str:
    return (
        f"\nNext:  dinokit info {model}\n"
        f"       dinokit embed YOUR_PHOTOS/ --model facebook/dinov2-with-registers-small --out photos.npz\n"
        f"       dinokit convert {model} tiny.pth --to official"
    )
