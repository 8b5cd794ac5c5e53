"""Which parts of a clip are done, so that an interrupted one goes on behind the last."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_batch.errors import OutputError
from unet_batch.files.atomic import remove, write_atomic, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Journal:
    """Which parts of a clip are done: `journal.json` beside them, replaced whole after each.

    Args:
        folder: of the parts.
        fingerprint: of all that decides what is in them; what another one made is removed.
        stateful: go on only where the state of the smoother is known.
    """

    def __init__(self, folder: str, fingerprint: str, *, stateful: bool) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self.parts: list[dict[str, Any]] = []
        # Torn, or not of our making
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            with open(os.path.join(folder, "journal.json"), encoding="utf-8") as file:
                found = json.load(file)
            if found["fingerprint"] == fingerprint:
                self.parts = self._whole(found["parts"])
        if not self.parts or (stateful and "state" not in self.parts[-1]["files"]):
            self.parts = []
            self._clear()

    def file(self, kind: str, part: int, suffix: str) -> str:
        """Where a part of an output goes."""
        return os.path.join(self.folder, f"{kind}-{part:05d}{suffix}")

    @property
    def frames(self) -> int:
        """How many frames are recorded."""
        return sum(part["frames"] for part in self.parts)

    @property
    def last(self) -> tuple[int, int] | None:
        """(index, pts) of the last frame recorded."""
        return (self.parts[-1]["last"][0], self.parts[-1]["last"][1]) if self.parts else None

    @property
    def damaged(self) -> int:
        """Packets that did not decode, up to the last frame recorded."""
        return int(self.parts[-1]["damaged"]) if self.parts else 0

    @property
    def timed(self) -> bool:
        """Whether all frames so far had times of their own."""
        return bool(self.parts[-1]["timed"]) if self.parts else True

    @property
    def notes(self) -> list[str]:
        """What was strange so far."""
        return list(self.parts[-1]["notes"]) if self.parts else []

    def state(self) -> dict[str, NDArray[Any]]:
        """Of the smoother after the last frame recorded."""
        if not self.parts:
            return {}
        with np.load(self._path(self.parts[-1]["files"]["state"][0]), allow_pickle=False) as arrays:
            return dict(arrays)

    def lines(self) -> Iterator[str]:
        """All lines of the timeline, one at a time: two hours have 200,000.

        Raises:
            OutputError: parts are not there any more.
        """
        if len(self._whole(self.parts)) < len(self.parts):
            raise OutputError(
                f"{self.folder}: parts of the clip have vanished or changed",
                hint="run again: they are made anew",
            )
        for part in self.parts:
            with open(self._path(part["files"]["timeline"][0]), encoding="utf-8", newline="") as file:
                yield from file

    def paths(self, kind: str) -> list[str]:
        """The parts of an output, in order."""
        return [self._path(part["files"][kind][0]) for part in self.parts]

    def record(
        self,
        part: int,
        facts: dict[str, Any],
        rows: Sequence[tuple[Any, ...]],
        videos: dict[str, str],
        state: Mapping[str, NDArray[Any]],
    ) -> None:
        """Add a part whose videos are closed.

        Raises:
            OutputError: it cannot be written, or the videos are not there any more.
        """
        files = {**videos, "timeline": self.file("timeline", part, ".csv")}
        write_atomic(files["timeline"], as_csv(rows).encode())
        if state:
            files["state"] = self.file("state", part, ".npz")
            buffer = io.BytesIO()
            np.savez(buffer, **state)  # type: ignore[arg-type]
            write_atomic(files["state"], buffer.getvalue())
        if missing := [path for path in files.values() if not os.path.exists(path)]:
            raise OutputError(f"{missing[0]} vanished as it was written", hint="run again to make it anew")
        sizes = {kind: [os.path.basename(path), _size(path)] for kind, path in files.items()}
        old = self.parts[-1]["files"].pop("state", None) if self.parts else None
        self.parts.append({**facts, "files": sizes})
        # On the disk before it counts: a power cut must not leave a journal of parts that are not there.
        write_json(
            os.path.join(self.folder, "journal.json"),
            {"fingerprint": self.fingerprint, "parts": self.parts},
            sync=True,
        )
        if old:
            remove([self._path(old[0])])

    def discard(self, above: str) -> None:
        """Remove the parts, and the folders they made empty, up to the output folder."""
        self._clear()
        folder = self.folder
        with suppress(OSError):
            while os.path.realpath(folder) != os.path.realpath(above):
                os.rmdir(folder)
                folder = os.path.dirname(folder)

    def _clear(self) -> None:
        """Remove the files, not the folders among them: those are of the clips `a/b`, `a/c` beside `a`."""
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)

    def _whole(self, parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The parts up to the first one whose files are not as they were recorded."""
        whole = []
        for part in parts:
            if any(_size(self._path(name)) != size for name, size in part["files"].values()):
                break
            whole.append(part)
        return whole

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, os.path.basename(name))


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def as_csv(rows: Sequence[Sequence[Any]]) -> str:
    """The text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
