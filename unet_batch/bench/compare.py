"""Models and backends side by side: a process each, measured in alternating rounds."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from unet_batch.bench.measure import FUNCTIONS, LEVELS, Round
from unet_batch.engine import onnx_model
from unet_batch.errors import BackendUnavailable, RunError, UnetBatchError
from unet_batch.inference.backends.select import CHOICES
from unet_batch.model.zoo import BUNDLED
from unet_batch.processes.process import Died, Worker

if TYPE_CHECKING:
    from unet_batch.model.checkpoint import ModelFile
    from unet_batch.types import Size

_OPEN, _MEASURE = (name.encode() for name in FUNCTIONS)


class Measured(Protocol):
    """What can be measured: a `Subject` or `SharedSubject`, here or in another process."""

    def measure(self, level: str, seconds: float) -> Round:
        """See `Subject.measure`."""


@dataclass
class Entry:
    """A model on a backend, and what was measured of it.

    Attributes:
        model: its name, for people.
        facts: of the backend, as `Segmenter.describe` has them.
        rounds: by level, in the order they were measured.
        is_auto: the backend that `auto` takes for this model.
        devices: that share the work, as --devices names them; "" where one process does it.
        flops: of one picture; None where nobody can count them.
        peak: FLOP/s of the fastest matrix product on the device that runs it; None where none was measured.
        error: why it was not measured any further.
    """

    model: str
    facts: dict[str, Any]
    rounds: dict[str, list[Round]] = field(default_factory=lambda: {level: [] for level in LEVELS})
    is_auto: bool = False
    devices: str = ""
    flops: int | None = None
    peak: float | None = None
    error: str = ""

    @property
    def backend(self) -> str:
        """`openvino bf16`, or `openvino bf16, cpu:2`; `simulated 5000/s`."""
        alone = f"{self.facts['name']} {self.facts['precision']}"
        if self.simulated is not None:
            alone = f"{self.facts['name']} {self.simulated:.10g}/s"
        return f"{alone}, {self.devices}" if self.devices else alone

    @property
    def simulated(self) -> float | None:
        """Pictures a second of the device that only sleeps; None of a backend."""
        return self.facts.get("rate")

    @property
    def levels(self) -> Sequence[str]:
        """What can be measured of it: of several processes the whole."""
        return LEVELS[-1:] if self.devices else LEVELS

    @property
    def size(self) -> Size:
        """(height, width) of the network's input."""
        height, width = self.facts["input_size"]
        return height, width

    @property
    def on_cpu(self) -> bool:
        """Whether a CPU runs it."""
        name: str = self.facts["name"]
        return name == "openvino" or name.endswith("-cpu")


@dataclass(frozen=True)
class Skipped:
    """A backend that cannot run a model here, and what would help."""

    model: str
    backend: str
    reason: str
    fix: str


@dataclass
class Comparison:
    """All that was measured.

    Attributes:
        seconds: asked for, of each round.
        photos: what was segmented, in words.
        entries: in the order they were asked for; ratios are to the first one.
        skipped: backends that nobody asked for by name and that cannot run here.
        peak: FLOP/s of the processors.
        load: how many cores were busy before it began; None where the system does not tell.
        auto: by model, the backend that `auto` takes; "" where none can run.
        interrupted: it was stopped before all rounds were done.
    """

    seconds: float
    photos: str
    entries: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    peak: float | None = None
    load: float | None = None
    auto: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


def alternate(
    subjects: Iterable[tuple[Entry, Measured]],
    rounds: int,
    seconds: float,
    progress: Callable[[str], None] = lambda text: None,
) -> None:
    """Measure all in turn, level by level, round by round; each `Entry` gets its rounds as they are done.

    A backend that fails is left alone from then on, and its entry says why.
    """
    subjects = list(subjects)
    for number in range(rounds):
        for level in LEVELS:
            for entry, subject in subjects:
                if entry.error or level not in entry.levels:
                    continue
                progress(f"round {number + 1} of {rounds}: {entry.model} on {entry.backend}, {level}")
                try:
                    entry.rounds[level].append(subject.measure(level, seconds))
                except UnetBatchError as error:
                    entry.error = error.message


