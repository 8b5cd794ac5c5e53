"""`unet-batch run - -o -`: a picture from standard input, or its mask to standard output."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from unet_batch.errors import OutputError, UsageError

if TYPE_CHECKING:
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.run.options import RunOptions

STANDARD = "-"
"""What stands for standard input among sources, and for standard output as folder."""
_NAME = "stdin"  # of results of it in a folder


def is_piped(options: RunOptions) -> bool:
    """Whether standard input is the source, or standard output the place of the results."""
    return STANDARD in options.sources or options.output == STANDARD


def check_pipe(options: RunOptions, *, as_json: bool) -> None:
    """See that one picture and one output are meant.

    Raises:
        UsageError: they are not, or standard input is a terminal.
    """
    if len(options.sources) != 1:
        raise UsageError(
            f"{len(options.sources)} sources: one picture goes through a pipe",
            hint="give a folder with -o for more",
        )
    if options.output == STANDARD:
        if len(options.save) != 1:
            raise UsageError(
                f"--save {','.join(options.save)}: one kind of output goes to standard output",
                hint="choose one, or a folder with -o",
            )
        if as_json:
            raise UsageError("--json prints on standard output, where the mask goes", hint="leave one out")
        if sys.stdout.isatty():
            raise UsageError("standard output is a terminal", hint="redirect it: ... -o - > mask.png")
    elif options.output is None:
        raise UsageError("where do results of standard input go?", hint="-o - or -o FOLDER")
    if options.sources == (STANDARD,) and sys.stdin.isatty():
        raise UsageError("standard input is a terminal", hint="redirect it: ... < photo.jpg")


def run_pipe(options: RunOptions, segmenter: Segmenter) -> None:
    """Segment the picture, and write its output.

    Raises:
        ImageError: it cannot be decoded.
        BackendError: inference failed.
        OutputError: the output cannot be written.
        UsageError: there is no such output of it.
    """
    [source] = options.sources
    result = segmenter.predict(sys.stdin.buffer.read() if source == STANDARD else source)
    result = result.styled(**asdict(options.style))
    if options.output != STANDARD:
        assert options.output is not None
        result.save(options.output, options.save, name=_NAME, overwrite=options.overwrite)
        return
    try:
        sys.stdout.buffer.write(result.encode(options.save[0]))
        sys.stdout.buffer.flush()
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error
