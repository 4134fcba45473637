"""Each benchmark runs with a tiny network, writes what it promises, and its engines agree with float64. No test looks at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tolerances import FAST, INT8_COSINE, ORACLE

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SUMMARY = {"seconds", "seconds_quartiles", "per_second", "clean", "dropped", "marked"}
RATIO = {"median", "quartiles", "rounds", "marked"}
ALWAYS = {"benchmark", "made", "machine", "versions", "settings"}


@pytest.fixture
def modules(monkeypatch):
    """The benchmarks' modules can be imported, as a script that lies beside them does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Networks and images, made once."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def run(work, modules):
    """Run a benchmark: its result file, and what it printed. Its tables can be made of the file."""
    import report

    def run(script: str, *arguments: str) -> tuple[dict, str]:
        out = work / f"{script}.json"
        command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--work", str(work), "--out", str(out), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        result = json.loads(out.read_text())
        assert result.keys() >= ALWAYS
        assert str(work) not in out.read_text(), "a result names a path of the machine it was made on"
        renders = [render for source, render in report.TABLES.values() if source == script]
        assert renders
        assert all("| -" in render(result) for render in renders)
        return result, done.stdout

    return run


@pytest.mark.slow
def test_forward_gives_times_ratios_memory_and_errors(run):
    """Two engines in processes of their own, one case; float32 is within rounding of float64, int8 keeps its angle."""
    engines = ["transformers-float32", "dinokit-float32-kept", "dinokit-int8-kept", "timm-float32"]
    arguments = ("--cases", "tiny:56:1", "--rounds", "1", "--sample-seconds", "0.001", "--threads", "1")
    result, printed = run("forward", *arguments, "--engines", *engines)
    (case,) = result["cases"]
    found = {one["engine"]: one for one in case["engines"]}
    assert list(found) == engines[:3]
    assert "timm" in case["skipped"]["timm-float32"]
    assert case["gflop"] > 0
    assert case["ceiling_gflops"]["float32"] > 0
    for one in found.values():
        assert SUMMARY | {"gflops", "ceiling_share", "peak_rss_mib", "note"} <= one.keys()
        assert one["ratio"].keys() == RATIO
        assert one["clean"] + one["dropped"] >= 1
        assert one["label"] in printed
    assert found["transformers-float32"]["ratio"]["median"] == 1
    assert found["transformers-float32"]["max_error"] <= ORACLE
    assert found["dinokit-float32-kept"]["max_error"] <= FAST
    assert found["dinokit-int8-kept"]["min_cosine"] >= INT8_COSINE
    assert found["dinokit-int8-kept"]["max_error"] > FAST, "the 8-bit network was not 8-bit"


@pytest.mark.slow
def test_startup_times_whole_processes(run):
    """Each way to the first embedding ends well and tells its peak memory."""
    result, _ = run("startup", "--variant", "tiny", "--rounds", "1", "--only", "dinokit, Python", "dinokit embed")
    assert result["failed"] == {}
    assert [one["name"] for one in result["rows"]] == ["dinokit, Python", "dinokit embed"]
    assert all(SUMMARY | {"peak_rss_mib"} <= one.keys() and one["peak_rss_mib"] > 50 for one in result["rows"])


@pytest.mark.slow
def test_folder_embeddings_are_those_of_transformers(run):
    """End to end, images in, embeddings out, equal to transformers' own classes; a command that fails is told."""
    arguments = ("--variant", "tiny", "--images", "3", "--rounds", "1", "--batch", "2", "--dtypes", "float32")
    only = ("--only", "transformers classes float32", "dinokit embed float32")
    result, _ = run("folder", *arguments, *only, "--threads", "1")
    assert result["failed"] == {}
    found = {one["name"]: one for one in result["rows"]}
    assert set(found) == set(only[1:])
    assert found["dinokit embed float32"]["min_cosine"] > 0.99999
    assert found["dinokit embed float32"]["share_of_engine"] > 0
    assert result["engine"]["float32"].keys() >= SUMMARY


def test_scaling_has_a_row_for_every_engine_threads_and_batch(run):
    """One thread, two batch sizes, one engine."""
    arguments = ("--variant", "tiny", "--size", "56", "--threads", "1", "--batches", "1", "2", "--rounds", "1")
    result, _ = run("scaling", *arguments, "--sample-seconds", "0.001", "--engines", "dinokit-float32")
    assert [(one["threads"], one["batch"]) for one in result["rows"]] == [(1, 1), (1, 2)]
    assert all(one["ratio"]["median"] == 1 for one in result["rows"])


def test_a_disturbed_sample_counts_for_no_median(modules):
    """Medians and ratios are over clean samples; where fewer than three are clean, over all, and the figure is marked."""
    import common

    clean = [common.Sample(seconds) for seconds in (1.0, 2.0, 3.0)]
    disturbed = common.Sample(100.0, stolen=0.5, clean=False)
    summary = common.summarise([*clean, disturbed], work=4)
    assert (summary["seconds"], summary["per_second"], summary["clean"], summary["dropped"]) == (2.0, 2.0, 3, 1)
    assert not summary["marked"]
    few = common.summarise([clean[0], disturbed])
    assert few["marked"]
    assert few["seconds"] == 50.5
    ratio = common.ratios([*clean, disturbed], [common.Sample(s.seconds / 2) for s in (*clean, disturbed)])
    assert (ratio["median"], ratio["rounds"], ratio["marked"]) == (2.0, 3, False)


def test_the_clock_tells_own_work_from_that_of_others(modules, monkeypatch):
    """What this process burns is its own; what the machine burned beyond that is stolen."""
    import common

    busy, own = iter((10.0, 11.0)), iter((5.0, 5.2))
    monkeypatch.setattr(common, "busy_seconds", lambda: next(busy))
    monkeypatch.setattr(common, "own_seconds", lambda: next(own))
    wall = iter((0.0, 1.0))
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(common.os, "cpu_count", lambda: 2)
    sample = common.Clock().stop(passes=2)
    assert sample.seconds == 0.5
    assert sample.stolen == pytest.approx(0.4)
    assert not sample.clean


def test_a_case_that_takes_too_long_is_skipped_with_a_word(modules):
    """Slow engines go first; a case whose base does not fit goes whole."""
    import forward

    names = ["transformers-float32", "transformers-bfloat16", "dinokit-float32"]
    rates = {"float32": 100.0, "bfloat16": 5.0}
    kept, skipped = forward.affordable(names, gflop=100.0, rates=rates, budget=60.0)
    assert kept == ["transformers-float32", "dinokit-float32"]
    assert skipped == {"transformers-bfloat16": "skipped: about 33 s a pass"}
    kept, skipped = forward.affordable(names, gflop=10_000.0, rates=rates, budget=60.0)
    assert kept == []
    assert "skipped" in skipped["all"]


def test_the_page_is_what_the_results_give(modules):
    """No figure in a table of docs/performance.md was typed by hand, and the engine's rows are those of the code."""
    import report

    page = report.PAGE.read_text()
    assert report.filled(page, report.common.RESULTS) == page
    for name in [*report.TABLES, "decisions"]:
        assert f"<!-- {name} -->" in page, f"the page has no place for {name}"
