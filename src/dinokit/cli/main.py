"""`dinokit`: the group of commands, and the one place where errors become messages and exit codes.

Exit codes: 0 done, 1 a bug, 2 usage, 3 finished but some inputs failed, 4 weights, 5 hub, 6 output exists, 7 disk, 130 interrupted.
Results go to stdout, words to stderr.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import warnings
from typing import Any, NoReturn

import click

from dinokit._version import __version__
from dinokit.cli.common import put_off_collector
from dinokit.errors import EXIT_INTERRUPTED, EXIT_IO, DinokitError

COMMANDS = {
    "demo": "A first look: embed photographs with a small model, no network needed.",
    "embed": "Images to embeddings: a collection that survives anything, or JSON lines, .npz, .npy.",
    "info": "What a checkpoint is: layout, sizes, parameters, FLOPs, sha256.",
    "convert": "A checkpoint into another layout, with the proof of equality.",
    "models": "The released models and the names they go by.",
    "see": "Pictures of attention, norms, PCA, similarity, registers, segments.",
    "artefacts": "A report on high-norm tokens over many images: HTML that stands alone, JSON.",
    "repair": "Calibrate test-time registers: artefacts out, without training.",
    "discover": "Boxes around objects, without labels; CorLoc on VOC and COCO.",
    "compare": "Registers or a repair on and off: norms, attention, accuracy, cost.",
    "train": "Train without labels: from scratch or on from released weights, on any folder of images.",
    "finetune": "Train with labels: a classifier, segmentation or depth on any backbone.",
    "eval": "How good features are: k-NN, probes, retrieval, segmentation, depth, video, matching.",
    "search": "What in a collection of embeddings is nearest to an image, a region, an id.",
    "dedup": "Exact and near duplicates in a collection, or between two: a plan, nothing is deleted.",
    "cluster": "k-means or HDBSCAN of a collection, with representative images.",
    "curate": "Choose images for training: by retrieval, balanced over clusters, without duplicates.",
    "outliers": "Images far from all others in a collection.",
    "export": "A collection as CSV, NPY, Parquet, or for FiftyOne, Lance, Embedding Atlas.",
    "verify": "Check a released model against published values.",
}


class LazyGroup(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """The command, or None."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"dinokit.cli.{name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """From the table, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command for an unknown one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else f" Commands: {', '.join(COMMANDS)}."
            raise click.UsageError(f"no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    click.echo(f"dinokit {__version__}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """DINOv2 with registers: load any checkpoint, embed images.

    \b
    dinokit demo                                   first look, no network
    dinokit embed photos/ --out photos.npz         embeddings of a folder
    dinokit info facebook/dinov2-base              what a checkpoint is
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    put_off_collector()
    signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = _show_warning
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        # Not `cli.main`: that ends a closed pipe with 1, which is our code for a bug.
        with cli.make_context("dinokit", sys.argv[1:] if arguments is None else arguments) as context:
            result: Any = cli.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted.", err=True)
        return EXIT_INTERRUPTED
    except DinokitError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); stdout is replaced so that the interpreter's own flush stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            raise
        click.echo(f"error: {error.filename or 'the output'} can't be written: {error.strerror}.", err=True)
        return EXIT_IO


def _terminate(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"warning: {message}", err=True)


if __name__ == "__main__":
    main()
