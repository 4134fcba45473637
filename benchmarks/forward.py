"""A forward pass by dinokit, transformers, onnxruntime, OpenVINO and timm: time, GFLOP/s, memory, and the error against float64.

    python benchmarks/forward.py [--cases vits14_reg:224:1,8 vitb14_reg:518:1] [--rounds 7] [--quick] [--out forward.json]
    python benchmarks/forward.py --device cuda --cases vitl14_reg:224:1,64,256 vitl14_reg:518:1,64,256 --out forward-cuda.json

Each engine is a process with its own memory and threads; they take turns, one pass or some at a time. Random weights, the same in all.
Ratios are to transformers in float32 (on a GPU bfloat16), round by round. A case that would take too long is skipped, and said.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
from peers import driver, networks
from peers.engines import ENGINES, WHOLE, Job

CASES = (
    "vits14_reg:224:1,8,32", "vits14_reg:518:1,8,32",
    "vitb14_reg:224:1,8,32", "vitb14_reg:518:1,8,32",
    "vitl14_reg:224:1,8,32", "vitl14_reg:518:1,8,32",
)  # fmt: skip
QUICK = ("vits14_reg:224:1,8", "vitb14_reg:224:1")
CPU_ENGINES = [
    "transformers-float32", "transformers-bfloat16", "timm-float32", "onnxruntime-float32", "onnxruntime-int8", "openvino-float32",
    "openvino-bfloat16", "dinokit-float32", "dinokit-float32-kept", "dinokit-bfloat16-kept", "dinokit-int16-kept", "dinokit-int8-kept",
]  # fmt: skip
CUDA_ENGINES = [
    "transformers-bfloat16", "transformers-bfloat16-flash", "transformers-bfloat16-compiled", "timm-bfloat16", "dinokit-bfloat16",
    "dinokit-bfloat16-compiled",
]  # fmt: skip
# How near to the ceiling a pass is taken to run, where its time is only estimated.
ASSUMED_SHARE = {"float32": 0.75, "bfloat16": 0.6, "int16": 0.6, "int8": 0.5}


@dataclass(frozen=True)
class Case:
    """A network at an image size, and the batch sizes."""

    variant: str
    size: int
    batches: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Case:
        variant, size, batches = text.split(":")
        if variant not in networks.CONFIGS:
            raise argparse.ArgumentTypeError(f"{variant!r} is none of {', '.join(networks.CONFIGS)}")
        return cls(variant, int(size), tuple(sorted(int(batch) for batch in batches.split(","))))

    def gflop(self, batch: int) -> float:
        from dinokit.model.cost import flops

        return batch * flops(networks.CONFIGS[self.variant], (self.size, self.size)) / 1e9


def main() -> None:
    arguments = parse()
    names = arguments.engines or (CPU_ENGINES if arguments.device == "cpu" else CUDA_ENGINES)
    results: list[dict[str, Any]] = []
    for case in arguments.cases:
        prepare(case, names, arguments.work)
        if arguments.prepare:
            continue
        for result in measure(case, names, arguments):
            results.append(result)
            print(text(result), flush=True)
            settings = {key: getattr(arguments, key) for key in ("device", "threads", "rounds", "case_seconds")}
            common.write_result(arguments.out, "forward", settings, cases=results)


def prepare(case: Case, names: list[str], work: Path) -> None:
    """Make the files that the engines read, and the reference, where they are missing."""
    needs = {"onnx": ("onnxruntime", "openvino"), "int8": ("onnxruntime-int8",)}
    wanted = [what for what, who in needs.items() if any(name.startswith(who) for name in names)]
    networks.make(case.variant, case.size, work, [*wanted, "reference"])


def measure(case: Case, names: list[str], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All batch sizes of a case, by the same workers, the smallest first."""
    dtypes = sorted({ENGINES[name].dtype for name in names})
    jobs = {
        name: Job(name, case.variant, case.size, str(arguments.work), arguments.device, arguments.threads)
        for name in [*(f"ceiling-{dtype}" for dtype in dtypes), *names]
    }
    with driver.Crew(jobs) as crew:
        for batch in case.batches:
            yield measure_batch(case, batch, [name for name in names if name in crew.workers], crew, arguments)


