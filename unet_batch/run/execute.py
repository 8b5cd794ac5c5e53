"""The composition root of `unet-batch run`: from options to files on disk and a report.

    plan = prepare(options)        # sources and output folder: nothing is written, no model is loaded
    report = execute(plan, segmenter)

`execute` holds the folder's lock, compares the sources with the manifest (`planning.resume`, which also
stands alone, for a dry run), and does what is left. Reading the options back is never needed: what was chosen
stands in the plan and the report.

Four things happen to an item: its source is looked at just before it is read, it goes through the pipeline,
its outputs are renamed into place, and the thread that did that records it. So a record is never ahead of its
files, and a source that changes while it is read counts as changed next time.

A long room, in three parts: what starts and stops a run; `_Run`, whose methods share one report; the
rendering of pictures.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unet_batch.errors import (
    BackendError,
    DecoderCrashed,
    OutputError,
    RunError,
    SourceError,
    SourceVanished,
    UnetBatchError,
    UsageError,
)
from unet_batch.files.atomic import LineLog, write_atomic, write_json
from unet_batch.files.locks import claim
from unet_batch.files.naming import shown
from unet_batch.inference import postprocess
from unet_batch.inference.segmenter import Segmenter, as_error, item_of
from unet_batch.media import images, render
from unet_batch.pipeline import Failed, Pipeline, StageStats, bottleneck, cpu_count
from unet_batch.run import clip as clips
from unet_batch.run import report as reports
from unet_batch.run.manifest import Files, Identity, Recipe, Record, sha256_of
from unet_batch.run.observe import Observer, Stop
from unet_batch.run.plan import Plan, RunOptions, is_clip, prepare, recipe_of, resume
from unet_batch.run.report import LISTED_FAILURES, Failure, RunReport, run_name, versions
from unet_batch.types import HasItem, Item, Prediction
from unet_batch.version import __version__

if TYPE_CHECKING:
    from unet_batch.inference.backends.select import Step
    from unet_batch.types import Pixels

__all__ = [
    "Failure",
    "Plan",
    "RunOptions",
    "RunReport",
    "Stop",
    "execute",
    "prepare",
    "recipe_of",
    "resume",
    "versions",
]

# What can only be made from the picture's own pixels.
NEED_PIXELS = frozenset({"overlay", "cutout"})
# So many inference failures in a row, with no success between, are the device's fault, not the pictures'.
BROKEN_DEVICE = 8
# Seconds before what a disk or network failed to read is tried again, after everything else: it has had that
# time, too.
RETRY_PAUSES = (1.0, 5.0, 25.0)
_PASSING = frozenset(
    code
    for name in (
        *(
            "EIO",
            "EAGAIN",
            "EINTR",
            "EBUSY",
            "ENFILE",
            "EMFILE",
            "ESTALE",
            "EREMOTEIO",
            "ENOBUFS",
            "ETIMEDOUT",
        ),
        *(
            "ECONNRESET",
            "ECONNABORTED",
            "ENOTCONN",
            "ENETDOWN",
            "ENETUNREACH",
            "ENETRESET",
            "EHOSTDOWN",
            "EHOSTUNREACH",
        ),
    )
    if (code := getattr(errno, name, None)) is not None
)
_SAMPLE_SECONDS = 1.0  # between two looks at the queues
_PROGRESS_SECONDS = 10.0  # between two lines of progress in the log
_AGAIN = "then run the same command again: what is done stays done"


def execute(
    plan: Plan,
    segmenter: Segmenter,
    observer: Observer = Observer(),  # noqa: B008 - it has no state
    stop: Stop | None = None,
    *,
    model: Mapping[str, Any] | None = None,
    passed_over: Sequence[Step] = (),
) -> RunReport:
    """Segment what is left of the plan.

    Args:
        plan: from `prepare`.
        segmenter: open.
        observer: hears what happens.
        stop: ends the run when it is called.
        model: name, path and sha256 of the model, for recipe and report.
        passed_over: backends that could not run, for the report.

    Returns:
        The report, which also stands in `OUT/run.json`. After Ctrl-C or `stop` its status is `interrupted`:
        what was written is whole, and the next run goes on from there.

    Raises:
        OutputError: the output folder cannot be written, vanished, is another run's, or holds what must not
            be mixed.
        SourceError: the folder of the sources vanished.
        BackendError: the backend fails for one picture after the other.
    """
    writer = _Writer(plan, segmenter)
    model = model or {}
    recipe = recipe_of(segmenter, model)
    plan.outputs.prepare()
    folder, wait = plan.outputs.folder, plan.options.wait
    with claim(folder, plan.part, wait=wait, on_wait=observer.wait) as locked:
        plan = resume(plan, recipe)
        if not locked:
            note = "this file system has no locks: see to it that no other run writes to the same folder"
            plan = dataclasses.replace(plan, notes=(*plan.notes, note))
        plan.outputs.clean_leftovers()
        observer.start(plan)
        report = _new_report(plan, segmenter, model, passed_over)
        return _Run(plan, segmenter, recipe, report, observer, stop or Stop()).execute(writer)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """The outputs of one item as files to be.

    Attributes:
        item: whose they are.
        files: (kind, file relative to the output folder, bytes); emptied once they are written.
        seconds: spent in the stages that know of it.
    """

    item: Item
    files: tuple[tuple[str, str, bytes], ...]
    seconds: dict[str, float]


class _Run:
    """One run, from the opened manifest to the written report."""

    def __init__(
        self,
        plan: Plan,
        segmenter: Segmenter,
        recipe: Recipe,
        report: RunReport,
        observer: Observer,
        stop: Stop,
    ) -> None:
        assert plan.manifest is not None, "not resumed"
        self.plan, self.segmenter, self.recipe, self.report = plan, segmenter, recipe, report
        self.manifest = plan.manifest
        self.observer, self.stop = observer, stop
        self.maker = f"{segmenter.backend.name} {segmenter.backend.precision}"
        self.limit = 1 if plan.options.fail_fast else plan.options.max_errors
        # Of what is in flight: its source, and since when
        self.reading: dict[str, tuple[Identity | None, float]] = {}
        self.stages: dict[str, StageStats] = {}
        self.backlog = reports.Backlog()
        self.infer_failures = 0
        self.spoken = time.monotonic()
        self.errors: LineLog

    def execute(self, writer: _Writer) -> RunReport:
        """Do it; see the function `execute`."""
        plan, report = self.plan, self.report
        folder = plan.outputs.folder
        run_json = os.path.join(folder, run_name(plan.part))
        if plan.part and not os.path.exists(os.path.join(folder, run_name(""))):
            write_json(os.path.join(folder, run_name("")), {"unet_batch": __version__, "status": "sharded"})
        begun, cpu = time.perf_counter(), time.process_time()
        self.errors = LineLog(report.errors_file)
        try:
            write_json(run_json, report.as_dict())
            self._tell(
                "start",
                output=folder,
                shard=report.shard,
                model=report.model,
                found=report.found,
                states=report.states,
            )
            with self.manifest.writing(self.recipe):
                self.manifest.record(*plan.records)
                if plan.options.shard is None or plan.options.shard.number == 1:
                    report.unreadable = len(plan.sources.unreadable)
                    for path, reason in plan.sources.unreadable:
                        self._fail(Failure(path, "source", "SourceError", f"{path}: {reason}", ""))
                for item in plan.quarantined:
                    message = f"{item.path}: crashed its decoder in an earlier run, and was not tried again"
                    hint = "--isolate tries it in a process of its own"
                    self._fail(Failure(item.path, "decode", DecoderCrashed.__name__, message, hint), item.key)
                self._segment(writer)
            if report.status == "running":
                report.status = "failures" if report.failed else "done"
            if self.stop.reason and report.left:
                report.status, report.signal = "interrupted", self.stop.reason
        except KeyboardInterrupt:
            report.status = "interrupted"
        except BaseException as error:
            report.status = "aborted"
            if isinstance(error, OutputError | SourceError):
                error.hint = (
                    f"{error.hint}; {_AGAIN}"
                    if error.hint and _AGAIN not in error.hint
                    else error.hint or _AGAIN
                )
            raise
        finally:
            report.seconds = time.perf_counter() - begun
            report.floor_seconds = self._floor(time.process_time() - cpu)
            report.stages = list(self.stages.values())
            report.bottleneck = bottleneck(report.stages).name if plan.todo and report.stages else ""
            report.backlog = self.backlog.figures()
            self.errors.close()
            # What aborted the run is what the caller must hear of, not that its report met the same full
            # disk.
            with suppress(OutputError) if report.status == "aborted" else nullcontext():
                if os.path.exists(self.manifest.path):  # or the folder is gone, and would be made again
                    write_json(run_json, report.as_dict())
            self._tell("end", status=report.status, done=report.done, failed=report.failed, left=report.left)
        return report

    def _floor(self, cpu: float) -> float:
        """Seconds that would do if nothing ever waited: the network's, and the processor's for all else over
        the cores.
        """
        network = self.stages.get("infer")
        if network is None or self.segmenter.backend.name.endswith("cpu"):
            return cpu / cpu_count()
        return network.busy / network.workers + (cpu - network.cpu) / cpu_count()

    def _segment(self, writer: _Writer) -> None:
        """The pictures, then the clips, one at a time."""
        moving = [item for item in self.plan.todo if is_clip(item)]
        if moving:  # before the pictures: an encoder that does not work is not to be found out in the morning
            codec, reason = clips.choose_encoder(self.plan.options.video.codec)
            self.report.encoder = {"name": codec.encoder, "reason": reason}
            layout = clips.Layout(self.plan.outputs.folder, self.plan.options.save, codec)
        self._pictures(writer, [item for item in self.plan.todo if not is_clip(item)])
        for item in moving:
            if self.report.status == "running" and not self.stop.reason:
                self._clip(item, layout)

    def _pictures(self, writer: _Writer, pending: Sequence[Item]) -> None:
        """Everything once, then what a disk or network failed to read, up to three times more."""
        for attempt, pause in enumerate((0.0, *RETRY_PAUSES)):
            if pending and self.report.status == "running":
                self.stop.sleep(pause)
            if not pending or self.stop.reason or self.report.status != "running":
                return
            self.report.retried += len(pending) if attempt else 0
            pending = self._pass(pending, writer, last=attempt == len(RETRY_PAUSES))

    def _pass(self, items: Iterable[Item], writer: _Writer, *, last: bool) -> Sequence[Item]:
        """Send items through the pipeline; returns those that are worth another try."""
        finish: list[tuple[str, Callable[[Any], Any]]] = [("render", writer.render), ("write", self._write)]
        keep_pixels = bool(NEED_PIXELS.intersection(self.plan.outputs.kinds))
        with self.segmenter.pipeline(self._looked_at(items), finish, keep_pixels=keep_pixels) as results:
            self.stop.watch(results.stop)
            try:
                return self._consume(results, last=last)
            finally:
                for stage in results.stats:
                    total = self.stages.setdefault(stage.name, StageStats(stage.name, stage.workers))
                    reports.add(total, stage)

    def _clip(self, item: Item, layout: clips.Layout) -> None:
        """Segment one clip: its own pipeline, its own record."""
        options, identity, begun = self.plan.options.video, self.plan.identity(item), time.perf_counter()
        self.manifest.check()
        source = [identity.size, identity.mtime_ns] if identity is not None else []
        folder = self.plan.outputs.folder
        names = dict(zip(("timeline", *layout.kinds), options.names(self.plan.options.save), strict=True))
        deciding = [self.recipe.digest, layout.codec.encoder, *self.plan.kinds(item), *source]
        try:
            result = clips.segment(
                item,
                self.segmenter,
                layout,
                options,
                json.dumps(deciding),
                lambda done, total: self._frame(item, done, total),
                self.stop.watch,
            )
            outputs = {
                names[kind]: tuple(
                    (os.path.relpath(path, folder).replace(os.sep, "/"), os.path.getsize(path))
                    for path in paths
                )
                for kind, paths in (result.files.items() if result.complete else ())
            }
        except RunError:  # an output folder that cannot be written, above all
            raise
        except Exception as error:  # noqa: BLE001 - one bad clip costs one clip
            self._failed(item, identity, "clip", as_error(Failed("clip", error, item)))
            return
        for stage in result.stages:
            reports.add(self.stages.setdefault(stage.name, StageStats(stage.name, stage.workers)), stage)
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
        if not result.complete:
            return
        self.infer_failures = 0
        self.manifest.record(
            Record(
                item.key,
                "done",
                self._hashed(item, identity),
                self.recipe.digest,
                outputs,
                self.maker,
                self.plan.sources.root,
            )
        )
        self.report.done += 1
        self._tell(
            "item",
            status="done",
            key=item.key,
            path=shown(item.path),
            frames=result.frames,
            seconds={"all": round(seconds, 6)},
        )
        self.observer.outcome(item, None)

    def _frame(self, item: Item, done: int, total: int | None) -> None:
        self.observer.frame(item, done, total)
        if time.monotonic() - self.spoken >= _PROGRESS_SECONDS:
            self.spoken = time.monotonic()
            self._tell("progress", path=shown(item.path), frames=done, of=total)

    def _failed(self, item: Item, identity: Identity | None, stage: str, error: UnetBatchError) -> bool:
        """Record that an item failed; returns whether it was one failure too many.

        Raises:
            BackendError: the device has failed for one item after the other.
        """
        failure = Failure(shown(item.path), stage, type(error).__name__, error.message, error.hint)
        if stage == "infer" or (stage == "clip" and isinstance(error, BackendError)):
            self.infer_failures += 1
            if self.infer_failures >= BROKEN_DEVICE:
                raise error
        self.manifest.record(
            Record(item.key, "failed", identity, self.recipe.digest, error=f"{stage}: {failure.error}")
        )
        self._fail(failure, item.key)
        enough = self.limit is not None and self.report.failed >= self.limit
        if enough:
            self.report.status = "stopped"
        self.observer.outcome(item, failure)
        return enough

    def _looked_at(self, items: Iterable[Item]) -> Iterator[Item]:
        """Runs in the thread of the source: how each file is just before it is read."""
        for item in items:
            self.reading[item.key] = (self.plan.identity(item), time.perf_counter())
            yield item

    def _write(self, encoded: _Encoded) -> _Encoded:
        """Runs in the last stage's threads: all files of an item, and then its record."""
        begun = time.perf_counter()
        item, folder = encoded.item, self.plan.outputs.folder
        self.manifest.check()  # a folder that was removed must not come back half empty
        outputs: dict[str, Files] = {}
        for kind, file, data in encoded.files:
            write_atomic(os.path.join(folder, *file.split("/")), data)
            outputs[kind] = (*outputs.get(kind, ()), (file, len(data)))
        identity = self._hashed(item, self.reading[item.key][0])
        self.manifest.record(
            Record(
                item.key, "done", identity, self.recipe.digest, outputs, self.maker, self.plan.sources.root
            )
        )
        encoded.seconds["write"] = time.perf_counter() - begun
        return _Encoded(item, (), encoded.seconds)

    def _hashed(self, item: Item, identity: Identity | None) -> Identity | None:
        """With the digest of the contents, if that was asked for."""
        if identity is None or not self.plan.options.hash_sources:
            return identity
        digest = sha256_of(item.path)
        # Else the digest is of something else.
        return identity._replace(sha256=digest) if self.plan.identity(item) == identity else identity

    def _consume(self, results: Pipeline[HasItem, Any], *, last: bool) -> Sequence[Item]:
        again: list[Item] = []
        self.backlog.begin()
        for outcome in results:
            item = item_of(outcome)
            identity, since = self.reading.pop(item.key)
            if isinstance(outcome, Failed):
                self.backlog.failed[outcome.stage] += 1
                if not last and outcome.stage == "decode" and _is_passing(outcome.error):
                    again.append(item)
                    continue
                if self._failed(item, identity, outcome.stage, self._explained(outcome)):
                    results.stop()
            else:
                self.report.done += 1
                self.infer_failures = 0
                seconds = {**outcome.seconds, "all": time.perf_counter() - since}
                self._tell(
                    "item",
                    status="done",
                    key=item.key,
                    path=item.path,
                    seconds={k: round(v, 6) for k, v in seconds.items()},
                )
                self.observer.outcome(item, None)
            self._look_around(results)
        return again

    def _explained(self, outcome: Failed[HasItem]) -> UnetBatchError:
        """The failure in our own words; a file that is gone is nothing that its decoder could explain.

        Raises:
            SourceError: the folder that all sources lie in is gone: so would be the next one.
        """
        item, root = item_of(outcome), self.plan.sources.root
        if outcome.stage == "decode" and item.key not in self.plan.absent and not os.path.lexists(item.path):
            if not os.path.isdir(root):
                raise SourceError(f"{root} vanished while the run read from it", hint="reconnect its disk")
            return SourceVanished(
                f"{item.path}: it was there when the run began, and is gone now",
                hint="restore it, or leave it out",
            )
        return as_error(outcome)

    def _fail(self, failure: Failure, key: str = "") -> None:
        self.report.failed += 1
        if len(self.report.failures) < LISTED_FAILURES:
            self.report.failures.append(failure)
        self.errors.write(dataclasses.asdict(failure))
        self._tell("item", status="failed", key=key, **dataclasses.asdict(failure))

    def _look_around(self, results: Pipeline[HasItem, Any]) -> None:
        now = time.monotonic()
        if now - self.backlog.seen >= _SAMPLE_SECONDS:
            self.backlog.look(results.stats, now)
        if now - self.spoken >= _PROGRESS_SECONDS:
            self.spoken = now
            report = self.report
            self._tell(
                "progress", done=report.done, failed=report.failed, left=report.left, backlog=self.backlog.now
            )

    def _tell(self, event: str, **values: Any) -> None:
        self.observer.event({"event": event, "at": round(time.time(), 3), **values})


