"""A folder of JPEGs to embeddings, end to end in fresh processes: `dinokit embed`, and transformers' pipeline and classes.

    python benchmarks/folder.py [--images 1000] [--dtypes float32 int8] [--rounds 3] [--out folder.json]

The images are 500 px, cut from scikit-image's photographs at random places with noise, seeded. Times are of whole processes, start and
writing included. The engine's own rate (forward passes alone, batches of the same size) is measured in the same run. Embeddings
are compared with those of transformers' classes in float32.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import common
import numpy as np
from peers import driver, fresh, networks
from peers.engines import Job

VARIANT, CROP, EDGE = "vits14_reg", 224, 500
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
NOISE = 4.0

PIPELINE = """
import numpy as np, torch
from pathlib import Path
from transformers import pipeline
paths = sorted(str(path) for path in Path({images!r}).glob("*.jpg"))
embed = pipeline("image-feature-extraction", model={folder!r}, dtype=torch.{dtype}, batch_size={batch})
found = embed(paths, pool=True)
np.save({out!r}, np.array(found, np.float32).reshape(len(paths), -1))
"""
CLASSES = """
import numpy as np, torch
from pathlib import Path
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
paths = sorted(Path({images!r}).glob("*.jpg"))
processor = AutoImageProcessor.from_pretrained({folder!r})
model = AutoModel.from_pretrained({folder!r}, dtype=torch.{dtype})
found = []
with torch.inference_mode():
    for i in range(0, len(paths), {batch}):
        opened = [Image.open(path).convert("RGB") for path in paths[i : i + {batch}]]
        pixels = processor(opened, return_tensors="pt").to(torch.{dtype})
        found.append(model(**pixels).pooler_output.float().numpy())
np.save({out!r}, np.concatenate(found))
"""
CLI_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "int16": "int16", "int8": "int8"}
INTEGERS = ("int16", "int8")
BASE = "transformers pipeline float32"
TRUTH = "transformers classes float32"


def photographs(place: Path, count: int) -> Path:
    """A folder of `count` JPEGs; the first are the same whatever the count."""
    target = place / f"photographs-{count}"
    if len(list(target.glob("*.jpg"))) == count:
        return target
    from PIL import Image
    from skimage import data

    common.say(f"making {count} images ...")
    target.mkdir(parents=True, exist_ok=True)
    sources = [Image.fromarray(getattr(data, name)()) for name in PHOTOGRAPHS]
    rng = np.random.default_rng(networks.SEED)
    for i in range(count):
        source = sources[i % len(sources)]
        side = int(rng.integers(min(source.size) // 2, min(source.size) + 1))
        left, top = int(rng.integers(source.width - side + 1)), int(rng.integers(source.height - side + 1))
        cut = source.crop((left, top, left + side, top + side)).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
        noisy = np.asarray(cut, np.float32) + rng.normal(0.0, NOISE, (EDGE, EDGE, 1)).astype(np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(target / f"{i:05}.jpg", quality=90)
    return target


def commands(folder: Path, images: Path, out: Path, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """What is compared, by name; each writes its embeddings below `out` under its name."""
    native = networks_have_bfloat16()
    found = {}
    for dtype in arguments.dtypes:
        if dtype not in INTEGERS and (dtype != "bfloat16" or native or arguments.emulated):
            for name, code in (("pipeline", PIPELINE), ("classes", CLASSES)):
                label = f"transformers {name} {dtype}"
                text = code.format(
                    images=str(images),
                    folder=str(folder),
                    dtype=dtype,
                    batch=arguments.batch,
                    out=str(out / f"{label}.npy"),
                )
                found[label] = [sys.executable, "-c", text]
        if dtype != "bfloat16" or native:
            label = f"dinokit embed {dtype}"
            command = [fresh.console_script(), "embed", str(images), "--out", str(out / label), "--model", str(folder)]
            found[label] = [*command, "--dtype", CLI_DTYPES[dtype], "--batch-size", str(arguments.batch)]
    return found


def networks_have_bfloat16() -> bool:
    from dinokit.engine import look

    return look().bf16


def forget(out: Path, name: str) -> None:
    """Remove what a command wrote, or it would go on with it."""
    shutil.rmtree(out / name, ignore_errors=True)
    (out / f"{name}.npy").unlink(missing_ok=True)


def embeddings(out: Path, name: str) -> np.ndarray | None:
    """What a command wrote, in the order of the names of the images."""
    if (out / f"{name}.npy").is_file():
        return np.load(out / f"{name}.npy")
    if not (out / name).is_dir():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = pa.concat_tables([pq.read_table(path) for path in sorted((out / name).glob("*.parquet"))])
    rows = sorted(zip(found["path"].to_pylist(), found["embedding"].to_pylist(), strict=True))
    return np.array([vector for _, vector in rows], np.float32)


def agreement(out: Path, names: list[str]) -> dict[str, float]:
    """Smallest cosine of an embedding to that of transformers' classes in float32."""
    truth = embeddings(out, TRUTH)
    found = {}
    for name in names:
        given = embeddings(out, name)
        if truth is None or given is None or given.shape != truth.shape:
            continue
        a, b = given.astype(np.float64), truth.astype(np.float64)
        found[name] = float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).min())
    return found


