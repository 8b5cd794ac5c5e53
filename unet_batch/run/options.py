"""What a run is asked to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from unet_batch.errors import UsageError
from unet_batch.files.outputs import CLIP_KINDS, KINDS, PLAIN, Style
from unet_batch.files.tables import TABLES, check_parquet

if TYPE_CHECKING:
    from unet_batch.run.shard import Shard

PART_FRAMES = 300
"""Frames of a part of a clip at most: ten seconds of most clips."""
PART_SECONDS = 10.0
"""Seconds of work in a part of a clip, which a killed run does again at most. Each part begins with a key
frame: with less, overlays grow where the network is slow."""
RETRY_PAUSES = (1.0, 5.0, 25.0)
"""Seconds before what a disk or network failed to read is tried again, after everything else: it has had that
time, too."""
PROGRESS_SECONDS = 10.0
"""Seconds between two events of progress."""


@dataclass(frozen=True)
class Position:
    """A place in a clip: seconds from its beginning, or a number of frames."""

    seconds: Fraction | None = None
    frame: int | None = None

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read `90` or `90.5` (seconds), `1:30` or `0:01:30.25` (hours first), or `2250f` (frames).

        Raises:
            UsageError: it is none of these.
        """
        if match := re.fullmatch(r"(\d{1,12})f", text):
            return cls(frame=int(match[1]))
        match = re.fullmatch(
            r"(?:(?:(\d{1,6}):)?([0-5]?\d):(?=[0-5]?\d(?:\.|$)))?(\d{1,9}(?:\.\d{1,9})?)", text
        )
        if match is None:
            raise UsageError(
                f"{text!r} is no place in a clip",
                hint="90.5, 1:30, 0:01:30.25, or 2250f for a number of frames",
            )
        hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
        return cls(3600 * hours + 60 * minutes + seconds)

    def __str__(self) -> str:
        """As the names of outputs have it: seconds as a fraction, or `2250f`."""
        return f"{self.frame}f" if self.frame is not None else str(self.seconds)


