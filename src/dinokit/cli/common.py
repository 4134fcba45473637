"""Options that several commands share, and what they mean: which model, where it runs, which images."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from dinokit.errors import DinokitError
from dinokit.weights.digest import digest_ahead

if TYPE_CHECKING:
    import torch

    from dinokit.weights.load import Pretrained

Command = TypeVar("Command", bound=Callable[..., Any])
REPAIRS = ("mask_keys", "neighbours", "median", "denoise")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
INTEGERS = ("int16", "int8")
DIGEST = "dinokit.digest"  # of the weights of --model, where it was begun when the command line was read
# Objects made until the garbage collector looks through the young ones; Python's own 700 suits programs that keep fewer.
COLLECT_AFTER, COLLECT_AFTER_IMPORTS = 100_000, 1_000_000
ENGINES = ("auto", "eager", "compiled")


def model_options(command: Command) -> Command:
    """--model and everything that says how to load it."""
    from dinokit.weights.zoo import DEFAULT_MODEL

    for option in reversed(
        [
            click.option(
                "--model",
                "-m",
                envvar="DINOKIT_MODEL",
                default=DEFAULT_MODEL,
                show_default=True,
                callback=_begin_digest,
                help="File, folder, hub id (ID@REVISION too) or a name of `dinokit models`.",
            ),
            *loading_options(),
            click.option(
                "--device",
                envvar="DINOKIT_DEVICE",
                default="auto",
                show_default=True,
                help="auto, cpu, cuda, cuda:1, mps.",
            ),
            click.option(
                "--dtype",
                type=click.Choice(["auto", *DTYPES, *INTEGERS]),
                default="auto",
                show_default=True,
                help="Of weights and activations; auto is fp32. int16 (12 bits) and int8 need --engine auto.",
            ),
            click.option(
                "--repair",
                metavar="FILE|METHOD",
                help="A calibration of `dinokit repair` (FILE, or FILE:bias for the form without a token), or one of "
                f"{', '.join(REPAIRS)}.",
            ),
        ]
    ):
        command = option(command)
    return command


def engine_option(command: Command) -> Command:
    """--engine, for commands that only want tokens; with it, --dtype is a wish that a slow machine may answer with fp32."""
    return click.option(
        "--engine",
        type=click.Choice(ENGINES),
        default="auto",
        show_default=True,
        help="auto: the form of the network that is fastest here (it says which); eager: the network as it is; compiled: through "
        "torch.compile, for long runs on a GPU.",
    )(command)


def loading_options() -> list[Callable[[Command], Command]]:
    """What a name alone does not say."""
    return [
        click.option("--revision", help="Commit, tag or branch of the hub repository."),
        click.option("--cache-dir", type=click.Path(path_type=Path), help="Where downloads are kept."),
        click.option("--offline", is_flag=True, help="Use only what is on disk."),
        click.option(
            "--positions",
            type=click.Choice(["official", "transformers", "timm", "birder"]),
            help="Whose way to resample positions; by default that of the checkpoint's own code.",
        ),
        click.option("--num-heads", type=int, help="For bare files of unusual networks (released ones: width / 64)."),
        click.option(
            "--trained-size",
            callback=_size,
            metavar="H[xW]",
            help="Pixels of the position table, for bare files whose grid is no square.",
        ),
        click.option(
            "--allow-missing", is_flag=True, help="Load in spite of missing or left-over tensors, and say which."
        ),
    ]


def open_model(
    model: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    positions: str | None = None,
    num_heads: int | None = None,
    trained_size: tuple[int, int] | None = None,
    allow_missing: bool = False,
    device: str = "cpu",
    dtype: str = "auto",
    repair: str | None = None,
    head: Path | int | None = None,
    engine: str = "eager",
) -> Pretrained:
    """Load with the options above; says on stderr what `auto` chose and what was tolerated."""
    import torch

    from dinokit.weights.load import load

    place = choose_device(device)
    _settle_collector()
    if dtype in INTEGERS and engine != "auto":
        raise click.BadParameter(
            f"{dtype} is a choice of the fast engine; this runs the network as it is.", param_hint="--dtype"
        )
    pre = load(
        model,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=offline,
        position=positions,
        num_heads=num_heads,
        image_size=trained_size,
        strict=not allow_missing,
        device=place,
        dtype=getattr(torch, DTYPES.get(dtype, "float32")) if engine == "eager" else torch.float32,
        head=head,
    )
    found = pre.provenance
    context = click.get_current_context(silent=True)
    digest = None if context is None else context.meta.get(DIGEST)
    if digest is not None:
        pre = replace(pre, provenance=replace(found, digest=digest))
    if not found.verified:
        say(
            f"warning: {found.path} is not complete: {len(found.missing)} tensors missing (they hold random values), "
            f"{len(found.unexpected)} left over. Results mean nothing unless you know why."
        )
    pre = pre if repair is None else _repaired(pre, repair)
    return pre if engine == "eager" else _optimized(pre, dtype, compiled=engine == "compiled")


def _begin_digest(context: click.Context, _: click.Parameter, model: str) -> str:
    """Nearly every command states the weights' sha256: it is computed while torch is imported, on another processor."""
    if not context.resilient_parsing:
        context.meta[DIGEST] = digest_ahead(model)
    return model


