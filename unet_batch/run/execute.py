"""Carry out `unet-batch run`: from a plan to files on disk and a report.

    plan = prepare(options)        # sources and output folder: nothing is written, no model is loaded
    report = execute(plan, segmenter)

`execute` holds the folder's lock, compares the sources with the manifest (`plan.resume`, which also stands
alone, for a dry run), and does what is left.

Four things happen to an item: its source is looked at just before it is read, it goes through the pipeline,
its outputs are renamed into place, and the thread that did that records it. So a record is never ahead of its
files, and a source that changes while it is read counts as changed next time.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unet_batch.errors import (
    OutputError,
    RunError,
    SourceError,
    SourceVanished,
    UnetBatchError,
    UsageError,
)
from unet_batch.files import archives, remote
from unet_batch.files.atomic import write_atomic, write_json
from unet_batch.files.locks import claim
from unet_batch.files.naming import shown
from unet_batch.files.staging import UPLOADS
from unet_batch.inference.segmenter import Segmenter, as_error, item_of
from unet_batch.pipeline import Failed, Pipeline, StageStats, bottleneck, cpu_count
from unet_batch.run import alone, tables
from unet_batch.run import clip as clips
from unet_batch.run.layout import ClipLayout, choose_encoder
from unet_batch.run.observe import Observer, Stop
from unet_batch.run.outcomes import Outcomes, is_passing
from unet_batch.run.pictures import EncodedOutputs, OutputRenderer
from unet_batch.run.plan import RunPlan, recipe_of, resume
from unet_batch.run.records import Files, Identity, OutputRecipe
from unet_batch.run.report import Backlog, RunReport, add_stats, run_name, versions
from unet_batch.types import HasItem, Item
from unet_batch.version import __version__

if TYPE_CHECKING:
    from unet_batch.inference.workers import Prepared

_SAMPLE_SECONDS = 1.0  # between two looks at the queues
_AGAIN = "then run the same command again: what is done stays done"


def execute(
    plan: RunPlan,
    segmenter: Segmenter,
    observer: Observer = Observer(),  # noqa: B008 - it has no state
    stop: Stop | None = None,
    *,
    join_tables: bool = True,
) -> RunReport:
    """Segment what is left of the plan.

    Args:
        plan: from `prepare`.
        segmenter: open.
        observer: hears what happens.
        stop: ends the run when it is called.
        join_tables: bring the tables of the folder up to date, if it has any.

    Returns:
        The report, which also stands in `OUT/run.json`. After Ctrl-C or `stop` its status is `interrupted`:
        what was written is whole, and the next run goes on from there.

    Raises:
        OutputError: the output folder cannot be written, vanished, is another run's, or holds what must not
            be mixed.
        SourceError: the folder of the sources vanished.
        BackendError: the backend fails for one picture after the other.
    """
    renderer = OutputRenderer(plan.outputs, segmenter)
    recipe = recipe_of(segmenter, plan.options.pages)
    plan.outputs.prepare()
    folder, wait, store = plan.outputs.folder, plan.options.wait, plan.outputs.store
    with ExitStack() as stack:
        stack.callback(remote.release_all)
        locked = stack.enter_context(claim(folder, plan.part, wait=wait, on_wait=observer.wait))
        if store is not None:
            stack.enter_context(store.session(plan.part, wait=wait, on_wait=observer.wait))
        plan = resume(plan, recipe)
        if not locked:
            note = "this file system has no locks: see to it that no other run writes to the same folder"
            plan = dataclasses.replace(plan, notes=(*plan.notes, note))
        plan.outputs.clean_leftovers()
        observer.start(plan)
        return _Run(plan, segmenter, recipe, renderer, observer, stop or Stop(), join_tables).carry_out()


@dataclass(frozen=True, slots=True)
class Task(Item):
    """An item on its way through the pipeline.

    Attributes:
        identity: its source just before it was read.
        since: when that was, as `time.perf_counter` has it.
    """

    identity: Identity | None = None
    since: float = 0.0


@dataclass(frozen=True)
class _Written:
    """A picture whose outputs stand under their names, the seconds of the stages that know it, and notes."""

    item: Item
    seconds: dict[str, float]
    notes: tuple[str, ...]


class _Run:
    """One run, from the opened manifest to the written report."""

    def __init__(
        self,
        plan: RunPlan,
        segmenter: Segmenter,
        recipe: OutputRecipe,
        renderer: OutputRenderer,
        observer: Observer,
        stop: Stop,
        joins_tables: bool,
    ) -> None:
        assert plan.manifest is not None, "not resumed"
        self.plan, self.segmenter, self.recipe, self.renderer = plan, segmenter, recipe, renderer
        self.manifest, self.observer, self.stop = plan.manifest, observer, stop
        self.folder = plan.outputs.folder
        self.joins_tables = joins_tables and not plan.part  # those of shards: when these are merged
        self.workers = segmenter.picture_workers(plan.outputs)
        self.report = _new_report(plan, segmenter)
        self.stages: dict[str, StageStats] = {}
        self.backlog = Backlog()
        self.alone: list[tuple[Item, alone.Work]] = []  # pictures that come behind the others

        # A run of everything that comes later finds that shards have been here.
        whole = os.path.join(self.folder, run_name(""))
        if plan.part and not os.path.exists(whole):
            write_json(whole, {"unet_batch": __version__, "status": "sharded"})
        maker = f"{segmenter.backend.name} {segmenter.backend.precision}"
        self.outcomes = Outcomes(plan, self.manifest, recipe.digest, maker, self.report, observer)

    def carry_out(self) -> RunReport:
        """Segment what is left, and write the report; see `execute`."""
        report, outcomes = self.report, self.outcomes
        begun, cpu = time.perf_counter(), self._processor_seconds()
        try:
            self._write_report()
            outcomes.tell(
                "start",
                output=self.plan.outputs.name,
                shard=report.shard,
                model=report.model,
                found=report.found,
                states=report.states,
            )
            with self.manifest.writing(self.recipe):
                outcomes.record_earlier()
                self._segment()
            if report.status == "running":
                report.status = "failures" if report.failed else "done"
            if self.stop.reason and report.left:
                report.status, report.signal = "interrupted", self.stop.reason
            elif self.joins_tables:
                tables.finish_tables(self.plan, report, self.manifest)
        except KeyboardInterrupt:
            report.status = "interrupted"
        except (OutputError, SourceError) as error:
            report.status = "aborted"
            if _AGAIN in error.hint:
                raise
            raise error.with_hint(f"{error.hint}; {_AGAIN}" if error.hint else _AGAIN) from error
        except BaseException:
            report.status = "aborted"
            raise
        finally:
            self._finish(time.perf_counter() - begun, self._processor_seconds() - cpu)
        return report

    def _finish(self, seconds: float, cpu: float) -> None:
        """Write the final report.

        Args:
            seconds: that the run took.
            cpu: seconds of processor time in them.
        """
        report = self.report
        report.seconds = seconds
        report.floor_seconds = self._floor(cpu)
        report.stages = list(self.stages.values())
        report.bottleneck = bottleneck(report.stages).name if self.plan.todo and report.stages else ""
        report.backlog = self.backlog.figures()
        # What aborted the run is what the caller must hear of, not that its report met the same full disk.
        what_aborted = suppress(OutputError) if report.status == "aborted" else nullcontext()
        with what_aborted:
            self.outcomes.close()
        with what_aborted:
            if os.path.exists(self.manifest.path):  # or the folder is gone, and would be made again
                self._write_report()
        self.outcomes.tell(
            "end", status=report.status, done=report.done, failed=report.failed, left=report.left
        )

    def _write_report(self) -> None:
        write_json(os.path.join(self.folder, run_name(self.plan.part)), self.report.as_dict())

    def _processor_seconds(self) -> float:
        """Of this process, and of the workers where there are any."""
        return time.process_time() + (0.0 if self.workers is None else self.workers.workers.cpu)

    def _floor(self, cpu: float) -> float:
        """Seconds if nothing ever waited: the network's, and the processor's for all else over the cores."""
        network = self.stages.get("infer")
        if network is None or self.segmenter.backend.name.endswith(("cpu", "openvino")):
            return cpu / cpu_count()
        return network.busy / network.workers + (cpu - network.cpu) / cpu_count()

    def _add_stages(self, stats: Iterable[StageStats]) -> None:
        for stage in stats:
            total = self.stages.setdefault(stage.name, StageStats(stage.name, stage.workers))
            add_stats(total, stage)

    def _segment(self) -> None:
        """The pictures, then those that memory does not hold, then the clips, both one at a time."""
        moving = [item for item in self.plan.todo if item.is_clip]
        if moving:  # before the pictures: an encoder that does not work is not to be found out in the morning
            codec, reason = choose_encoder(self.plan.options.video.codec, self.plan.options.save)
            self.report.encoder = {"name": codec.encoder, "reason": reason}
            layout = ClipLayout(self.folder, self.plan.options.save, codec, self.plan.options.style)
        self._segment_pictures([item for item in self.plan.todo if not item.is_clip])
        for item, work in self.alone:
            self._segment_alone(item, work)
        for item in moving:
            if self.report.status == "running" and not self.stop.reason:
                self._segment_clip(item, layout)

    # Pictures.

    def _segment_pictures(self, pending: Sequence[Item]) -> None:
        """Everything once, then what a disk or network failed to read, a few times more."""
        pauses = (0.0, *self.plan.options.retry_pauses)
        for attempt, pause in enumerate(pauses, 1):
            if pending and self.report.status == "running":
                self.stop.sleep(pause)
            if not pending or self.stop.reason or self.report.status != "running":
                return
            self.report.retried += len(pending) if attempt > 1 else 0
            pending = self._try(pending, last=attempt == len(pauses))

    def _try(self, items: Iterable[Item], *, last: bool) -> Sequence[Item]:
        """Send items through the pipeline; returns those that are worth another try."""
        finish: list[tuple[str, Any]] = [("render", self.renderer.render), ("write", self._write)]
        if self.workers is not None:
            finish = [("render", self._finish_picture)]
        threads = {} if self.plan.outputs.store is None else {finish[-1][0]: UPLOADS}  # which mostly wait
        with self.segmenter.pipeline(
            self._tasks(items),
            finish,
            keep_pixels=self.renderer.needs_pixels,
            workers=self.workers,
            threads=threads,
        ) as results:
            self.stop.watch(results.stop)
            try:
                return self._consume(results, last=last)
            finally:
                self._add_stages(results.stats)
                if self.workers is not None and self.workers.workers.deaths:
                    self.plan.outputs.clean_leftovers()

    def _tasks(self, items: Iterable[Item]) -> Iterator[Task]:
        """Look at each source just before it is read; runs in the pipeline's first thread."""
        if any(remote.is_remote(folder) for folder in self.plan.sources.folders):
            items = remote.read_ahead(items, lambda item: item.path)
        for item in items:
            if (work := alone.find_work(item, self.plan, self.segmenter)) is not None:
                self.alone.append((item, work))
                remote.release(item.path)  # or those of all would lie here until their turn
                continue
            yield self._task(item)

    def _task(self, item: Item) -> Task:
        return Task(item.path, item.key, item.is_clip, self.plan.identity(item), time.perf_counter())

    def _write(self, encoded: EncodedOutputs) -> _Written:
        """Write all files of a picture, and then its record; runs in the threads of the last stage."""
        begun, task = time.perf_counter(), _task(encoded)
        self.manifest.check()  # a folder that was removed must not come back half empty
        outputs: dict[str, Files] = {}
        for kind, file, data in encoded.files:
            write_atomic(os.path.join(self.folder, *file.split("/")), data)
            outputs[kind] = (*outputs.get(kind, ()), (file, len(data)))
        self.outcomes.record_done(task, task.identity, outputs)
        seconds = {"render": encoded.seconds, "write": time.perf_counter() - begun}
        return _Written(task, seconds, encoded.notes)

    def _finish_picture(self, picture: Prepared) -> _Written:
        """The same where a worker draws and writes: render and write at once."""
        assert self.workers is not None
        task = _task(picture)
        self.manifest.check()
        done = self.workers.finish(picture)
        files = self.plan.outputs
        outputs: dict[str, Files] = {
            name: ((files.file(kind, task.key), size),)
            for kind, name, size in zip(files.kinds, files.names, done.sizes, strict=True)
        }
        self.outcomes.record_done(task, task.identity, outputs)
        seconds = {"render": done.render_seconds, "write": done.write_seconds}
        return _Written(task, seconds, done.notes)

    def _consume(
        self, results: Pipeline[HasItem, _Written | Failed[HasItem]], *, last: bool
    ) -> Sequence[Item]:
        again: list[Item] = []
        self.backlog.begin()
        for outcome in results:
            task = _task(outcome)
            remote.release(task.path)
            if isinstance(outcome, Failed):
                self.backlog.failed[outcome.stage] += 1
                if not last and outcome.stage == "decode" and is_passing(outcome.error):
                    again.append(task)
                    continue
                if self.outcomes.fail(task, task.identity, outcome.stage, self._explain(outcome)):
                    results.stop()
            else:
                seconds = {**outcome.seconds, "all": time.perf_counter() - task.since}
                self.outcomes.count_done(task, task.path, seconds, outcome.notes)
            self._look_around(results)
        return again

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

    def _look_around(self, results: Pipeline[HasItem, Any]) -> None:
        now, report = time.monotonic(), self.report
        if now - self.backlog.seen >= _SAMPLE_SECONDS:
            self.backlog.look(results.stats, now)
        self.outcomes.tell_progress(
            lambda: {
                "done": report.done,
                "failed": report.failed,
                "left": report.left,
                "backlog": self.backlog.now,
            }
        )

    # Pictures that memory does not hold, and those of several pages.

    def _segment_alone(self, item: Item, work: alone.Work) -> None:
        """Segment one picture by itself, and again what a disk or network failed to read."""

        def on_progress(done: int, total: int) -> None:
            self.observer.frame(item, done, total)
            self.outcomes.tell_progress(lambda: {"path": shown(item.path), "done": done, "of": total})

        for pause in (*self.plan.options.retry_pauses, None):
            if self.report.status != "running" or self.stop.reason:
                return
            self.manifest.check()
            task = self._task(item)
            try:
                alone.copy_here(item)
                result = work.segment(on_progress, self.stop)
                break
            except RunError:
                raise
            except Exception as error:  # noqa: BLE001 - one bad picture costs one picture
                remote.release(item.path)
                if pause is None or not is_passing(error):
                    failed: Failed[HasItem] = Failed(alone.stage_of(error), error, task)
                    self.outcomes.fail(item, task.identity, failed.stage, self._explain(failed))
                    return
            self.stop.sleep(pause)
            self.report.retried += 1
        remote.release(item.path)
        self._add_stages(result.stages)
        if result.complete:
            notes = result.notes
            if self.workers is not None:
                notes += ("read in this process, not in one of its own",)
            files: dict[str, Files] = {
                self.plan.outputs.style.name(kind): ((work.file(kind, item.key), size),)
                for kind, size in result.outputs.items()
            }
            self.outcomes.record_done(item, task.identity, files)
            seconds = {"all": time.perf_counter() - task.since}
            self.outcomes.count_done(item, item.path, seconds, notes)

    # Clips.

    def _segment_clip(self, item: Item, layout: ClipLayout) -> None:
        """Segment one clip: its own pipeline, its own record."""
        options, identity, begun = self.plan.options.video, self.plan.identity(item), time.perf_counter()
        self.manifest.check()
        source = [identity.size, identity.mtime_ns] if identity is not None else []
        fingerprint = json.dumps([self.recipe.digest, layout.codec.encoder, *self.plan.kinds(item), *source])

        def on_frame(done: int, total: int | None) -> None:
            self.observer.frame(item, done, total)
            self.outcomes.tell_progress(lambda: {"path": shown(item.path), "frames": done, "of": total})

        try:
            self.segmenter.check_clip(shown(item.path))
            alone.copy_here(item)
            result = clips.segment(item, self.segmenter, layout, options, fingerprint, on_frame, self.stop)
            outputs = self._recorded_files(item, layout, result) if result.complete else {}
        except (RunError, UsageError):  # an output folder that cannot be written, above all
            raise
        except Exception as error:  # noqa: BLE001 - one bad clip costs one clip
            self.outcomes.fail(item, identity, "clip", as_error(Failed("clip", error, item)))
            return
        finally:
            remote.release(item.path)
        self._add_stages(result.stages)
        seconds = time.perf_counter() - begun
        self.report.frames += result.frames - result.resumed
        self.report.clips.append(
            {
                "path": shown(item.path),
                "frames": result.frames,
                "resumed": result.resumed,
                "damaged": result.damaged,
                "complete": result.complete,
                "seconds": round(seconds, 3),
                "notes": result.notes,
            }
        )
        if result.complete:
            self.outcomes.record_done(item, identity, outputs)
            self.outcomes.count_done(item, shown(item.path), {"all": seconds}, frames=result.frames)

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


def _new_report(plan: RunPlan, segmenter: Segmenter) -> RunReport:
    return RunReport(
        unet_batch=__version__,
        status="running",
        output=plan.outputs.name,
        sources=tuple(map(shown, plan.options.sources)),
        save=plan.options.save,
        model=segmenter.describe_model(),
        backend=segmenter.describe(),
        found=len(plan.items),
        skipped=plan.skipped,
        shard=str(plan.options.shard or ""),
        overwrite=plan.options.overwrite,
        states=plan.states,
        notes=plan.notes,
        parquet=plan.options.parquet,
        tables=tables.known_of(plan.outputs.folder),
        versions=versions(),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        command=plan.options.command,
    )
