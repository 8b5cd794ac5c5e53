"""The work of a run: what is done to each item, by one segmenter in one process.

It knows a plan, and nothing of locks, manifests, counts or people: what became of an item is an `Outcome`.
`execute` has one `ItemWorker` in its own process, or one in each of several (`crew`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unet_batch.errors import (
    ImageError,
    RunError,
    SourceError,
    SourceVanished,
    UnetBatchError,
    UsageError,
)
from unet_batch.files import archives, remote
from unet_batch.files.atomic import write_atomic
from unet_batch.files.naming import shown
from unet_batch.files.staging import UPLOADS
from unet_batch.inference.segmenter import Segmenter, as_error, item_of
from unet_batch.pipeline import Failed, StageStats
from unet_batch.run import alone
from unet_batch.run import clip as clips
from unet_batch.run.layout import ClipLayout
from unet_batch.run.observe import Stop
from unet_batch.run.outcomes import is_passing
from unet_batch.run.pictures import EncodedOutputs, OutputRenderer
from unet_batch.run.plan import RunPlan
from unet_batch.run.records import Files, Identity, OutputRecipe, Record, sha256_of
from unet_batch.run.report import add_stats
from unet_batch.types import HasItem, Item

if TYPE_CHECKING:
    from unet_batch.inference.workers import Prepared
    from unet_batch.media.video import Codec

Progress = Callable[[Item, int, "int | None"], None]
"""Hears that so many frames of a clip, or rows of a picture, are done, of a total that may not be known."""


@dataclass(frozen=True, slots=True)
class Task(Item):
    """An item on its way through the pipeline.

    Attributes:
        identity: its source just before it was read.
        since: when that was, as `time.perf_counter` has it.
    """

    identity: Identity | None = None
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item.

    Attributes:
        item: which one.
        identity: its source just before it was read.
        record: that it is done, for the manifest; None where it is not.
        seconds: of the stages that know them.
        notes: what people should know of how it was read.
        clip: of a clip, also one that was cut short, what the report says of it.
        stage, error: where it failed, and why; None where it did not.
        passing: a disk or network failed, and not the file: another try may help.
        retried: how often it was read again after that.
        aside: it is to be segmented by itself, and nothing was done yet.
    """

    item: Item
    identity: Identity | None = None
    record: Record | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    clip: Mapping[str, Any] | None = None
    stage: str = ""
    error: UnetBatchError | None = None
    passing: bool = False
    retried: int = 0
    aside: bool = False


@dataclass(frozen=True)
class _Written:
    """A picture whose outputs stand under their names, the seconds of the stages that know it, and notes."""

    item: Item
    record: Record
    seconds: dict[str, float]
    notes: tuple[str, ...]


