"""Options that several commands share; each group reaches its command as one frozen dataclass."""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from unet_batch.cli.command import Bundle, Option, Parsed, complete_path, option
from unet_batch.errors import UsageError
from unet_batch.files.outputs import CUTOUT_FORMATS, KINDS, Style

if TYPE_CHECKING:
    from unet_batch.cli.screen import Screen
    from unet_batch.datasets.dataset import Dataset
    from unet_batch.run.options import RunOptions, VideoOptions

Size = tuple[int, int]

_data = functools.partial(Option, section="Data")
_display = functools.partial(Option, section="Display")
_output = functools.partial(Option, section="Output")
_reliability = functools.partial(Option, section="Reliability")
_scale = functools.partial(Option, section="Scale")
_video = functools.partial(Option, section="Video")


# Sizes ------------------------------------------------------------------------------------------------------


def parse_size(text: str, lowest: int = 1, highest: int = 16384) -> Size:
    """`160x240` -> (160, 240): height by width, as everywhere in this program.

    Raises:
        ValueError: it is no size, or a side is out of bounds.
    """
    match = re.fullmatch(r"\s*(\d{1,5})[xX](\d{1,5})\s*", text)
    if not match:
        raise ValueError(f"{text!r} is not a size: height x width, for example 160x240")
    height, width = int(match[1]), int(match[2])
    if not (lowest <= height <= highest and lowest <= width <= highest):
        raise ValueError(f"{text!r} is not a size: each side from {lowest} to {highest} expected")
    return height, width


SIZE = Parsed(parse_size)


# Channels ---------------------------------------------------------------------------------------------------


def parse_channels(text: str) -> tuple[int, ...]:
    """`3,2,1` -> (3, 2, 1).

    Raises:
        ValueError: a part is no number of a band.
    """
    if not re.fullmatch(r"\s*[1-9]\d{0,4}\s*(,\s*[1-9]\d{0,4}\s*){0,63}", text):
        raise ValueError(f"{text!r}: numbers of bands with commas expected, from 1, such as 3,2,1")
    return tuple(map(int, text.split(",")))


CHANNELS = Parsed(parse_channels)


# A run ------------------------------------------------------------------------------------------------------


def parse_kinds(text: str) -> tuple[str, ...]:
    """`mask,overlay` -> ("mask", "overlay"), none twice.

    Raises:
        ValueError: a part is no kind of output, or there is none.
    """
    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        raise ValueError(f"{', '.join(map(repr, wrong)) or 'nothing'} is not one of {', '.join(KINDS)}")
    return kinds


def complete_kinds(typed: str) -> list[str]:
    """Each kind that is not there yet, after the commas that are."""
    before, comma, last = typed.rpartition(",")
    taken = before.split(",")
    return [before + comma + kind for kind in KINDS if kind.startswith(last) and kind not in taken]


def make_run_options(
    *,
    sources: tuple[str, ...],
    output: str | None,
    overlay: bool,
    save: tuple[str, ...],
    overwrite: bool,
    hash_sources: bool,
    isolate: bool,
    fail_fast: bool,
    max_errors: int | None,
    wait: bool,
    pages: str | None,
    background: str,
    cutout_format: str,
    crop: bool,
    parquet: bool,
    shard: str | None = None,
) -> RunOptions:
    """What the options of `run` mean, those of clips apart.

    Raises:
        UsageError: the shard or the pages cannot be read.
    """
    from unet_batch.run.options import PageRange, RunOptions
    from unet_batch.run.shard import Shard

    return RunOptions(
        sources,
        output,
        (*save, "overlay") if overlay and "overlay" not in save else save,
        Style(background, cutout_format, crop),
        overwrite=overwrite,
        fail_fast=fail_fast,
        max_errors=max_errors,
        shard=Shard.parse(shard, os.environ) if shard is not None else None,
        wait=wait,
        hash_sources=hash_sources,
        isolate=isolate,
        pages=None if pages is None else PageRange.parse(pages),
        parquet=parquet,
    )


