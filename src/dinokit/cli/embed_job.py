"""`dinokit embed --out FOLDER`: the job on the command line, its progress, its last words."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dinokit.cli.common import is_terminal, open_model, say
from dinokit.cli.embed_given import decode_options, introduce, listed, prepared_for
from dinokit.cli.search import counted
from dinokit.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_SOME_INPUTS_FAILED
from dinokit.extract.lock import rank_from_environment, require_free

if TYPE_CHECKING:
    from dinokit.extract import ExtractJob, JobOptions, Plan, Status, Summary
    from dinokit.extract.prepare import Facts
    from dinokit.weights.load import Pretrained

SHOWN_FAILURES = 5
SECONDS_BETWEEN_LINES = 30.0


def run(out: Path, **given: Any) -> int:
    """Run the job, or say how far it is."""
    if given["status"]:
        return _show_status(out, as_json=given["as_json"])
    if given["rank"] is None and given["world_size"] is None:
        given["rank"], given["world_size"] = rank_from_environment()
    given["rank"], given["world_size"] = given["rank"] or 0, given["world_size"] or 1
    _require_sources(given)
    require_free(out, given["rank"], given["world_size"])
    options = _options(given)
    summary = _run_on_ray(out, given, options) if given["engine"] == "ray" else _job(out, given, options).run()
    if given["as_json"]:
        click.echo(json.dumps({"out": str(out), **summary.to_dict()}))
    _last_words(summary, out)
    if summary.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_SOME_INPUTS_FAILED if summary.status.failed else EXIT_OK


def _job(out: Path, given: dict[str, Any], options: JobOptions) -> ExtractJob:
    from dinokit.extract import ExtractJob

    pre = _model(given)
    return ExtractJob(
        pre,
        [place for place in given["inputs"] if place != "-"],
        out,
        _features(pre, given),
        options,
        _preparation(pre, exact=given["exact"]),
        Progress(),
    )


def _run_on_ray(out: Path, given: dict[str, Any], options: JobOptions) -> Summary:
    """Every actor makes the job for itself, so what can't travel (open files) stays here."""
    from dinokit.extract.on_ray import Actors, need_ray, run_on_ray

    if options.world_size > 1:
        raise click.UsageError("--engine ray shares shards out by itself; leave --rank and --world-size out.")
    need_ray()
    travels = given | {"files_from": None, "engine": "auto"}
    return run_on_ray(
        functools.partial(_job, out, travels, options), out, Actors(count=given["actors"]), reporter=Progress()
    )


def _require_sources(given: dict[str, Any]) -> None:
    if not given["inputs"] and not given["files_from"] and not given["no_check_inputs"]:
        raise click.UsageError("no images: name folders, files, tar shards or tables, or use --files-from.")
    if given["actors"] and given["engine"] != "ray":
        raise click.UsageError("--actors needs --engine ray.")
    if given["rank"] >= given["world_size"]:
        raise click.BadParameter(f"{given['rank']}: ranks are 0 to --world-size - 1.", param_hint="--rank")