class ItemWorker:
    """Segments items of a plan.

    Args:
        plan: says what is wanted of which sources; its items do not matter.
        segmenter: open.
        recipe: of the outputs.
        check: sees whether the output folder is still there: one that was removed must not come back half
            empty. Called before anything is written.
        record: takes note that outputs stand under their names, from the thread that has written them.

    Attributes:
        stages: what each stage has done in pipelines that have ended.
    """

    def __init__(
        self,
        plan: RunPlan,
        segmenter: Segmenter,
        recipe: OutputRecipe,
        *,
        check: Callable[[], None],
        record: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self.plan, self.segmenter, self.recipe = plan, segmenter, recipe
        self.folder, self._check, self._record = plan.outputs.folder, check, record
        self.renderer = OutputRenderer(plan.outputs, segmenter)
        self.workers = segmenter.picture_workers(plan.outputs)
        self.maker = f"{segmenter.backend.name} {segmenter.backend.precision}"
        self.stages: dict[str, StageStats] = {}
        self._running: Callable[[], list[StageStats]] = list
        self._stop_reading: Callable[[], None] | None = None

    @property
    def stats(self) -> list[StageStats]:
        """What the stages of the pipeline that runs have done so far."""
        return self._running()

    @property
    def cpu(self) -> float:
        """Seconds of processor time of this process, and of its own workers where there are any."""
        return time.process_time() + (0.0 if self.workers is None else self.workers.workers.cpu)

    def _add_stages(self, stats: Iterable[StageStats]) -> None:
        for stage in stats:
            add_stats(self.stages.setdefault(stage.name, StageStats(stage.name, stage.workers)), stage)

    # Pictures.

    def pictures(
        self,
        items: Iterable[Item],
        stop: Stop,
        set_aside: Callable[[Item], None],
        is_idle: Callable[[], bool] = lambda: False,
    ) -> Iterator[Outcome]:
        """Send pictures through the pipeline; what becomes of them, in their order.

        Args:
            items: read a few ahead of the outcomes, in a thread of its own.
            stop: reads no more when called; what is in flight is finished.
            set_aside: called in that thread with what is to be segmented by itself.
            is_idle: whether the next item would have to be waited for.

        Raises:
            OutputError, RunError, SourceError: what concerns all items.
        """
        finish: list[tuple[str, Any]] = [("render", self.renderer.render), ("write", self._write)]
        if self.workers is not None:
            finish = [("render", self._finish_picture)]
        threads = {} if self.plan.outputs.store is None else {finish[-1][0]: UPLOADS}  # which mostly wait
        with self.segmenter.pipeline(
            self._tasks(items, set_aside, is_idle),
            finish,
            keep_pixels=self.renderer.needs_pixels,
            workers=self.workers,
            threads=threads,
        ) as results:
            self._stop_reading = results.stop
            stop.watch(results.stop)
            self._running = lambda: results.stats
            try:
                for result in results:
                    task = _task(result)
                    remote.release(task.path)
                    yield self._outcome(task, result)
            finally:
                self._running = list
                self._add_stages(results.stats)
                if self.workers is not None and self.workers.workers.deaths:
                    self.plan.outputs.clean_leftovers()

    def halt(self) -> None:
        """Read no more pictures; what is in flight is finished."""
        if self._stop_reading is not None:
            self._stop_reading()

    def _tasks(
        self, items: Iterable[Item], set_aside: Callable[[Item], None], is_idle: Callable[[], bool]
    ) -> Iterator[Task]:
        """Look at each source just before it is read; runs in the pipeline's first thread."""
        if any(remote.is_remote(folder) for folder in self.plan.sources.folders):
            items = remote.read_ahead(items, lambda item: item.path, is_idle)
        for item in items:
            if alone.find_work(item, self.plan, self.segmenter) is not None:
                remote.release(item.path)  # or those of all would lie here until their turn
                set_aside(item)
                continue
            yield self._begin(item)

    def _begin(self, item: Item) -> Task:
        return Task(item.path, item.key, item.is_clip, self.plan.identity(item), time.perf_counter())

    def _outcome(self, task: Task, result: HasItem | Failed[HasItem]) -> Outcome:
        if isinstance(result, Failed):
            passing = result.stage == "decode" and is_passing(result.error)
            return Outcome(
                task, task.identity, stage=result.stage, error=self._explain(result), passing=passing
            )
        assert isinstance(result, _Written)
        seconds = {**result.seconds, "all": time.perf_counter() - task.since}
        return Outcome(task, task.identity, result.record, seconds, result.notes)

    def _write(self, encoded: EncodedOutputs) -> _Written:
        """Write all files of a picture, and then its record; runs in the threads of the last stage."""
        begun, task = time.perf_counter(), _task(encoded)
        self._check()
        outputs: dict[str, Files] = {}
        for kind, file, data in encoded.files:
            write_atomic(os.path.join(self.folder, *file.split("/")), data)
            outputs[kind] = (*outputs.get(kind, ()), (file, len(data)))
        record = self._settle(task, task.identity, outputs)
        seconds = {"render": encoded.seconds, "write": time.perf_counter() - begun}
        return _Written(task, record, seconds, encoded.notes)

    def _finish_picture(self, picture: Prepared) -> _Written:
        """The same where a worker draws and writes: render and write at once."""
        assert self.workers is not None
        task = _task(picture)
        self._check()
        done = self.workers.finish(picture)
        files = self.plan.outputs
        outputs: dict[str, Files] = {
            name: ((files.file(kind, task.key), size),)
            for kind, name, size in zip(files.kinds, files.names, done.sizes, strict=True)
        }
        record = self._settle(task, task.identity, outputs)
        seconds = {"render": done.render_seconds, "write": done.write_seconds}
        return _Written(task, record, seconds, done.notes)

    def _settle(self, item: Item, identity: Identity | None, outputs: dict[str, Files]) -> Record:
        """Outputs stand under their names: upload them if these are addresses, and take note of it."""
        if identity is not None and self.plan.options.hash_sources:
            digest = sha256_of(item.path)
            if self.plan.identity(item) == identity:  # else the digest is of something else
                identity = identity._replace(sha256=digest)
        root = self.plan.sources.root_of(item.path)
        if (store := self.plan.outputs.store) is not None:
            store.upload([file for files in outputs.values() for file, _ in files])
        record = Record(item.key, "done", identity, self.recipe.digest, outputs, self.maker, root)
        self._record(record)
        return record

    def _explain(self, outcome: Failed[HasItem]) -> UnetBatchError:
        """The failure in our own words; a file that is gone is nothing that its decoder could explain.

        Raises:
            SourceError: the folder that all sources lie in is gone: so would be the next one.
        """
        item = item_of(outcome)
        root = self.plan.sources.root_of(item.path)
        if outcome.stage == "decode" and item.key not in self.plan.absent and not archives.exists(item.path):
            if not archives.is_folder(root):
                raise SourceError(f"{root} vanished while the run read from it", hint="reconnect its disk")
            return SourceVanished(
                f"{item.path}: it was there when the run began, and is gone now",
                hint="restore it, or leave it out",
            )
        return as_error(outcome)

    # Pictures that memory does not hold, those of several pages, and clips.

    def alone(self, item: Item, codec: Codec | None, on_progress: Progress, stop: Stop) -> Outcome | None:
        """Segment one item by itself.

        Args:
            item: a clip, or a picture that `pictures` has set aside.
            codec: of overlays of clips.
            on_progress: hears how far it is.
            stop: ends it early; what is there is kept, or nothing is left.

        Returns:
            What became of it; None where that is nothing, as it was stopped.

        Raises:
            OutputError, RunError, UsageError: what concerns all items.
        """
        if item.is_clip:
            assert codec is not None, "clips have an encoder"
            return self._segment_clip(item, codec, on_progress, stop)
        return self._segment_alone(item, on_progress, stop)

    def _segment_alone(self, item: Item, on_progress: Progress, stop: Stop) -> Outcome | None:
        """Segment one picture by itself, and again what a disk or network failed to read."""
        retried = 0
        for pause in (*self.plan.options.retry_pauses, None):
            if stop.reason:
                return None
            self._check()
            task = self._begin(item)
            try:
                alone.copy_here(item)
                found = alone.find_work(item, self.plan, self.segmenter)
                if found is None:
                    raise ImageError(f"{item.path}: changed while the run read it", hint="run again")
                work = found
                result = work.segment(lambda done, total: on_progress(item, done, total), stop)
                break
            except RunError:
                raise
            except Exception as error:  # noqa: BLE001 - one bad picture costs one picture
                remote.release(item.path)
                if pause is None or not is_passing(error):
                    failed: Failed[HasItem] = Failed(alone.stage_of(error), error, task)
                    return Outcome(
                        item, task.identity, stage=failed.stage, error=self._explain(failed), retried=retried
                    )
            stop.sleep(pause)
            retried += 1
        remote.release(item.path)
        self._add_stages(result.stages)
        if not result.complete:
            return None
        notes = result.notes
        if self.workers is not None:
            notes += ("read in this process, not in one of its own",)
        files: dict[str, Files] = {
            self.plan.outputs.style.name(kind): ((work.file(kind, item.key), size),)
            for kind, size in result.outputs.items()
        }
        record = self._settle(item, task.identity, files)
        seconds = {"all": time.perf_counter() - task.since}
        return Outcome(item, task.identity, record, seconds, tuple(notes), retried=retried)

    def _segment_clip(self, item: Item, codec: Codec, on_progress: Progress, stop: Stop) -> Outcome:
        """Segment one clip: its own pipeline, its own record."""
        options, identity, begun = self.plan.options.video, self.plan.identity(item), time.perf_counter()
        layout = ClipLayout(self.folder, self.plan.options.save, codec, self.plan.options.style)
        self._check()
        source = [identity.size, identity.mtime_ns] if identity is not None else []
        fingerprint = json.dumps([self.recipe.digest, codec.encoder, *self.plan.kinds(item), *source])
        try:
            self.segmenter.check_clip(shown(item.path))
            alone.copy_here(item)
            result = clips.segment(
                item,
                self.segmenter,
                layout,
                options,
                fingerprint,
                lambda done, total: on_progress(item, done, total),
                stop,
            )
            outputs = self._recorded_files(item, layout, result) if result.complete else {}
        except (RunError, UsageError):  # an output folder that cannot be written, above all
            raise
        except Exception as error:  # noqa: BLE001 - one bad clip costs one clip
            return Outcome(item, identity, stage="clip", error=as_error(Failed("clip", error, item)))
        finally:
            remote.release(item.path)
        self._add_stages(result.stages)
        seconds = time.perf_counter() - begun
        facts = {
            "path": shown(item.path),
            "frames": result.frames,
            "resumed": result.resumed,
            "damaged": result.damaged,
            "complete": result.complete,
            "seconds": round(seconds, 3),
            "notes": result.notes,
        }
        record = self._settle(item, identity, outputs) if result.complete else None
        return Outcome(item, identity, record, {"all": seconds}, clip=facts)

    def _recorded_files(self, item: Item, layout: ClipLayout, result: clips.ClipResult) -> dict[str, Files]:
        """The files of a finished clip as the manifest has them."""
        names = dict(zip(("timeline", *layout.kinds), self.plan.kinds(item), strict=True))
        return {
            names[kind]: tuple(
                (os.path.relpath(path, self.folder).replace(os.sep, "/"), os.path.getsize(path))
                for path in paths
            )
            for kind, paths in result.files.items()
        }


def _task(outcome: HasItem | Failed[HasItem]) -> Task:
    task = item_of(outcome)
    assert isinstance(task, Task), "the pipeline was given tasks"
    return task
