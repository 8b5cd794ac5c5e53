"""Options of what becomes of masks: what they are cleaned of, how they are measured."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import Bundle, Option, Parsed

if TYPE_CHECKING:
    from unet_batch.media.cleanup import Cleanup
    from unet_batch.media.measure import Measuring

_cleanup = functools.partial(Option, section="Clean-up")
_output = functools.partial(Option, section="Output")


# Clean-up ---------------------------------------------------------------------------------------------------


def parse_names(text: str) -> tuple[str, ...]:
    """`car,person` -> ("car", "person"), none twice.

    Raises:
        ValueError: there is no name.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise ValueError(f"{text!r} names no class: names with commas expected, for example car,person")
    return names


@dataclass(frozen=True)
class CleanupOptions:
    """What masks are to be cleaned of; each as `media.cleanup.Cleanup` has it."""

    classes: tuple[str, ...] | None
    min_area: str
    fill_holes: str
    largest: bool

    @property
    def cleanup(self) -> Cleanup:
        """What they mean.

        Raises:
            UsageError: an area cannot be read.
        """
        from unet_batch.media.cleanup import Cleanup

        return Cleanup(self.classes or (), self.min_area, self.fill_holes, self.largest)


cleanup_options = Bundle(
    "cleaning",
    CleanupOptions,
    _cleanup(
        ["--classes"],
        metavar="NAMES",
        type=Parsed(parse_names),
        help="Keep these classes only, with commas; all else becomes background.",
    ),
    _cleanup(
        ["--min-area"],
        metavar="N|P%",
        default="",
        help="Drop what is smaller: so many pixels, or a share of the picture such as 0.1%.",
    ),
    _cleanup(
        ["--fill-holes"],
        metavar="N|P%|all",
        default="",
        help="Fill holes up to this area, or all of them.",
    ),
    _cleanup(["--largest"], is_flag=True, help="Keep only the largest component of each class."),
)


# Tables -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeasuringOptions:
    """How masks are to be measured; each as `media.measure.Measuring` has it."""

    pixel_size: str | None
    watershed: int | None

    @property
    def measuring(self) -> Measuring:
        """What they mean.

        Raises:
            UsageError: the size cannot be read, or scikit-image is not installed.
        """
        from unet_batch.media.measure import Measuring, PixelSize

        return Measuring(PixelSize.parse(self.pixel_size) if self.pixel_size else None, self.watershed)


measuring_options = Bundle(
    "tables",
    MeasuringOptions,
    _output(
        ["--pixel-size"],
        metavar="SIZE",
        help="What a pixel measures, for tables: 0.5um, 0.25, or 0.5x0.25mm, height first.  [default: what "
        "the picture's file says]",
    ),
    _output(
        ["--watershed"],
        metavar="PX",
        type=click.IntRange(1),
        help="Split objects that touch, for instances and tables, at seeds PX pixels apart or more.",
    ),
)
