"""Every error that dinokit raises on purpose.

All derive from `DinokitError`; each carries the exit code with which the command line ends.
A message names the thing, the value, the rule and the way out. Misuse of the Python API stays `ValueError` or `TypeError`.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_SOME_INPUTS_FAILED = 3
EXIT_WEIGHTS = 4
EXIT_HUB = 5
EXIT_OUTPUT = 6
EXIT_IO = 7
EXIT_INTERRUPTED = 130

ImageErrorCode = Literal[
    "zero_byte",
    "not_image",
    "truncated",
    "unsupported_mode",
    "too_many_pixels",
    "aspect_ratio",
    "not_a_file",
    "permission",
    "decode_timeout",
    "decoder_died",
    "nonfinite_pixels",
    "nonfinite_embedding",
]
IMAGE_ERROR_CODES: tuple[ImageErrorCode, ...] = get_args(ImageErrorCode)


class DinokitError(Exception):
    """Base of all errors below."""

    exit_code: ClassVar[int] = EXIT_BUG


class ImageError(DinokitError, ValueError):
    """An image that can't become pixels; `code` is one of `IMAGE_ERROR_CODES`."""

    exit_code = EXIT_SOME_INPUTS_FAILED

    def __init__(self, code: ImageErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ImageErrorCode = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[ImageErrorCode, str]]:
        """Keep the code when the error crosses a process boundary."""
        return type(self), (self.code, str(self))


class WeightsError(DinokitError, ValueError):
    """A checkpoint that is damaged, incomplete, of no known layout, or at odds with its configuration."""

    exit_code = EXIT_WEIGHTS


class UnknownModelError(DinokitError, OSError):
    """A name that is neither a file, nor a folder, nor a model that anybody publishes.

    An `OSError`, because that is what code written for `from_pretrained` catches.
    """

    exit_code = EXIT_WEIGHTS


class HubError(DinokitError, OSError):
    """The model hub can't be reached, or does not give the file, and the cache does not hold it."""

    exit_code = EXIT_HUB


class OutputError(DinokitError, OSError):
    """An output that exists already, is in use, or belongs to something else."""

    exit_code = EXIT_OUTPUT


class IdentityError(DinokitError, ValueError):
    """Vectors that do not say what made them, or that different models or preprocessings made: they can't be compared."""

    exit_code = EXIT_OUTPUT


class MissingExtraError(DinokitError, ImportError):
    """Something that an optional package does, which is not installed; says what to install."""

    exit_code = EXIT_USAGE


class StorageError(DinokitError, OSError):
    """The disk refuses: full, read-only, missing folder, input/output error. Nothing half-written stays."""

    exit_code = EXIT_IO
