"""The masks of a run, written as the labels that an annotation tool imports.

All is written into a folder of a temporary name, which gets its own at the end: an export that was killed
leaves nothing under it, and the next one begins anew and clears up. Pictures stream through threads; what is
held does not grow with their number.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from unet_batch.errors import ImageError, ItemError, UsageError
from unet_batch.files import archives, remote
from unet_batch.files.atomic import host_id, is_alive, make_folder, translate, write_json
from unet_batch.files.naming import shown
from unet_batch.labels.base import LabelFormat, LabelSettings
from unet_batch.labels.format_coco import CocoFormat
from unet_batch.labels.format_cvat import CvatFormat
from unet_batch.labels.format_geojson import GeoJsonFormat
from unet_batch.labels.format_labelme import LabelmeFormat
from unet_batch.labels.format_labelstudio import LabelStudioFormat
from unet_batch.labels.format_yolo import YoloFormat
from unet_batch.labels.picture import LabelledPicture
from unet_batch.pipeline import Failed, Pipeline, Stage
from unet_batch.run.finished import FinishedItem, FinishedRun, Selection
from unet_batch.run.masks import LabelTable, read_ids
from unet_batch.run.report import LISTED_FAILURES
from unet_batch.types import Failure
from unet_batch.version import __version__

FORMATS: Mapping[str, type[LabelFormat]] = {
    "coco": CocoFormat,
    "yolo": YoloFormat,
    "labelstudio": LabelStudioFormat,
    "cvat": CvatFormat,
    "labelme": LabelmeFormat,
    "geojson": GeoJsonFormat,
}
"""All that `--format` knows. A new one is a file here and a row."""
MARKER = "unet-batch-labels.json"
_TEMPORARY = re.compile(r"\.ub-([0-9a-f]{8})-([1-9][0-9]{0,9})\.labels")
_AHEAD = 16  # pictures in flight


@dataclass
class Exported:
    """What an export wrote.

    Attributes:
        folder: where it is.
        pictures: how many have labels there.
        missing: pictures of the run that are not done.
        unselected: names of a selection that took no picture.
        others: clips and stacks of pages, which these formats do not know.
        failed: pictures that could not be labelled.
        failures: the first hundred of them, and why.
    """

    folder: str
    pictures: int = 0
    missing: int = 0
    unselected: tuple[str, ...] = ()
    others: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)


def export(
    run: FinishedRun,
    format: str,
    folder: str | None = None,
    *,
    sources: Sequence[str] = (),
    settings: LabelSettings | None = None,
    overwrite: bool = False,
    workers: int = 2,
    progress: Callable[[int], None] = lambda done: None,
) -> Exported:
    """Write the masks of a run as labels.

    Args:
        run: whose masks.
        format: one of `FORMATS`.
        folder: where to; None for `OUT-FORMAT` beside the output folder, or in the current one of a bucket.
        sources: which pictures, as `run` takes them; none for all.
        settings: how.
        overwrite: replace an earlier export.
        workers: threads.
        progress: hears how many pictures were looked at.

    Raises:
        UsageError: the run saved no masks, or something lies in the folder.
        OutputError: it cannot be written.
        SourceError: a list of sources cannot be read.
    """
    if "mask" not in run.save and not any("mask" in item.files for item in run.items()):
        raise UsageError(
            f"{run.folder} holds no masks: --save {','.join(run.save)}",
            hint="run again with --save mask: only what is missing is made",
        )
    folder = os.path.abspath(folder or default_folder(run, format))
    selection = Selection(sources)
    table, settings = LabelTable.of(run.classes), settings or LabelSettings()
    with _replacing_folder(folder, {"format": format, "of": run.folder}, overwrite=overwrite) as temporary:
        writer = FORMATS[format](temporary, table, settings)
        try:
            report = _write(writer, run, selection, workers, progress)
            writer.finish()
        finally:
            writer.close()
        if not report.pictures:
            raise UsageError(f"{run.folder}: none of the pictures asked for has a mask{_why(report)}")
    report.folder, report.missing = folder, run.left
    report.unselected = tuple(sorted(selection.unused))
    return report


def default_folder(run: FinishedRun, format: str) -> str:
    """Where labels go unless somebody says otherwise."""
    return f"{run.name}-{format}" if remote.is_remote(run.folder) else f"{run.folder}-{format}"


def _write(
    writer: LabelFormat,
    run: FinishedRun,
    selection: Selection,
    workers: int,
    progress: Callable[[int], None],
) -> Exported:
    """Label the pictures, in order."""
    report = Exported(writer.folder)

    def wanted() -> Iterator[FinishedItem]:
        for item in run.items():
            if not selection.takes(item.source):
                continue
            if item.is_clip or not item.files.get("mask", "").lower().endswith(".png"):
                report.others += 1
                continue
            yield item

    def work(item: FinishedItem) -> tuple[LabelledPicture, Any]:
        ids = read_ids(item.files["mask"], writer.table)
        name = item.name if item.name.startswith(item.key) else item.key + os.path.splitext(item.name)[1]
        picture = LabelledPicture(item.key, name, item.source, ids, writer.table)
        if writer.settings.with_images:
            _copy(item.source, writer.path(writer.image_file(picture)))
        return picture, writer.encode(picture)

    stage: Stage[Any, Any] = Stage("label", work, workers, isolate=lambda error: isinstance(error, ItemError))
    results: Pipeline[FinishedItem, Any]
    with Pipeline(wanted(), [stage], in_flight=_AHEAD, describe=lambda item: item.key) as results:
        result: Any
        for number, result in enumerate(results, 1):
            if isinstance(result, Failed):
                error, item = result.error, result.value
                assert isinstance(error, ItemError)
                report.failed += 1
                failure = Failure(
                    shown(item.source), "label", type(error).__name__, error.message, error.hint
                )
                report.failures += [failure] if report.failed <= LISTED_FAILURES else []
            else:
                writer.add(*result)
                report.pictures += 1
            progress(number)
    return report


def _copy(source: str, path: str) -> None:
    """Copy a picture.

    Raises:
        ImageError: it cannot be read.
        OutputError: it cannot be written.
    """
    try:
        file = archives.open_file(source)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"{source}: cannot be read: {reason}", hint="restore it, or leave --with-images out"
        ) from error
    try:
        with file, open(path, "wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
    except OSError as error:
        raise translate(error, path, 0) from error


def _why(report: Exported) -> str:
    if report.failures:
        return f": {report.failures[0].message}"
    return f": {report.others:,} are clips or stacks of pages" if report.others else ""


@contextmanager
def _replacing_folder(folder: str, facts: dict[str, Any], *, overwrite: bool) -> Iterator[str]:
    """Yield a folder to write into, which becomes `folder` at the end; nothing is left of it otherwise.

    Raises:
        UsageError: something lies there that is not to be replaced.
        OutputError: it cannot be made or renamed.
    """
    _check_free(folder, overwrite=overwrite)
    above = os.path.dirname(folder)
    make_folder(above)
    _clean(above)
    temporary = os.path.join(above, f".ub-{host_id()}-{os.getpid()}.labels")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        yield temporary
        write_json(os.path.join(temporary, MARKER), {"unet_batch_labels": __version__, **facts})
        _check_free(folder, overwrite=overwrite)
        try:
            if os.path.isdir(folder):
                shutil.rmtree(folder)
            os.rename(temporary, folder)
        except OSError as error:
            raise translate(error, folder, 0) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_free(folder: str, *, overwrite: bool) -> None:
    try:
        there = os.listdir(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise translate(error, folder, 0) from error
    if there and not (overwrite and _is_ours(folder)):
        ours = _is_ours(folder)
        raise UsageError(
            f"{folder} holds labels of an earlier export" if ours else f"{folder} holds other files",
            hint="choose another folder with -o"
            + (", or replace them with --overwrite, with all changes made to them" if ours else ""),
        )


def _is_ours(folder: str) -> bool:
    with suppress(OSError, ValueError), open(os.path.join(folder, MARKER), encoding="utf-8") as file:
        return "unet_batch_labels" in json.load(file)
    return False


def _clean(above: str) -> None:
    """Remove what killed exports on this machine left."""
    with suppress(OSError):
        for name in os.listdir(above):
            found = _TEMPORARY.fullmatch(name)
            if found and found[1] == host_id() and not is_alive(int(found[2])):
                shutil.rmtree(os.path.join(above, name), ignore_errors=True)