run_options = Bundle(
    "options",
    make_run_options,
    click.Argument(["sources"], metavar="SOURCE...", nargs=-1, required=True, shell_complete=complete_path),
    _output(
        ["-o", "--output"],
        metavar="DIR",
        brief="Output folder.  [default: FOLDER-segmented]",
        help="Output folder, or s3://bucket/folder.  [default: FOLDER-segmented beside FOLDER; for all else "
        "segmented]",
    ),
    _output(
        ["--overlay"],
        is_flag=True,
        brief="Save overlays too: the photo, the mask tinted.",
        help="Save overlays too: the photo with the mask tinted and outlined.",
    ),
    _output(
        ["--save"],
        metavar="KINDS",
        type=Parsed(parse_kinds, complete_kinds),
        default="mask",
        show_default=True,
        brief="What to save: mask, overlay, cutout, blur, ...",
        help="What to save, with commas: " + ", ".join(KINDS) + ".",
    ),
    _output(
        ["--background"],
        metavar="COLOUR|FILE|blur",
        default="white",
        show_default=True,
        help="What is behind the object in background: a colour, a picture, or its own out of focus.",
    ),
    _output(
        ["--cutout-format"],
        type=click.Choice(tuple(CUTOUT_FORMATS)),
        default="png",
        show_default=True,
        help="Format of cutouts; jpeg has white in place of transparency.",
    ),
    _output(["--crop"], is_flag=True, help="Cut cutout and background to what is seen of the object."),
    _output(
        ["--pages"],
        metavar="PAGES",
        help="Of pictures of several pages, such as TIFF stacks: all, 3 or 2:10, counted from 1; into "
        "stacks of the same shape.  [default: the first]",
    ),
    _output(
        ["--parquet"],
        is_flag=True,
        help="Write the tables of --save stats and objects as Parquet, too.",
    ),
    _output(
        ["--overwrite"],
        is_flag=True,
        brief="Redo pictures that are done.",
        help="Redo pictures that are done, also those of another model.",
    ),
    _reliability(
        ["--hash", "hash_sources"],
        is_flag=True,
        help="Record the contents of sources: copied or touched ones are not redone.",
    ),
    _reliability(
        ["--isolate"],
        is_flag=True,
        help="Decode and draw in processes of their own: a file that crashes its decoder costs itself only.",
    ),
    _reliability(["--fail-fast"], is_flag=True, help="Stop at the first picture that fails."),
    _reliability(
        ["--max-errors"], metavar="N", type=click.IntRange(1), help="Stop once N pictures have failed."
    ),
    _reliability(["--wait"], is_flag=True, help="Wait for another run that writes to the same folder."),
    _scale(["--shard"], metavar="I/N", help="Do only part I of N; `slurm` takes both from the job array."),
)


# Clips ------------------------------------------------------------------------------------------------------


def make_video_options(
    *,
    codec: str,
    quality: int | None,
    start: str | None,
    end: str | None,
    every: int,
    max_frames: int | None,
    smooth: float,
    decode: str,
    drop_frames: bool,
) -> VideoOptions:
    """What the options of clips mean.

    Raises:
        UsageError: a time cannot be read, or the quality is not one of the codec's.
    """
    from unet_batch.run.options import Position, VideoOptions

    return VideoOptions(
        codec=codec,
        quality=quality,
        start=None if start is None else Position.parse(start),
        end=None if end is None else Position.parse(end),
        every=every,
        max_frames=max_frames,
        smooth=smooth,
        hardware="cuda" if decode == "nvdec" else None,
        latest=drop_frames,
    )


