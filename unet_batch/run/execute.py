"""Carry out `unet-batch run`: from a plan to files on disk and a report.

    plan = prepare(options)        # sources and output folder: nothing is written, no model is loaded
    report = execute(plan, segmenter)

`execute` holds the folder's lock, compares the sources with the manifest (`plan.resume`, which also stands
alone, for a dry run), and has done what is left: by the segmenter that it is given, in this process, or by a
`Crew` of several (see `hands`).

Four things happen to an item: its source is looked at just before it is read, it goes through the pipeline,
its outputs are renamed into place, and then it is recorded. So a record is never ahead of its files, and a
source that changes while it is read counts as changed next time.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from typing import TYPE_CHECKING

from unet_batch.errors import OutputError, SourceError
from unet_batch.files import remote
from unet_batch.files.atomic import write_json
from unet_batch.files.locks import claim
from unet_batch.files.naming import shown
from unet_batch.inference.segmenter import Segmenter
from unet_batch.pipeline import bottleneck, cpu_count
from unet_batch.run import tables
from unet_batch.run.hands import Hands, Here
from unet_batch.run.layout import choose_encoder
from unet_batch.run.observe import Observer, Stop
from unet_batch.run.outcomes import Outcomes
from unet_batch.run.plan import RunPlan, resume
from unet_batch.run.records import OutputRecipe
from unet_batch.run.report import Backlog, RunReport, run_name, versions
from unet_batch.types import Item
from unet_batch.version import __version__

if TYPE_CHECKING:
    from unet_batch.media.video import Codec
    from unet_batch.run.work import Outcome

_SAMPLE_SECONDS = 1.0  # between two looks at the queues
_AGAIN = "then run the same command again: what is done stays done"


def execute(
    plan: RunPlan,
    segmenter: Segmenter | Hands,
    observer: Observer = Observer(),  # noqa: B008 - it has no state
    stop: Stop | None = None,
    *,
    join_tables: bool = True,
) -> RunReport:
    """Segment what is left of the plan.

    Args:
        plan: from `prepare`.
        segmenter: open; or several processes that have one each.
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
        RunError: no worker process can be started.
    """
    hands = Here(segmenter) if isinstance(segmenter, Segmenter) else segmenter
    recipe = hands.recipe(plan.options.pages)
    hands.check(plan)
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
        shard = plan.options.shard
        plan.outputs.clean_leftovers(None if shard is None else shard.branches(plan.depth))
        observer.start(plan)
        return _Run(plan, hands, recipe, observer, stop or Stop(), join_tables).carry_out()


class _Run:
    """One run, from the opened manifest to the written report."""

    def __init__(
        self,
        plan: RunPlan,
        hands: Hands,
        recipe: OutputRecipe,
        observer: Observer,
        stop: Stop,
        joins_tables: bool,
    ) -> None:
        assert plan.manifest is not None, "not resumed"
        self.plan, self.hands, self.recipe = plan, hands, recipe
        self.manifest, self.observer, self.stop = plan.manifest, observer, stop
        self.folder = plan.outputs.folder
        self.joins_tables = joins_tables and not plan.part  # those of shards: when these are merged
        hands.begin(plan, recipe)
        self.report = _new_report(plan, hands)
        self.backlog = Backlog()
        self.aside: list[Item] = []  # pictures that come behind the others

        # A run of everything that comes later finds that shards have been here.
        whole = os.path.join(self.folder, run_name(""))
        if plan.part and not os.path.exists(whole):
            write_json(whole, {"unet_batch": __version__, "status": "sharded"})
        self.outcomes = Outcomes(plan, self.manifest, recipe.digest, self.report, observer)

    def carry_out(self) -> RunReport:
        """Segment what is left, and write the report; see `execute`."""
        report, outcomes = self.report, self.outcomes
        begun, cpu = time.perf_counter(), self.hands.cpu
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
            self._finish(time.perf_counter() - begun, self.hands.cpu - cpu)
        return report

    def _finish(self, seconds: float, cpu: float) -> None:
        """Write the final report.

        Args:
            seconds: that the run took.
            cpu: seconds of processor time in them.
        """
        report = self.report
        report.seconds = seconds
        report.stages = list(self.hands.stages.values())
        report.devices = self.hands.devices
        report.floor_seconds = self._floor(cpu)
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

    def _floor(self, cpu: float) -> float:
        """Seconds if nothing ever waited: the network's, and the processor's for all else over the cores."""
        network = self.hands.stages.get("infer")
        if network is None or self.hands.computes_on_cpu:
            return cpu / cpu_count()
        return network.busy / network.workers + (cpu - network.cpu) / cpu_count()

    def _segment(self) -> None:
        """The pictures, then those that memory does not hold, then the clips, each of them by itself."""
        codec: Codec | None = None
        moving = [item for item in self.plan.todo if item.is_clip]
        if moving:  # before the pictures: an encoder that does not work is not to be found out in the morning
            codec, reason = choose_encoder(self.plan.options.video.codec, self.plan.options.save)
            self.report.encoder = {"name": codec.encoder, "reason": reason}
        self._segment_pictures([item for item in self.plan.todo if not item.is_clip])
        for items in (self.aside, moving):
            if items and self._goes_on:
                self._consume(self.hands.alone(items, codec, self._on_progress, self.stop), last=True)

    @property
    def _goes_on(self) -> bool:
        return self.report.status == "running" and not self.stop.reason

    def _segment_pictures(self, pending: Sequence[Item]) -> None:
        """Everything once, then what a disk or network failed to read, a few times more."""
        pauses = (0.0, *self.plan.options.retry_pauses)
        for attempt, pause in enumerate(pauses, 1):
            if pending and self.report.status == "running":
                self.stop.sleep(pause)
            if not pending or not self._goes_on:
                return
            self.report.retried += len(pending) if attempt > 1 else 0
            pending = self._consume(self.hands.pictures(pending, self.stop), last=attempt == len(pauses))

    def _consume(self, outcomes: Iterator[Outcome], *, last: bool) -> Sequence[Item]:
        """Count what becomes of items; returns those that are worth another try."""
        again: list[Item] = []
        self.backlog.begin()
        with closing(outcomes):  # type: ignore[type-var] # they are generators
            for outcome in outcomes:
                if outcome.passing and not last:
                    self.backlog.failed[outcome.stage] += 1
                    again.append(outcome.item)
                elif not self._take(outcome):
                    self.hands.halt()
                self._look_around()
        return again

    def _take(self, outcome: Outcome) -> bool:
        """Count what became of an item; returns whether the run goes on."""
        item, report = outcome.item, self.report
        report.retried += outcome.retried
        if outcome.aside:
            self.aside.append(item)
        elif outcome.error is not None:
            self.backlog.failed[outcome.stage] += 1
            return not self.outcomes.fail(item, outcome.identity, outcome.stage, outcome.error)
        if outcome.clip is not None:
            report.frames += outcome.clip["frames"] - outcome.clip["resumed"]
            report.clips.append(dict(outcome.clip))
        if outcome.record is not None:
            frames = {} if outcome.clip is None else {"frames": outcome.clip["frames"]}
            path = shown(item.path) if item.is_clip else item.path
            self.outcomes.count_done(item, path, dict(outcome.seconds), outcome.notes, **frames)
        return True

    def _on_progress(self, item: Item, done: int, total: int | None) -> None:
        """Tell how far a clip is, or a picture by itself."""
        unit = "frames" if item.is_clip else "done"
        self.observer.frame(item, done, total)
        self.outcomes.tell_progress(lambda: {"path": shown(item.path), unit: done, "of": total})

    def _look_around(self) -> None:
        now, report = time.monotonic(), self.report
        if now - self.backlog.seen >= _SAMPLE_SECONDS:
            self.backlog.look(self.hands.stats, now)
        self.outcomes.tell_progress(
            lambda: {
                "done": report.done,
                "failed": report.failed,
                "left": report.left,
                "backlog": self.backlog.now,
            }
        )


def _new_report(plan: RunPlan, hands: Hands) -> RunReport:
    return RunReport(
        unet_batch=__version__,
        status="running",
        output=plan.outputs.name,
        sources=tuple(map(shown, plan.options.sources)),
        save=plan.options.save,
        model=hands.describe_model(),
        backend=hands.describe(),
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
