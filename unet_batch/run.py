"""The composition root of `unet-batch run`: from options to files on disk and a report.

    plan = prepare(options)        # sources, output folder, what is left to do: nothing is written, no model is loaded
    report = execute(plan, segmenter, on_outcome)

Reading the options back is never needed: what was chosen stands in the plan and the report.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from unet_batch import images, postprocess, render
from unet_batch.errors import OutputError, UnetBatchError, UsageError
from unet_batch.pipeline import Failed, Pipeline, StageStats, bottleneck
from unet_batch.segmenter import Segmenter, as_error, item_of
from unet_batch.sinks import LineLog, OutputTree, write_atomic, write_json
from unet_batch.sources import Sources, collect, default_output
from unet_batch.types import KINDS, Item, Prediction
from unet_batch.version import __version__

if TYPE_CHECKING:
    from unet_batch.backends.select import Step
    from unet_batch.types import Pixels

Status = Literal["running", "done", "failures", "stopped", "interrupted", "aborted"]

# What can only be made from the picture's own pixels.
NEED_PIXELS = frozenset({"overlay", "cutout"})
# So many inference failures in a row, with no success between, are the device's fault, not the pictures'.
BROKEN_DEVICE = 8
LISTED_FAILURES = 100
LIBRARIES = (
    "torch",
    "tensorrt",
    "tensorrt-rtx",
    "pycuda",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "simplejpeg",
    "safetensors",
)


@dataclass(frozen=True)
class RunOptions:
    """What to segment and what to write; see `unet-batch run --help`."""

    sources: tuple[str, ...]
    output: str | None = None
    save: tuple[str, ...] = ("mask",)
    overwrite: bool = False
    fail_fast: bool = False


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        options: as asked.
        sources: what was found.
        outputs: where the results go.
        todo: the items to segment; the others have all their outputs already.
        skipped: how many those others are.
    """

    options: RunOptions
    sources: Sources
    outputs: OutputTree
    todo: tuple[Item, ...]
    skipped: int


@dataclass(frozen=True)
class Failure:
    """One item that failed: its path, the stage, the kind of error, the message, and a hint."""

    path: str
    stage: str
    error: str
    message: str
    hint: str