video_options = Bundle(
    "video",
    make_video_options,
    _video(
        ["--codec"],
        type=click.Choice(("h264", "h264_nvenc", "h265", "vp9", "ffv1", "prores")),
        default="h264",
        show_default=True,
        help="Codec of overlays and the like. h264 takes the GPU's encoder where there is one; masks are "
        "always FFV1, which is lossless, and cutouts ProRes 4444, or with vp9 VP9 in WebM.",
    ),
    _video(
        ["--quality"],
        metavar="N",
        type=int,
        help="Quality of overlays and the like, in the codec's own measure: 20 is the default of h264.",
    ),
    _video(
        ["--start"],
        metavar="TIME",
        brief="Begin a clip here: 90.5 or 1:30; --end likewise.",
        help="Begin here: 90.5, 1:30 or 0:01:30.5; 2250f counts frames.",
    ),
    _video(["--end"], metavar="TIME", help="End here, likewise."),
    _video(["--every"], metavar="N", type=click.IntRange(1), default=1, help="Take each Nth frame only."),
    _video(["--max-frames"], metavar="N", type=click.IntRange(1), help="Stop a clip after N frames."),
    _video(
        ["--smooth"],
        metavar="SECONDS",
        type=click.FloatRange(0),
        default=0.0,
        help="Steady masks where the picture stays as it is; 0.2 is a start.",
    ),
    _video(
        ["--decode"],
        type=click.Choice(("cpu", "nvdec")),
        default="cpu",
        show_default=True,
        help="What decodes clips.",
    ),
    _video(
        ["--drop-frames"],
        is_flag=True,
        help="For cameras: skip the frames that there is no time for, and count them.",
    ),
)


# What is printed --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DisplayOptions:
    """How much a run prints, and where its events and its report go."""

    quiet: bool
    verbose: bool
    log_json: str | None
    as_json: bool = False

    def screen(self, *, to_stderr: bool = False) -> Screen:
        """Where to print; stdout belongs to JSON where that was asked for, or to something else.

        Raises:
            UsageError: two want stdout.
        """
        from unet_batch.cli.screen import Screen

        if self.as_json and self.log_json == "-":
            raise UsageError("--json and --log-json - both want stdout", hint="give --log-json a file")
        to_stderr = to_stderr or self.as_json or self.log_json == "-"
        return Screen(quiet=self.quiet, verbose=self.verbose, to_stderr=to_stderr)


display_options = Bundle(
    "display",
    DisplayOptions,
    _display(["-q", "--quiet"], is_flag=True, help="Print failures only."),
    _display(
        ["-v", "--verbose"],
        is_flag=True,
        brief="Print a line for each picture.",
        help="Print a line for each picture, and at the end what each stage took.",
    ),
    _display(["--log-json"], metavar="FILE", help="Add a line of JSON for each event; - means stdout."),
    _display(
        ["--json", "as_json"],
        is_flag=True,
        help="Print the report as JSON on stdout, everything else on stderr.",
    ),
)


# Datasets ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetOptions:
    """Where a dataset has its images and masks, and which of them belong together."""

    images: str | None
    masks: str | None
    coco: str | None
    group_by: str | None

    def find(self, folder: str, *, faulty: bool = False) -> Dataset:
        """Find the dataset.

        Args:
            folder: of the dataset.
            faulty: see `find_dataset`.

        Raises:
            UnetBatchError: see `find_dataset`.
        """
        from unet_batch.cli.screen import console
        from unet_batch.datasets.find import find_dataset

        with console(stderr=True).status("looking at the masks ..."):  # on terminals only
            return find_dataset(
                folder,
                images=self.images,
                masks=self.masks,
                coco=self.coco,
                group_by=self.group_by,
                faulty=faulty,
            )


dataset_options = Bundle(
    "data",
    DatasetOptions,
    _data(["--images"], metavar="DIR", help="Folder of images, if not DATASET/images or the like."),
    _data(["--masks"], metavar="DIR", help="Folder of masks, if not DATASET/masks or the like."),
    _data(
        ["--coco"],
        metavar="FILE.json",
        help="COCO annotations in place of a folder of masks; DATASET holds the images.",
    ),
    _data(
        ["--group-by"],
        metavar="REGEX",
        help="What in a name tells which images belong together: '^(.+)_' for <car>_<view>.",
    ),
)

json_option = option(
    "--json", "as_json", section="Display", is_flag=True, help="Print everything as JSON on stdout."
)