def forward_rates(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Images/s of the engine alone, as the command runs it, in rounds of its own right before the processes."""
    jobs = {
        f"dinokit-{dtype}-kept": Job(
            f"dinokit-{dtype}-kept", arguments.variant, CROP, str(arguments.work), "cpu", arguments.threads
        )
        for dtype in arguments.dtypes
    }
    with driver.Crew(jobs) as crew:
        names = list(crew.workers)
        first = {name: crew.workers[name].ask("prepare", batch=arguments.batch, warm=1)["seconds"] for name in names}
        rounds = driver.Rounds(crew, names, first, sample_seconds=0.3)
        rounds.run(max(arguments.rounds, common.MIN_CLEAN), budget=30.0)
    return {jobs[name].engine.split("-")[1]: common.summarise(rounds.samples[name], arguments.batch) for name in names}


def main() -> None:
    arguments = parse()
    networks.make(arguments.variant, CROP, arguments.work, [])
    images, out = photographs(arguments.work, arguments.images), arguments.work / "embeddings"
    out.mkdir(exist_ok=True)
    rates = forward_rates(arguments)
    todo = commands(arguments.work / arguments.variant, images, out, arguments)
    todo = {name: todo[name] for name in arguments.only or todo}
    samples, peaks, failed = fresh.compare(
        todo,
        arguments.rounds,
        arguments.threads,
        warm=False,
        budget=arguments.seconds,
        before=lambda name: forget(out, name),
    )
    cosines = agreement(out, list(samples))
    rows = fresh.rows(samples, peaks, BASE if BASE in samples else next(iter(samples)), arguments.images)
    for one in rows:
        dtype = one["name"].split()[-1]
        one["dtype"], one["min_cosine"] = dtype, cosines.get(one["name"])
        ours = one["name"].startswith("dinokit")
        one["share_of_engine"] = one["per_second"] / rates[dtype]["per_second"] if ours and dtype in rates else None
    print(table(rows))
    for name, why in failed.items():
        print(f"{name}: {why}")
    if "bfloat16" in arguments.dtypes and not networks_have_bfloat16():
        print(
            "bfloat16: this CPU lacks the instructions; dinokit computes float32, transformers many times slower (--emulated)"
        )
    settings = {key: getattr(arguments, key) for key in ("variant", "images", "batch", "rounds", "threads", "dtypes")}
    common.write_result(arguments.out, "folder", settings, rows=rows, failed=failed, engine=rates)


HEAD = (
    "process", "s", "images/s", "x", "quartiles of x", "of the engine's rate", "peak RSS, MiB", "min cosine", "clean",
)  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    return common.table([row(one) for one in rows], HEAD)


def row(one: dict[str, Any]) -> list[str]:
    return [
        one["name"],
        f"{one['seconds']:.1f}",
        f"{one['per_second']:.2f}",
        *common.ratio_cells(one["ratio"]),
        f"{one['share_of_engine']:.0%}" if one["share_of_engine"] else "",
        f"{one['peak_rss_mib']:.0f}",
        f"{one['min_cosine']:.6f}" if one["min_cosine"] is not None else "",
        common.clean_cell(one),
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--variant", choices=list(networks.CONFIGS), default=VARIANT)
    parser.add_argument("--dtypes", nargs="+", choices=list(CLI_DTYPES), default=["float32", "bfloat16", *INTEGERS])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="clean rounds wanted")
    parser.add_argument("--seconds", type=float, default=1800.0, help="past these, three rounds in all are enough")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the table's first column")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--emulated", action="store_true", help="run transformers in bfloat16 even where it is emulated"
    )
    parser.add_argument(
        "--work", type=Path, default=common.WORK, help="where networks and images are kept between runs"
    )
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
