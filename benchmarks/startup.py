"""From the start of a process to the first embedding of an image file, the network in a local folder: dinokit and transformers.

    python benchmarks/startup.py [--variant vitb14_reg] [--rounds 9] [--out startup.json]
    python benchmarks/startup.py --imports      # where dinokit's own start goes, module by module

Until the embedding is printed; processes are started in turn, files are in the page cache; ratios round by round to transformers.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
from peers import fresh, networks

TRANSFORMERS_AUTO = """
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
processor, model = AutoImageProcessor.from_pretrained({folder!r}), AutoModel.from_pretrained({folder!r})
with torch.inference_mode():
    print(model(**processor(Image.open({image!r}), return_tensors="pt")).last_hidden_state[0, 0, :3])
"""
TRANSFORMERS_CLASS = """
import torch
from PIL import Image
from transformers import BitImageProcessorPil, Dinov2WithRegistersModel
processor = BitImageProcessorPil.from_pretrained({folder!r})
model = Dinov2WithRegistersModel.from_pretrained({folder!r})
with torch.inference_mode():
    print(model(**processor(Image.open({image!r}), return_tensors="pt")).last_hidden_state[0, 0, :3])
"""
DINOKIT = """
import dinokit
print(dinokit.load({folder!r})({image!r}).cls[0, :3])
"""
BASE = "transformers, auto classes"
PROFILE_TOP = 25


def commands(folder: Path, image: Path) -> dict[str, list[str]]:
    """What is compared."""

    def code(text: str) -> list[str]:
        return [sys.executable, "-c", text.format(folder=str(folder), image=str(image))]

    return {
        BASE: code(TRANSFORMERS_AUTO),
        "transformers, classes by name": code(TRANSFORMERS_CLASS),
        "dinokit, Python": code(DINOKIT),
        "dinokit embed": [fresh.console_script(), "embed", str(image), "--model", str(folder)],
        "import torch, nothing else": code("import torch\nprint(torch.__version__)"),
    }


def photograph(path: Path) -> Path:
    """A 500 px JPEG."""
    if not path.is_file():
        from PIL import Image
        from skimage import data

        Image.fromarray(data.astronaut()).resize((500, 500)).save(path, quality=90)
    return path


def imports(code: str) -> str:
    """The dearest modules of a start, by `-X importtime`: own and cumulative milliseconds."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], check=True, capture_output=True, text=True)
    found = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|(\s+)(\S+)", done.stderr)
    dearest = sorted(found, key=lambda row: -int(row[1]))[:PROFILE_TOP]
    lines = [[name, f"{int(own) / 1e3:.0f}", f"{int(total) / 1e3:.0f}"] for own, total, _, name in dearest]
    return common.table(lines, ("module", "own, ms", "with what it imports, ms"))


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    networks.make(arguments.variant, 224, arguments.work, [])
    folder, image = arguments.work / arguments.variant, photograph(arguments.work / "photograph.jpg")
    if arguments.imports:
        print(imports(DINOKIT.format(folder=str(folder), image=str(image))))
        return
    todo = commands(folder, image)
    todo = {name: todo[name] for name in arguments.only or todo}
    samples, peaks, failed = fresh.compare(
        todo, arguments.rounds, arguments.threads, warm=arguments.rounds > 1, to_first_line=True
    )
    found = fresh.rows(samples, peaks, BASE)
    print(table(found))
    for name, why in failed.items():
        print(f"{name}: {why}")
    settings = {key: getattr(arguments, key) for key in ("variant", "rounds", "threads")}
    common.write_result(arguments.out, "startup", settings, rows=found, failed=failed)


def table(found: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    head = ("process", "s", "x", "quartiles of x", "peak RSS, MiB", "clean")
    return common.table([row(one) for one in found], head)


def row(one: dict[str, Any]) -> list[str]:
    return [
        one["name"],
        f"{one['seconds']:.2f}",
        *common.ratio_cells(one["ratio"]),
        f"{one['peak_rss_mib']:.0f}",
        common.clean_cell(one),
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=list(networks.CONFIGS), default="vitb14_reg")
    parser.add_argument("--rounds", type=int, default=9, help="clean rounds wanted")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the table's first column")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--imports", action="store_true", help="only show what dinokit's imports cost")
    parser.add_argument("--work", type=Path, default=common.WORK, help="where networks are kept between runs")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