def _options(given: dict[str, Any]) -> JobOptions:
    from dinokit.extract import Columns, JobOptions

    taken = (
        "shard_size", "batch_size", "workers", "decode_timeout", "hash", "absolute", "id_prefix", "dense", "dense_dtype",
        "dense_format", "retry_failed", "max_errors", "fail_fast", "rank", "world_size",
    )  # fmt: skip
    try:
        return JobOptions(
            **{name: given[name] for name in taken},
            check_inputs=not given["no_check_inputs"],
            decode=decode_options(given["max_pixels"], given["window"], given["background"]),
            columns=Columns(
                image=given["image_column"], path=given["path_column"], id=given["id_column"], root=given["root"]
            ),
            files=tuple(listed(given["inputs"], given["files_from"], nul=given["nul"])),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _model(given: dict[str, Any]) -> Pretrained:
    loading = (
        "revision", "cache_dir", "offline", "positions", "num_heads", "trained_size", "allow_missing", "device", "dtype", "repair",
    )  # fmt: skip
    pre = open_model(
        given["model"], engine=given["engine"] or "auto", **{name: given[name] for name in loading if name in given}
    )
    pre = prepared_for(pre, given["image_size"])
    introduce(pre, given["model"])
    return pre


def _features(pre: Pretrained, given: dict[str, Any]) -> tuple[Any, ...]:
    from dinokit.extract import features_of

    try:
        return features_of(
            pre,
            given["pools"],
            given["layers"] or (None,),
            normalized=given["normalize"],
            dtype="float16" if given["float16"] else "float32",
        )
    except ValueError as error:
        raise click.UsageError(f"{error} For all tokens of an image there is --dense.") from error


def _preparation(pre: Pretrained, *, exact: bool) -> Any:
    from dinokit.images import ExactPreparation, FastTransform

    if exact:
        return ExactPreparation(pre.transform)
    say("images: the fast way, a grey level off on few pixels (docs/preprocessing.md); --exact is the reference")
    return FastTransform(pre.transform)


def _show_status(out: Path, *, as_json: bool) -> int:
    from dinokit.errors import OutputError
    from dinokit.extract import Plan
    from dinokit.extract.folder import status_of, survey

    plan = Plan.load(out)
    if plan is None:
        raise OutputError(f"{out} has no plan; nothing was embedded there.")
    status = status_of(plan, survey(plan, plan.shards()))
    if as_json:
        click.echo(json.dumps({"out": str(out), "schema": 1, **status.to_dict()}))
    else:
        state = "complete" if status.complete else "not complete"
        click.echo(
            f"{out}: {status.rows_done:,} of {counted(status.rows, 'input')} in {status.shards_done:,} of "
            f"{counted(status.shards, 'shard')}, {state}{_failures(status.failed)}."
        )
    return EXIT_OK


def _last_words(summary: Summary, out: Path) -> None:
    status = summary.status
    rate = f", {summary.rows / summary.seconds:,.1f} images/s" if summary.rows else ""
    say(f"{counted(summary.rows, 'input')} in {_duration(summary.seconds)}{rate}{_failures(summary.failed)}.")
    good = status.rows_done - status.failed.total()
    text = f"{out}: {good:,} of {counted(status.rows, 'input')} {'has a vector' if good == 1 else 'have vectors'}"
    if status.failed:
        text += f"{_failures(status.failed)}: see status = 'error' there, or run again with --retry-failed"
    say(text + ".")
    if not status.complete:
        left = status.shards - status.shards_done
        why = "interrupted; the same command goes on" if summary.interrupted else "other ranks have them, or run again"
        say(f"{left:,} of {counted(status.shards, 'shard')} {'is' if left == 1 else 'are'} left ({why}).")


def _failures(failed: Counter[str]) -> str:
    if not failed:
        return ""
    listed = ", ".join(f"{count:,} {code}" for code, count in failed.most_common())
    return f"; {failed.total():,} failed ({listed})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


class Progress:
    """A bar where somebody looks, else a line every half minute; the first failures in words, the others counted."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._failed: Counter[str] = Counter()
        self._total = self._done = self._this_run = 0

    def begin(self, plan: Plan, status: Status, rows: int) -> None:
        """A line on what is ahead, then the bar."""
        from tqdm import tqdm

        size = plan.settings.shard_size
        say(
            f"plan: {counted(plan.num_rows, 'input')} in {counted(plan.num_shards, 'shard')} of {size:,}, "
            f"batches of {plan.settings.batch_size}"
        )
        if status.rows_done:
            say(f"{status.rows_done:,} are done already{_failures(status.failed)}; {rows:,} to do now")
        self._total, self._done = rows, 0
        self._start = self._last = time.monotonic()
        if rows and is_terminal():
            self._bar = tqdm(total=rows, unit=" img", desc="embed", dynamic_ncols=True, smoothing=0.05, file=sys.stderr)

    def progress(self, rows: int, failures: list[Facts]) -> None:
        """One batch further."""
        self._done += rows
        for facts in failures:
            self._failed[facts.error_code or ""] += 1
            if self._failed.total() <= SHOWN_FAILURES:
                self.say(f"{facts.error_code}: {facts.error}")
            if self._failed.total() == SHOWN_FAILURES:
                self.say("further failures are only counted; their rows hold the reasons")
        if self._bar is not None:
            if failures:
                self._bar.set_postfix_str(f"{self._failed.total():,} failed", refresh=False)
            self._bar.update(rows)
        elif time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            rate = self._done / (self._last - self._start)
            left = (self._total - self._done) / rate if rate else 0.0
            say(
                f"{self._done:,} of {self._total:,}, {rate:,.1f} images/s, {_duration(left)} left{_failures(self._failed)}"
            )

    def say(self, text: str) -> None:
        """Above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            say(text)

    def end(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