@dataclass(frozen=True)
class VideoOptions:
    """What to read of clips, and how to write them; see `unet-batch run --help`.

    Attributes:
        codec: of overlays, a name of `video.CODECS`.
        quality: in the codec's own measure; None takes its default.
        start, end: the range to read; the output then begins at time 0.
        every: take one frame of so many.
        max_frames: stop after so many frames taken.
        smooth: time constant in seconds of the mean over time; 0 takes each frame by itself.
        hardware: device that decodes, "cuda"; None for the processor.
        latest: of a live source, drop the frames that there is no time for.
        part_frames, part_seconds: outputs are encoded in parts, of so many frames and of what was done in so
            many seconds at most, and an interrupted clip goes on behind the last whole one.

    Raises:
        UsageError: a value is out of range.
    """

    codec: str = "h264"
    quality: int | None = None
    start: Position | None = None
    end: Position | None = None
    every: int = 1
    max_frames: int | None = None
    smooth: float = 0.0
    hardware: str | None = None
    latest: bool = False
    part_frames: int = PART_FRAMES
    part_seconds: float = PART_SECONDS

    def names(self, kinds: Sequence[str], style: Style = PLAIN) -> tuple[str, ...]:
        """Name the outputs of a clip so that equal names mean equal contents: the timeline, then `kinds`."""
        facts = {"start": str(self.start)} if self.start is not None else {}
        facts |= {"end": str(self.end)} if self.end is not None else {}
        facts |= {"every": str(self.every)} if self.every > 1 else {}
        facts |= {"max": str(self.max_frames)} if self.max_frames is not None else {}
        facts |= {"smooth": f"{self.smooth:g}"} if self.smooth else {}
        read = "".join(f" {name}={value}" for name, value in facts.items())
        how = f" {self.codec}" + (f" quality={self.quality}" if self.quality is not None else "")
        coded = {kind: how for kind in CLIP_KINDS if KINDS[kind].for_viewing}
        wanted = [kind for kind in CLIP_KINDS if kind in kinds]
        named = [style.name(kind, of_clip=True) + coded.get(kind, "") for kind in wanted]
        return tuple(f"clip {name}{read}" for name in ("timeline", *named))

    def frames_of(self, frames: int | None, rate: Fraction | None) -> int | None:
        """How many frames are taken of a clip of so many, at `rate` a second: a guess, None if unknown."""
        if frames is None:
            return self.max_frames

        def frame(position: Position | None, default: int) -> int:
            if position is None:
                return default
            if position.frame is not None:
                return position.frame
            return round((position.seconds or 0) * (rate or Fraction(25)))

        within = max(0, min(frames, frame(self.end, frames)) - frame(self.start, 0))
        taken = -(-within // self.every)
        return taken if self.max_frames is None else min(taken, self.max_frames)

    def __post_init__(self) -> None:
        if self.quality is not None:
            from unet_batch.media import video  # needs PyAV, and --help and the first line of a run do not

            option, _, lowest, highest = video.CODECS[self.codec].quality
            if not option:
                raise UsageError(
                    f"--quality {self.quality}: {self.codec} is lossless",
                    hint="leave it out, or take --codec h264",
                )
            if not lowest <= self.quality <= highest:
                raise UsageError(f"--quality {self.quality}: {self.codec} takes {lowest} to {highest}")
        if self.every < 1 or (self.max_frames is not None and self.max_frames < 1):
            raise UsageError(f"--every {self.every}, --max-frames {self.max_frames}: 1 or more expected")
        if not self.smooth >= 0:
            raise UsageError(f"--smooth {self.smooth}: seconds, 0 or more expected")


@dataclass(frozen=True)
class PageRange:
    """Some pages of each picture, counted from 1.

    Attributes:
        first, last: both included; None for the last there is.
    """

    first: int = 1
    last: int | None = None

    @classmethod
    def parse(cls, text: str) -> PageRange:
        """Read `all`, `3`, or `2:10`, of which either may be left out.

        Raises:
            UsageError: it is none of these.
        """
        if text == "all":
            return cls()
        found = re.fullmatch(r"(\d{1,9})?(:)?(\d{1,9})?", text)
        if found and text not in ("", ":"):
            first = int(found[1] or 1)
            last = int(found[3]) if found[3] else None if found[2] else first
            if first >= 1 and (last is None or last >= first):
                return cls(first, last)
        raise UsageError(f"pages {text!r}: all, a number, or a range such as 2:10 expected, counted from 1")

    def __str__(self) -> str:
        if self.last == self.first:
            return str(self.first)
        return "all" if self == PageRange() else f"{self.first}:{self.last or ''}"

    def of(self, count: int) -> range:
        """Those of so many pages, counted from 0; none where there are not so many."""
        return range(self.first - 1, count if self.last is None else min(count, self.last))


@dataclass(frozen=True)
class RunOptions:
    """What to segment and what to write; see `unet-batch run --help`.

    Attributes:
        sources: files, folders, patterns, lists, cameras.
        output: folder; None puts it beside the source.
        save: kinds of outputs, names of `files.outputs.KINDS`.
        style: how they are drawn.
        overwrite: redo what is done, also what another model made.
        fail_fast: stop at the first item that fails.
        max_errors: stop once so many items have failed.
        shard: do only this part.
        wait: wait for another run that writes to the same folder.
        hash_sources: record the contents of sources, so that a touched one is not redone.
        isolate: decoders are isolated: what crashed one in an earlier run is tried again.
        pages: of pictures of several; None takes the first.
        parquet: write the tables of the run as Parquet, too.
        video: of clips.
        retry_pauses: seconds before each further try of what a disk or network failed to read.
        progress_seconds: between two events of progress.
        command: what a person typed, for the report.

    Raises:
        UsageError: Parquet is wanted of no table, or pyarrow is not installed.
    """

    sources: tuple[str, ...]
    output: str | None = None
    save: tuple[str, ...] = ("mask",)
    style: Style = PLAIN
    overwrite: bool = False
    fail_fast: bool = False
    max_errors: int | None = None
    shard: Shard | None = None
    wait: bool = False
    hash_sources: bool = False
    isolate: bool = False
    pages: PageRange | None = None
    parquet: bool = False
    video: VideoOptions = field(default_factory=VideoOptions)
    retry_pauses: tuple[float, ...] = RETRY_PAUSES
    progress_seconds: float = PROGRESS_SECONDS
    command: str = ""

    def __post_init__(self) -> None:
        if self.parquet:
            if TABLES.keys().isdisjoint(self.save):
                raise UsageError(
                    f"--parquet: no table is saved: {','.join(self.save)}", hint="add --save stats or objects"
                )
            check_parquet()
