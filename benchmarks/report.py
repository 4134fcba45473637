"""The tables of docs/performance.md, made from the JSON files in benchmarks/results, so that no figure is typed by hand.

    python benchmarks/report.py            # fills the page
    python benchmarks/report.py --check    # exit code 1 where the page is not what the files give

A table stands between `<!-- name -->` and `<!-- end name -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import folder
import forward
import scaling
import startup

PAGE = common.HERE.parent / "docs" / "performance.md"
NOT_RUN = "*Not measured yet: `benchmarks/run_all.sh` fills this table.*"
MARK = "An exclamation mark: fewer than three rounds were free of other processes, so all rounds are in the figure."
# what people ask for
SHOWN = ("float32", "bfloat16", "int16", "int8")
SUMMARY = {
    "onnxruntime-float32": "onnxruntime", "openvino-float32": "OpenVINO", "dinokit-float32": "dinokit, library",
    "dinokit-float32-kept": "dinokit, commands", "onnxruntime-int8": "onnxruntime int8", "dinokit-int8-kept": "dinokit int8",
    "dinokit-int16-kept": "dinokit int16",
}  # fmt: skip


def conditions(result: dict[str, Any]) -> str:
    """Machine, versions and day in a sentence or two."""
    machine, found = result["machine"], result["versions"]
    has = [word for word in ("bf16", "amx", "vnni") if machine.get(word)]
    lacks = [word for word in ("bf16", "amx", "vnni") if not machine.get(word)]
    parts = [
        machine.get("name", machine["kind"]),
        f"{machine['vector']}{''.join(f', {word}' for word in has)}" if "vector" in machine else "",
        f"without {', '.join(lacks)}" if lacks and machine["kind"] == "cpu" else "",
        f"{machine['threads']} threads on {machine['cpus']} processors" if machine["kind"] == "cpu" else "",
        f"{machine['memory_gib']} GiB",
    ]
    packages = ", ".join(f"{name} {version}" for name, version in found.items())
    return f"Measured {result['made']} on {', '.join(part for part in parts if part)}; {packages}."


def limits(result: dict[str, Any]) -> str:
    """How near transformers is to what matrices allow, and so how much faster any float32 engine can be."""
    rows = []
    for case in result["cases"]:
        found = {one["engine"]: one for one in case.get("engines", [])}
        base, ours = found.get("transformers-float32"), found.get("dinokit-float32-kept")
        if base is None or ours is None:
            continue
        rows.append(
            [
                name_of(case),
                f"{case['ceiling_gflops']['float32']:.0f}",
                f"{base['gflops']:.0f}",
                f"{base['ceiling_share']:.0%}",
                f"{1 / base['ceiling_share']:.2f}",
                common.ratio_cells(ours["ratio"])[0],
                f"{ours['ceiling_share']:.0%}",
            ]
        )
    head = (
        "case", "ceiling, GFLOP/s", "transformers, GFLOP/s", "of ceiling", "most any engine can gain, x", "dinokit gains, x",
        "of ceiling",
    )  # fmt: skip
    return common.table(rows, head)


def summary(result: dict[str, Any]) -> str:
    """Ratios to transformers in float32, a row a case."""
    rows, skipped = [], []
    for case in result["cases"]:
        found = {one["engine"]: one for one in case.get("engines", [])}
        if not found:
            skipped.append(f"{name_of(case)}: {case['skipped'].get('all', 'no engine')}")
            continue
        base = found[case["base"]]
        cells = [common.ratio_cells(found[name]["ratio"])[0] if name in found else "" for name in SUMMARY]
        rows.append([name_of(case), f"{1e3 * base['seconds']:.0f}", *cells])
    words = "\n".join(f"* {line}" for line in skipped)
    head = ("case", "transformers, ms", *SUMMARY.values())
    return common.table(rows, head) + (f"\n\nNot measured:\n\n{words}" if words else "") + f"\n\n{MARK}"


def details(result: dict[str, Any]) -> str:
    """Every case in full, then what was skipped everywhere."""
    reasons: dict[str, list[str]] = {}
    parts = []
    for case in result["cases"]:
        for name, why in case["skipped"].items():
            reasons.setdefault(f"{name}: {why}", []).append(name_of(case))
        if "engines" in case:
            parts.append(forward.text({**case, "skipped": {}}).strip())
    every = len(result["cases"])
    lines = [f"* {why}" + ("" if len(cases) == every else f" ({'; '.join(cases)})") for why, cases in reasons.items()]
    return "\n\n".join([*parts, "Not run:\n\n" + "\n".join(lines)] if lines else parts)


def name_of(case: dict[str, Any]) -> str:
    return f"{case['variant']}, {case['size']} px, batch {case['batch']}"


def engine_rates(result: dict[str, Any]) -> str:
    """Of `folder`: what the engine alone does, and how many images there were."""
    alone = ", ".join(f"{dtype} {one['per_second']:.2f} images/s" for dtype, one in result["engine"].items())
    words = f"{result['settings']['images']} images; the engine alone: {alone}. {MARK}"
    failed = "".join(f"\n* {name}: {why}" for name, why in result["failed"].items())
    return words + (f"\n{failed}" if failed else "")


def decisions() -> str:
    """The rows by which the engine decides, as they are in the code."""
    from dinokit.engine import ROWS, Machine, decide

    machines = {
        "Intel CPU with AMX": Machine(intel=True, mkl=True, onednn=True, bf16=True, amx=True, vnni=True, int8=True),
        "Intel CPU, AVX-512, no bfloat16": Machine(intel=True, mkl=True, onednn=True, vnni=True, int8=True),
        "AMD CPU with bfloat16": Machine(mkl=True, onednn=True, bf16=True, vnni=True, int8=True),
        "CPU with AVX2": Machine(vector="AVX2", mkl=True, onednn=True, int8=True, kernels=True),
        "the same, built without a C compiler": Machine(vector="AVX2", mkl=True, onednn=True, int8=True),
        "NVIDIA GPU": Machine(kind="cuda", bf16=True),
        "Apple GPU": Machine(kind="mps"),
    }
    rows = [[name, *(str(decide(machine, asked)) for asked in SHOWN)] for name, machine in machines.items()]
    reasons = "\n".join(f"* {row.asked}, {row.plan!s}: {row.why}." for row in ROWS)
    return f"{common.table(rows, ('machine', f'asked for {SHOWN[0]}', *SHOWN[1:]))}\n\nThe rows, first to last:\n\n{reasons}"


def with_conditions(text: str, result: dict[str, Any]) -> str:
    return f"{text}\n\n{conditions(result)}"


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "summary": ("forward", lambda found: with_conditions(summary(found), found)),
    "limits": ("forward", limits),
    "details": ("forward", details),
    "startup": ("startup", lambda found: with_conditions(startup.table(found["rows"]), found)),
    "folder": (
        "folder",
        lambda found: with_conditions(f"{folder.table(found['rows'])}\n\n{engine_rates(found)}", found),
    ),
    "scaling": ("scaling", lambda found: with_conditions(scaling.table(found["rows"]), found)),
    "cuda": ("forward-cuda", lambda found: with_conditions(details(found), found)),
}


def filled(page: str, results: Path) -> str:
    """The page with its tables as the files give them."""
    for name, (source, render) in TABLES.items():
        path = results / f"{source}.json"
        text = render(json.loads(path.read_text())) if path.is_file() else NOT_RUN
        page = replaced(page, name, text)
    return replaced(page, "decisions", decisions())


def replaced(page: str, name: str, text: str) -> str:
    """The page with what stands between the marks of `name` replaced; as it is where there are none."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    page = arguments.page.read_text()
    new = filled(page, arguments.results)
    if arguments.check:
        sys.exit(0 if new == page else f"{arguments.page.name} is not what the results give; run benchmarks/report.py.")
    arguments.page.write_text(new)
    common.say(f"filled {arguments.page.name}")


if __name__ == "__main__":
    main()