class Child:
    """A `Subject` in a process of its own.

    Args:
        asked: what `measure.open_subject` is given.

    Raises:
        BackendUnavailable: the backend cannot run this here.
        RunError: the process died, or could not be started.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        self._name = f"the process of --backend {asked['backend']}"
        if asked["rate"] is not None:
            self._name = f"the process of --simulate {asked['rate']:.10g}"
        try:
            # Not the environment of decoders: what is measured is what `run` does.
            self._worker = Worker(FUNCTIONS, shared=False, keep=0, environment={})
        except (Died, OSError) as error:
            raise self._dead(error) from error
        try:
            self.facts: dict[str, Any] = self._ask(_OPEN, asked)
        except BaseException:
            self.close()
            raise

    def measure(self, level: str, seconds: float) -> Round:
        """See `Subject.measure`."""
        return Round.from_dict(self._ask(_MEASURE, {"level": level, "seconds": seconds}))

    def close(self) -> None:
        """End the process."""
        self._worker.end()

    def _ask(self, function: bytes, asked: dict[str, Any]) -> Any:
        try:
            return json.loads(self._worker.ask(function, json.dumps(asked).encode(), (), None)[0])
        except Died as error:
            raise self._dead(error) from error

    def _dead(self, error: Died | OSError) -> RunError:
        if isinstance(error, OSError):
            return RunError(f"{self._name} cannot be started: {error}", hint="close other programs")
        said = f": {error.said}" if error.said else ""
        hint = "free some memory, or measure fewer backends at once" if error.was_killed else ""
        return RunError(f"{self._name} {error.how}{said}", hint=hint)


@dataclass(frozen=True)
class Wanted:
    """What to open.

    Attributes:
        models: name for people, and file.
        backends: names of `select.CHOICES`; empty takes all that can run.
        settings: the other arguments of `Request`.
        photos: files.
        folder: where masks are written and removed again.
        devices: several processes to measure as well: what was asked for, and the devices it names.
        simulate: pictures a second of devices that only sleep, which take the place of all backends.
    """

    models: Sequence[tuple[str, ModelFile]]
    backends: Sequence[str]
    settings: dict[str, Any]
    photos: Sequence[str]
    folder: str
    devices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    simulate: Sequence[float] = ()


@contextmanager
def opened(
    wanted: Wanted,
    comparison: Comparison,
    progress: Callable[[str], None] = lambda text: None,
    open_child: Callable[[dict[str, Any]], Child] = Child,
) -> Iterator[list[tuple[Entry, Child]]]:
    """Open every backend for every model, in processes that end with the block.

    Raises:
        BackendUnavailable: a backend that was asked for by name cannot run, or none can, or none on the
            devices.
        SourceError: none of the photos can be decoded.
    """
    with ExitStack() as stack:
        opening = _Opening(wanted, comparison, progress, open_child, stack)
        found = [pair for name, file in wanted.models for pair in opening.open_model(name, file)]
        if not found:
            reasons = "; ".join(f"{each.backend}: {each.reason}" for each in comparison.skipped)
            raise BackendUnavailable(
                f"no backend can run here: {reasons}", hint="unet-batch doctor says more"
            )
        comparison.entries += [entry for entry, _ in found]
        _share_figures(comparison, wanted)
        yield found


@dataclass(frozen=True)
class _Opening:
    """Opens backends; see `opened` for the attributes."""

    wanted: Wanted
    comparison: Comparison
    progress: Callable[[str], None]
    open_child: Callable[[dict[str, Any]], Child]
    stack: ExitStack

    def open_model(self, name: str, file: ModelFile) -> list[tuple[Entry, Child]]:
        """All that is to be measured of one model."""
        if self.wanted.simulate:
            found = [self._open(name, file, "auto", rate) for rate in self.wanted.simulate]
        else:
            found = self._open_backends(name, file)
        shared = [pair for text in self.wanted.devices for pair in self._share(text, file, found)]
        return found + shared

    def _open_backends(self, name: str, file: ModelFile) -> list[tuple[Entry, Child]]:
        """All backends. What `auto` takes is asked of `auto`, and its process is measured."""
        auto: tuple[Entry, Child] | None = None
        found: list[tuple[Entry, Child]] = []
        try:
            auto = self._open(name, file, "auto")
        except BackendUnavailable:
            if "auto" in self.wanted.backends:
                raise
        self.comparison.auto[name] = auto[0].backend if auto is not None else ""
        for backend in dict.fromkeys(self.wanted.backends or CHOICES):
            if auto is not None and (backend == "auto" or _is_of(backend, auto[0].facts["name"])):
                auto[0].is_auto = True
                if auto not in found:
                    found.append(auto)
            elif backend != "auto":
                try:
                    found.append(self._open(name, file, backend))
                except UnetBatchError as error:
                    if self.wanted.backends:
                        raise
                    self._skip(name, file, backend, error)
        if auto is not None and auto not in found:
            auto[1].close()
        return found

    def _share(
        self, text: str, file: ModelFile, found: Sequence[tuple[Entry, Child]]
    ) -> Iterator[tuple[Entry, Child]]:
        """The same backends on several devices, as far as they are of that kind."""
        names = self.wanted.devices[text]
        alone = [
            entry for entry, _ in found if entry.simulated is not None or entry.on_cpu == (names[0] == "cpu")
        ]
        if found and not alone:
            raise BackendUnavailable(
                f"--devices {text}: none of the backends that run here is of that kind: "
                + ", ".join(entry.backend for entry, _ in found)
            )
        for entry in alone:
            self.progress(f"opening {entry.model} on {entry.backend}, {text}")
            settings = {**self.wanted.settings, "photos": entry.facts["photos"], "folder": self.wanted.folder}
            backend = entry.facts["name"].partition("-cpu")[0].partition("-cuda")[0]
            what = {"model": file.path, "backend": backend, "rate": entry.simulated, "devices": names}
            child = self.open_child({**what, **settings})
            self.stack.callback(child.close)
            yield Entry(entry.model, child.facts, devices=text), child

    def _open(
        self, name: str, file: ModelFile, backend: str, rate: float | None = None
    ) -> tuple[Entry, Child]:
        self.progress(f"opening {name} on {backend if rate is None else 'a simulated device'}")
        settings = {**self.wanted.settings, "photos": self.wanted.photos, "folder": self.wanted.folder}
        what = {"model": file.path, "backend": backend, "rate": rate, "devices": ()}
        child = self.open_child({**what, **settings})
        self.stack.callback(child.close)
        return Entry(name, child.facts, flops=child.facts["flops"], peak=child.facts["peak"]), child

    def _skip(self, name: str, file: ModelFile, backend: str, error: UnetBatchError) -> None:
        texts = error.message, error.hint
        if name in BUNDLED:  # whose path nobody has typed
            texts = error.message.replace(file.path, name), error.hint.replace(file.path, name)
        self.comparison.skipped.append(Skipped(name, backend, *texts))


def _is_of(choice: str, name: str) -> bool:
    """Whether a backend of this name is what `--backend CHOICE` gives: torch-cpu is torch."""
    return name == choice or name in (f"{choice}-cpu", f"{choice}-cuda", f"{choice}-mps")


def _share_figures(comparison: Comparison, wanted: Wanted) -> None:
    """What one process has counted, or a graph tells, holds for all of the same model, or the same device."""
    files, engines_dir = dict(wanted.models), str(wanted.settings["engines_dir"])
    known = {
        (entry.model, entry.size): entry.flops for entry in comparison.entries if entry.flops is not None
    }
    on_gpu = next((entry.peak for entry in comparison.entries if entry.peak is not None), None)
    for entry in comparison.entries:
        entry.peak = comparison.peak if entry.on_cpu else on_gpu
        key = entry.model, entry.size
        if key not in known and (flops := flops_of(files[entry.model], entry.size, engines_dir)) is not None:
            known[key] = flops
        entry.flops = known.get(key)


def flops_of(file: ModelFile, size: Size, engines_dir: str) -> int | None:
    """FLOPs of a model by its graph: itself, or the one beside its engines; None where there is none."""
    graphs = [file.path]
    if not file.is_graph:
        name = f"*-{glob.escape(file.sha256[:8])}.onnx"
        graphs = sorted(glob.glob(os.path.join(glob.escape(engines_dir), name)))
    for path in graphs:
        try:
            graph = onnx_model.read(path)
        except UnetBatchError:  # damaged, or onnx is not installed: then nothing is known
            continue
        if (graph.size or graph.spec.input_size) == size:
            return sum(convolution.flops for convolution in graph.convolutions.values())
    return None
