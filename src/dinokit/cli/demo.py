"""`dinokit demo`: the main job from beginning to end on real photographs, without a network.

No trained weights ship with the package yet: the model is a small one with random weights, written as a checkpoint and loaded like
any other, so the demo shows what one gets, not how good it is.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import open_model, say
from dinokit.errors import DinokitError

if TYPE_CHECKING:
    import numpy as np

    from dinokit.weights.load import Pretrained

# Photographs among what scikit-image ships inside its package; the rest there are diagrams and microscopy.
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "motorcycle_right.png",
               "camera.png", "coins.png", "grass.png", "gravel.png", "brick.png", "moon.png")  # fmt: skip
SEED = 0


@click.command()
@click.option("--out", "-o", type=click.Path(path_type=Path, file_okay=False), default="demo-out", show_default=True)
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True), multiple=True, help="Your own files or folders instead."
)
@click.option("--model", "-m", help="A model of your choice instead of the small one with random weights.")
@click.option(
    "--artefacts", is_flag=True, help="The registers paper on a constructed model: artefacts found and repaired."
)
def command(out: Path, images: tuple[Path, ...], model: str | None, artefacts: bool) -> None:
    """Embed a dozen photographs, compare them, and write what you get into a folder.

    \b
    dinokit demo
    dinokit demo --artefacts
    dinokit demo --model facebook/dinov2-with-registers-small --images photos/
    """
    from dinokit.atomic import write_atomically, write_json
    from dinokit.cli.sheet import similarity_sheet
    from dinokit.extract import embed_images, list_images

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
        model = str(write_random_checkpoint(out / "model"))
        say("The model has RANDOM weights: this shows what dinokit does, not how good DINOv2 is.")
        say("With a network: dinokit demo --model facebook/dinov2-with-registers-small\n")
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
    sheet = similarity_sheet(kept, similarity, title=_title(pre, model))
    write_atomically(out / "similarity.png", lambda file: sheet.save(file, "PNG"))
    click.echo(f"\nwrote {out / 'embeddings.json'} ({len(rows)} x {vectors.shape[1]}) and {out / 'similarity.png'}")
    say(f"done in {time.perf_counter() - start:.1f} s")
    say(_next_steps(out))


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


def write_random_checkpoint(folder: Path) -> Path:
    """A small network with registers and seeded random weights, as a folder in the hub's layout."""
    import torch

    from dinokit.config import SIZE_ANTIALIAS, ViTConfig
    from dinokit.images import ImageTransform
    from dinokit.model import VisionTransformer
    from dinokit.weights.load import Pretrained, Provenance
    from dinokit.weights.save import save

    config = ViTConfig(
        embed_dim=192,
        depth=4,
        num_heads=3,
        ffn_dim=768,
        num_register_tokens=4,
        image_size=(224, 224),
        position=SIZE_ANTIALIAS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = VisionTransformer(config).eval()
        for module in network.blocks.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.xavier_uniform_(module.weight)  # 0.02 would leave the tokens as they came in
    pretrained = Pretrained(
        model=network,
        transform=ImageTransform.dinov2(),
        provenance=Provenance(name="random", path=folder, files=(), layout="official"),
    )
    return save(pretrained, folder, "hf", overwrite=True)


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


def _title(pre: Pretrained, model: str) -> str:
    kind = "random weights" if Path(model).is_dir() and Path(model).name == "model" else pre.provenance.name
    return f"Cosine similarity of embeddings ({kind}, {pre.config.embed_dim} wide, {pre.config.num_register_tokens} registers)"


def _next_steps(out: Path) -> str:
    example = json.dumps(str(out / "model"))[1:-1]
    return (
        f"\nNext:  dinokit info {example}\n"
        f"       dinokit embed YOUR_PHOTOS/ --model facebook/dinov2-with-registers-small --out photos.npz\n"
        f"       dinokit convert {example} tiny.pth --to official"
    )
