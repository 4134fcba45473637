"""Fresh processes, timed from their start to their end or to the first line they print, in interleaved rounds; peak memory of each."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common

# What everybody may rely on: no network, words of libraries kept short.
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}


class Failed(Exception):  # noqa: N818 - a finding, told in the results
    """A command that ended with an error: the last line it said."""


def console_script(name: str = "dinokit") -> str:
    """The command as it is installed beside this Python."""
    return str(Path(sys.executable).parent / name)


def run(
    command: Sequence[str], threads: int | None = None, *, to_first_line: bool = False
) -> tuple[common.Sample, float, str]:
    """One process: the sample, its peak memory in MiB, what it printed.

    `to_first_line` counts until it printed a line instead of until it ended; others' work is looked at until it ended.

    Raises:
        Failed: it ended with an error.
    """
    # Installed packages have their bytecode; a checkout shall have it too, from the warming round on.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | QUIET
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryFile("w+") as words:
        clock = common.Clock()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True, env=environment)
        assert process.stdout is not None
        printed = process.stdout.readline()
        seconds = time.perf_counter() - clock.wall
        printed += process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        sample = clock.stop()
        process.stdout.close()
        words.seek(0)
        said = words.read()
    if to_first_line:
        sample = replace(sample, seconds=seconds)
    if process.returncode:
        lines = [line for line in said.splitlines() if line.strip()] or [""]
        raise Failed(f"exit code {process.returncode}: {lines[-1]}")
    return sample, common.peak_rss_mib(usage), printed


def compare(
    commands: Mapping[str, Sequence[str]],
    rounds: int,
    threads: int | None = None,
    *,
    warm: bool = True,
    budget: float = math.inf,
    to_first_line: bool = False,
    before: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, list[common.Sample]], dict[str, float], dict[str, str]]:
    """Samples, peak memory and reasons for failure by name; until `rounds` rounds are clean throughout, three times as many at most;
    past `budget` seconds three in all are enough.

    `warm` runs each once before, so that files are in the page cache; `before` is called with a name before its command is started.
    """
    samples: dict[str, list[common.Sample]] = {name: [] for name in commands}
    peaks: dict[str, float] = {}
    failed: dict[str, str] = {}
    if warm:
        for name, command in commands.items():
            _try(name, command, threads, failed, to_first_line)
    clean, begun = 0, time.perf_counter()
    for turn in range(common.most_rounds(rounds)):
        names = [name for name in commands if name not in failed]
        start = turn % max(len(names), 1)
        all_clean = True
        for name in names[start:] + names[:start]:
            before(name)
            found = _try(name, commands[name], threads, failed, to_first_line)
            if found is not None:
                sample, peak, _ = found
                samples[name].append(sample)
                peaks[name] = max(peaks.get(name, 0.0), peak)
                all_clean &= sample.clean
        clean += all_clean
        late = time.perf_counter() - begun > budget and turn + 1 >= common.MIN_CLEAN
        if clean >= rounds or late or not names:
            break
    for name in failed:
        del samples[name]
    return samples, peaks, failed


def _try(
    name: str, command: Sequence[str], threads: int | None, failed: dict[str, str], to_first_line: bool
) -> tuple[common.Sample, float, str] | None:
    """A run, or None where it or an earlier one failed; the reason goes into `failed`."""
    if name in failed:
        return None
    try:
        return run(command, threads, to_first_line=to_first_line)
    except Failed as error:
        failed[name] = str(error)
        return None


def rows(
    samples: Mapping[str, Sequence[common.Sample]], peaks: Mapping[str, float], base: str, work: float = 1.0
) -> list[dict[str, Any]]:
    """What a table shows of each, its ratio to `base` among it."""
    return [
        {
            "name": name,
            **common.summarise(found, work),
            "ratio": common.ratios(samples[base], found) if base in samples else None,
            "peak_rss_mib": peaks[name],
        }
        for name, found in samples.items()
    ]