@dataclass
class RunReport:
    """What a run did; the same as `OUT/run.json`.

    Attributes:
        status: `done` (everything), `failures` (some items failed), `stopped` (by fail-fast), `interrupted` (by Ctrl-C),
            `aborted` (by an error that concerns the whole run); `running` in the file of a run that goes on or was killed.
        found: items in the sources, of which `done` were segmented now, `failed`, and `skipped` had their outputs already.
        seconds: wall time from the first decode to the last file, start-up apart.
        stages: work of each stage.
        bottleneck: name of the stage whose threads were busiest.
        failures: the first hundred; all of them stand in `OUT/errors.jsonl`.
    """

    unet_batch: str
    status: Status
    output: str
    sources: tuple[str, ...]
    save: tuple[str, ...]
    model: Mapping[str, Any]
    backend: Mapping[str, Any]
    found: int
    skipped: int
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    bottleneck: str = ""
    stages: list[StageStats] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str = ""

    @property
    def images_per_second(self) -> float:
        """Items that ended, well or not, for each second of the run."""
        return (self.done + self.failed) / self.seconds if self.seconds else 0.0

    @property
    def errors_file(self) -> str:
        """Where every failure is listed; absent without any."""
        return os.path.join(self.output, "errors.jsonl")

    @property
    def exit_code(self) -> int:
        """0 everything done, 1 some items failed, 130 interrupted."""
        return {"done": 0, "interrupted": 130}.get(self.status, 1)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the first key marks the folder as outputs of this program."""
        data = dataclasses.asdict(self)
        return {"unet_batch": data.pop("unet_batch"), **data, "images_per_second": self.images_per_second}


def prepare(options: RunOptions) -> Plan:
    """Find the sources and what is left to do. Writes nothing.

    Raises:
        SourceError: a source does not exist or holds nothing to segment.
        UsageError: nothing to save, or the output folder is a source.
        OutputError: an unknown kind of output, or the output folder cannot be listed.
    """
    if not options.save:
        raise UsageError("nothing to save was asked for", hint=f"choose from: {', '.join(KINDS)}")
    exclude = [os.path.abspath(options.output)] if options.output else []
    if exclude and exclude[0] in map(os.path.abspath, options.sources):
        raise UsageError(
            f"{options.output} is a source and cannot be the output folder as well: results would be read as pictures",
            hint=f"choose another folder, for example -o {default_output(exclude[0])}",
        )
    sources = collect(options.sources, is_picture=images.is_supported, exclude=exclude)
    outputs = OutputTree(options.output or default_output(sources.root), options.save)
    existing = set() if options.overwrite else outputs.existing(sources.items)
    todo = tuple(item for item in sources.items if item.key not in existing)
    return Plan(options, sources, outputs, todo, len(sources.items) - len(todo))


def execute(
    plan: Plan,
    segmenter: Segmenter,
    model: Mapping[str, Any],
    on_outcome: Callable[[Item, Failure | None], None],
    passed_over: Sequence[Step] = (),
) -> RunReport:
    """Segment everything in the plan.

    Args:
        plan: from `prepare`.
        segmenter: open.
        model: name, path and sha256 of the model, for the report.
        on_outcome: called in the calling thread for each item, in order.
        passed_over: backends that could not run, for the report.

    Returns:
        The report, which also stands in `OUT/run.json`. After Ctrl-C its status is `interrupted`: what was written is whole,
        and the next run goes on from there.

    Raises:
        OutputError: the output folder cannot be written.
        BackendError: the backend fails for one picture after the other.
    """
    writer = _Writer(plan, segmenter)
    report = _new_report(plan, segmenter, model, passed_over)
    plan.outputs.prepare()
    plan.outputs.clean_leftovers()
    run_json = os.path.join(plan.outputs.folder, "run.json")
    errors = LineLog(report.errors_file)
    write_json(run_json, report.as_dict())
    for path, reason in plan.sources.unreadable:
        _record(report, Failure(path, "source", "SourceError", f"{path}: {reason}", ""), errors)
    begun = time.perf_counter()
    finish: list[tuple[str, Callable[[Any], Any]]] = [("render", writer.render), ("write", writer.write)]
    try:
        with segmenter.pipeline(plan.todo, finish, keep_pixels=bool(NEED_PIXELS.intersection(plan.options.save))) as results:
            try:
                _consume(results, report, plan, errors, on_outcome)
            finally:
                report.stages = results.stats
        if report.status == "running":
            report.status = "failures" if report.failed else "done"
    except KeyboardInterrupt:
        report.status = "interrupted"
    except BaseException:
        report.status = "aborted"
        raise
    finally:
        report.seconds = time.perf_counter() - begun
        report.bottleneck = bottleneck(report.stages).name if plan.todo and report.stages else ""
        errors.close()
        # What aborted the run is what the caller must hear of, not that its report met the same full disk.
        with suppress(OutputError) if report.status == "aborted" else nullcontext():
            write_json(run_json, report.as_dict())
    return report


def _consume(
    results: Pipeline, report: RunReport, plan: Plan, errors: LineLog, on_outcome: Callable[[Item, Failure | None], None]
) -> None:
    infer_failures = 0
    for outcome in results:
        failure = None
        if isinstance(outcome, Failed):
            error = as_error(outcome)
            failure = Failure(item_of(outcome).path, outcome.stage, type(error).__name__, error.message, error.hint)
            _record(report, failure, errors)
            infer_failures = infer_failures + 1 if outcome.stage == "infer" else infer_failures
            if infer_failures >= BROKEN_DEVICE:
                raise error
            if plan.options.fail_fast:
                results.stop()
                report.status = "stopped"
        else:
            report.done += 1
            infer_failures = 0
        on_outcome(item_of(outcome), failure)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """The outputs of one item as files to be: (path, bytes)."""

    item: Item
    files: tuple[tuple[str, bytes], ...]


class _Writer:
    """The last two stages: from a prediction to bytes, from bytes to files."""

    def __init__(self, plan: Plan, segmenter: Segmenter) -> None:
        self.outputs = plan.outputs
        self.segmenter = segmenter
        self.kinds = plan.options.save
        self.classes = segmenter.spec.classes
        names = self.classes.names
        if segmenter.spec.output == "class_ids" and (wrong := sorted({"cutout", "prob", "prob16"}.intersection(self.kinds))):
            raise UsageError(
                f"--save {','.join(wrong)}: {segmenter.spec.name} has {len(names)} classes: ids, not one probability",
                hint="save mask and overlay",
            )

    def render(self, prediction: Prediction) -> _Encoded:
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
                    data = images.encode_rgba(render.cutout(self._pixels(prediction), probability, self.segmenter.threshold))
                elif kind == "prob":
                    data = images.encode_map(postprocess.probability(prediction.map, placement))
                else:
                    data = images.encode_map(postprocess.probability16(prediction.map, placement))
            except UnetBatchError as error:
                error.message = f"{item.path}: {kind}: {error.message}"
                raise
            files.append((self.outputs.path(kind, item.key), data))
        return _Encoded(item, tuple(files))

    def write(self, encoded: _Encoded) -> _Encoded:
        for path, data in encoded.files:
            write_atomic(path, data)
        return _Encoded(encoded.item, ())

    @staticmethod
    def _pixels(prediction: Prediction) -> Pixels:
        assert prediction.frame.pixels is not None, "decoded without its pixels"
        return prediction.frame.pixels


def _record(report: RunReport, failure: Failure, errors: LineLog) -> None:
    report.failed += 1
    if len(report.failures) < LISTED_FAILURES:
        report.failures.append(failure)
    errors.write(dataclasses.asdict(failure))


def _new_report(plan: Plan, segmenter: Segmenter, model: Mapping[str, Any], passed_over: Sequence[Step]) -> RunReport:
    backend = segmenter.backend
    return RunReport(
        unet_batch=__version__,
        status="running",
        output=plan.outputs.folder,
        sources=plan.options.sources,
        save=plan.options.save,
        model=model,
        backend={
            "name": backend.name,
            "reason": backend.reason,
            "precision": backend.precision,
            "input_size": list(backend.input_size),
            "passed_over": [dataclasses.asdict(step) for step in passed_over],
            "notes": backend.notes,  # the list itself: what happens later belongs into the final report, too
            "batch_size": backend.batch_size,
            "streams": backend.streams,
            "workers": segmenter.workers,
            "threshold": segmenter.threshold,
        },
        found=len(plan.sources.items),
        skipped=plan.skipped,
        versions=versions(),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def versions() -> dict[str, str]:
    """Of Python and of what results depend on, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):  # an engine runs without PyTorch, PyTorch without TensorRT
            found[name] = metadata.version(name)
    return found