def put_off_collector() -> None:
    """No looking for garbage while imports make half a million objects that all stay: a twentieth of the start."""
    gc.set_threshold(COLLECT_AFTER_IMPORTS)


def _settle_collector() -> None:
    """What the imports made is out of the garbage collector's sight from here on, if it was put off."""
    if gc.get_threshold()[0] == COLLECT_AFTER_IMPORTS:
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER)


def _optimized(pre: Pretrained, dtype: str, *, compiled: bool) -> Pretrained:
    """The fast form, with what it chose and why on stderr. The process is a command's own, so its allocator may be set too."""
    import torch

    from dinokit.engine import keep_large_blocks

    if pre.device.type == "cpu":
        keep_large_blocks()
    fast = pre.optimize(
        dtype=getattr(torch, dtype if dtype in INTEGERS else DTYPES.get(dtype, "float32")), compiled=compiled
    )
    assert fast.plan is not None
    say(f"engine: {fast.plan.explain()}")
    return fast


def _repaired(pre: Pretrained, how: str) -> Pretrained:
    """The model as --repair says.

    Raises:
        click.BadParameter: neither a method nor a file.
    """
    from dinokit.weights import repaired

    if how in REPAIRS:
        return repaired.repair(pre, how)  # type: ignore[arg-type]
    path, _, form = how.partition(":")
    if not Path(path).is_file() or form not in ("", "bias"):
        raise click.BadParameter(
            f"{how!r} is neither a calibration file nor one of {', '.join(REPAIRS)}.", param_hint="--repair"
        )
    try:
        return repaired.repair(pre, "bias" if form else "registers", path)
    except ValueError as error:
        if isinstance(error, DinokitError):
            raise
        raise click.BadParameter(str(error), param_hint="--repair") from error


def choose_device(device: str) -> torch.device:
    """`auto` takes a GPU where there is one.

    Raises:
        click.BadParameter: PyTorch does not know or does not have the device.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise click.BadParameter(f"{device!r} can't be used ({reason}).", param_hint="--device") from error
    return place


def _size(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """H or HxW in pixels."""
    if value is None:
        return None
    parts = value.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{value!r} is no size; write 518 or 448x672 (height x width).", param=parameter)
    return int(parts[0]), int(parts[-1])


size_callback = _size


def numbers_callback(count: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[float, ...] | None]:
    """For an option that holds `count` numbers with commas between them."""

    def parse(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != count:
            raise click.BadParameter(f"{value!r}: write {count} numbers with commas between them.", param=parameter)
        return numbers

    return parse


def read_list(source: IO[bytes], *, nul: bool) -> list[str]:
    """Paths, one a line or with NUL between them; empty ones are passed over."""
    import os

    parts = source.read().split(b"\0" if nul else b"\n")
    return [os.fsdecode(part.removesuffix(b"\r")) for part in parts if part.strip()]


def say(text: str) -> None:
    """Words for a person: stderr."""
    click.echo(text, err=True)


def is_terminal() -> bool:
    """Whether stderr is looked at by somebody."""
    return sys.stderr.isatty()