class _Writer:
    """The stage that turns a prediction into the bytes of its outputs."""

    def __init__(self, plan: Plan, segmenter: Segmenter) -> None:
        self.outputs = plan.outputs
        self.segmenter = segmenter
        self.kinds = plan.outputs.kinds
        self.classes = segmenter.spec.classes
        names = self.classes.names
        if segmenter.spec.output == "class_ids" and (
            wrong := sorted({"cutout", "prob", "prob16"}.intersection(self.kinds))
        ):
            raise UsageError(
                f"--save {','.join(wrong)}: {segmenter.spec.name} has {len(names)} classes: ids, not one "
                f"probability",
                hint="save mask and overlay",
            )

    def render(self, prediction: Prediction) -> _Encoded:
        begun = time.perf_counter()
        item, placement = prediction.frame.item, prediction.frame.placement
        mask = self.segmenter.mask(prediction) if {"mask", "overlay"}.intersection(self.kinds) else None
        files = []
        for kind in self.kinds:
            try:
                if kind == "mask" and mask is not None:
                    data = images.encode_mask(mask)
                elif kind == "overlay" and mask is not None:
                    data = images.encode_jpeg(render.overlay(self._pixels(prediction), mask, self.classes))
                elif kind == "cutout":
                    probability = postprocess.probability(prediction.map, placement)
                    data = images.encode_rgba(
                        render.cutout(self._pixels(prediction), probability, self.segmenter.threshold)
                    )
                elif kind == "prob":
                    data = images.encode_map(postprocess.probability(prediction.map, placement))
                else:
                    data = images.encode_map(postprocess.probability16(prediction.map, placement))
            except UnetBatchError as error:
                error.message = f"{item.path}: {kind}: {error.message}"
                raise
            files.append((kind, self.outputs.file(kind, item.key), data))
        return _Encoded(item, tuple(files), {"render": time.perf_counter() - begun})

    @staticmethod
    def _pixels(prediction: Prediction) -> Pixels:
        assert prediction.frame.pixels is not None, "decoded without its pixels"
        return prediction.frame.pixels


def _is_passing(error: BaseException | None) -> bool:
    """Whether a disk or network failed, and not the file."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__
    return False


def _new_report(
    plan: Plan, segmenter: Segmenter, model: Mapping[str, Any], passed_over: Sequence[Step]
) -> RunReport:
    return RunReport(
        unet_batch=__version__,
        status="running",
        output=plan.outputs.folder,
        sources=tuple(map(shown, plan.options.sources)),
        save=plan.options.save,
        model=model,
        backend=segmenter.describe(),
        found=len(plan.items),
        skipped=plan.skipped,
        shard=str(plan.options.shard or ""),
        overwrite=plan.options.overwrite,
        states=plan.states,
        notes=plan.notes,
        versions=versions(),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