def measure_batch(
    case: Case, batch: int, names: list[str], crew: driver.Crew, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Warm up, rounds, and what each engine made of them."""
    common.say(f"{case.variant} {case.size} px, batch {batch} ...")
    gflop = case.gflop(batch)
    result: dict[str, Any] = {**asdict(case), "batch": batch, "gflop": gflop, "skipped": dict(crew.skipped)}
    del result["batches"]
    ceilings = [name for name in crew.workers if name.startswith("ceiling-")]
    first = {name: crew.workers[name].ask("prepare", batch=batch, warm=0) for name in ceilings}
    rates = {ENGINES[name].dtype: found["value"] for name, found in first.items()}
    names, late = affordable(names, gflop, rates, arguments.case_seconds)
    result["skipped"] |= late
    if not names:
        return result
    reference = str(networks.reference_file(case.variant, case.size, arguments.work))
    first |= {name: crew.workers[name].ask("prepare", batch=batch, warm=1, reference=reference) for name in names}
    seconds = {name: found["seconds"] for name, found in first.items()}
    rounds = driver.Rounds(crew, [*ceilings, *names], seconds, arguments.sample_seconds)
    rounds.run(arguments.rounds, arguments.case_seconds)
    # products are best where nothing disturbs them, so the ceiling is the best of the medians' neighbourhood: the upper quartile
    peaks = {
        ENGINES[name].dtype: common.quartiles(rounds.values[name] or [rates[ENGINES[name].dtype]])[2]
        for name in ceilings
    }
    result["ceiling_gflops"] = peaks
    base = names[0]
    result["base"] = base
    result["engines"] = [
        {
            "engine": name,
            "label": driver.label(name),
            "note": first[name]["note"],
            **(summary := common.summarise(rounds.samples[name], batch)),
            "gflops": gflop / summary["seconds"],
            "ceiling_share": gflop / summary["seconds"] / peaks[dtype]
            if (dtype := ENGINES[name].dtype) in peaks
            else None,
            "ratio": common.ratios(rounds.samples[base], rounds.samples[name]),
            "max_error": first[name]["max_error"],
            "min_cosine": first[name]["min_cosine"],
            **crew.workers[name].ask("memory"),
        }
        for name in names
    ]
    return result


def affordable(
    names: list[str], gflop: float, rates: dict[str, float], budget: float
) -> tuple[list[str], dict[str, str]]:
    """Engines for which warming up and three rounds fit the budget; the others with the estimate."""
    passes = 2 + common.MIN_CLEAN
    usual = rates.get("float32", 100.0)

    def seconds(dtype: str) -> float:
        return gflop / (rates.get(dtype, usual) * ASSUMED_SHARE[dtype])

    estimates = {name: seconds(ENGINES[name].dtype) for name in names}
    slow = {name for name in names if passes * estimates[name] > budget / 3}
    skipped = {name: f"skipped: about {estimates[name]:.0f} s a pass" for name in slow}
    kept = [name for name in names if name not in slow]
    total = passes * sum(estimates[name] for name in kept)
    if total > budget or not kept or kept[0] != names[0]:
        total = passes * sum(estimates.values())
        why = f"skipped: about {total:.0f} s for {common.MIN_CLEAN} rounds, of {budget:.0f} s that a case may take"
        return [], skipped | {"all": why}
    return kept, skipped


HEAD = (
    "engine",
    "ms",
    "images/s",
    "x",
    "quartiles of x",
    "GFLOP/s",
    "of ceiling",
    "peak RSS, MiB",
    "max error",
    "min cosine",
    "clean",
)


def text(result: dict[str, Any]) -> str:
    """A case as Markdown."""
    head = f"\n{result['variant']}, {result['size']} px, batch {result['batch']} ({result['gflop']:.1f} GFLOP)"
    if "engines" in result:
        peaks = ", ".join(f"{dtype} {value:.0f}" for dtype, value in result["ceiling_gflops"].items())
        head += f"; matrix products reach {peaks} GFLOP/s\n\n{common.table([row(found) for found in result['engines']], HEAD)}"
    return head + "".join(f"\n{name}: {why}" for name, why in result["skipped"].items())


def row(found: dict[str, Any]) -> list[str]:
    share = found["ceiling_share"]
    return [
        found["label"],
        f"{1e3 * found['seconds']:.1f}",
        f"{found['per_second']:.2f}",
        *common.ratio_cells(found["ratio"]),
        f"{found['gflops']:.0f}",
        "" if share is None else f"{share:.0%}",
        f"{found['peak_rss_mib']:.0f}",
        f"{found['max_error']:.1e}",
        f"{found['min_cosine']:.6f}",
        common.clean_cell(found),
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", type=Case.parse, metavar="VARIANT:SIZE:BATCH,BATCH")
    parser.add_argument("--engines", nargs="+", choices=WHOLE, help="the first is what ratios are to")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="of each engine; by default as many as it likes")
    parser.add_argument("--rounds", type=int, default=7, help="clean rounds wanted")
    parser.add_argument("--case-seconds", type=float, default=100.0, help="time that a batch size of a case may take")
    parser.add_argument("--sample-seconds", type=float, default=0.3, help="fast passes are repeated within a sample")
    parser.add_argument("--quick", action="store_true", help="two small cases, three rounds")
    parser.add_argument("--prepare", action="store_true", help="only make the networks, which later runs find")
    parser.add_argument("--work", type=Path, default=common.WORK, help="where networks are kept between runs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.cases = arguments.cases or [Case.parse(text) for text in (QUICK if arguments.quick else CASES)]
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, common.MIN_CLEAN)
    return arguments


if __name__ == "__main__":
    main()
