"""The pipeline's promises: order, bounds, and no thread left behind, whatever goes wrong and where."""

from __future__ import annotations

import errno
import gc
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.waiting import PATIENCE, until
from unet_batch import pipeline
from unet_batch.pipeline import Failed, Pipeline, PipelineError, Stage, StageStats, bottleneck

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class WorkError(Exception):
    pass


def same(value: Any) -> Any:
    return value


def is_work_error(error: Exception) -> bool:
    return isinstance(error, WorkError)


def fail_at(bad: int) -> Callable[[int], int]:
    def work(value: int) -> int:
        if value == bad:
            raise WorkError(f"no {bad}")
        return value

    return work


def raise_at(bad: int, error: BaseException, results: Iterator[Any]) -> None:
    """A consumer that fails at result `bad`."""
    for result in results:
        if result == bad:
            raise error


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


class Flight:
    """Counts what is between source and consumer."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.read = 0

    def source(self, values: Any) -> Iterator[Any]:
        for value in values:
            with self.lock:
                self.now += 1
                self.read += 1
                self.most = max(self.most, self.now)
            yield value

    def land(self) -> None:
        with self.lock:
            self.now -= 1


# --- what may go wrong --------------------------------------------------------------------------------------


def test_source_raises() -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(5)
            raise WorkError("source")
        finally:
            closed.append(threading.current_thread().name)

    results: list[int] = []
    with (
        pytest.raises(WorkError) as caught,
        Pipeline(source(), [Stage("a", same), Stage("b", same)], in_flight=3) as pipeline,
    ):
        results.extend(pipeline)
    assert results == list(range(len(results)))
    assert "in the source, after 5 values" in notes(caught.value)
    assert closed == ["source"]


@pytest.mark.parametrize("source", [None, 3])
def test_source_cannot_be_iterated(source: Any) -> None:
    with pytest.raises(TypeError), Pipeline(source, [Stage("a", same)], in_flight=3) as pipeline:
        list(pipeline)


def test_decode_raises_midway() -> None:
    flight = Flight()
    stages = [Stage("decode", fail_at(50), workers=3), Stage("infer", same, batch=4), Stage("encode", same)]
    results: list[int] = []
    with (
        pytest.raises(WorkError, match="no 50") as caught,
        Pipeline(
            flight.source(range(10_000)), stages, in_flight=8, describe=lambda value: f"photo {value}"
        ) as pipeline,
    ):
        results.extend(pipeline)
    assert results == list(range(len(results)))
    assert len(results) <= 50
    assert flight.read <= 50 + 2 * 8  # stops at once
    assert "in stage 'decode'" in notes(caught.value)
    assert "photo 50" in notes(caught.value)


def test_backend_raises_in_a_batch() -> None:
    def infer(values: list[int]) -> list[int]:
        if 20 in values:
            raise RuntimeError("CUDA error")
        return values

    stages = [Stage("decode", same), Stage("infer", infer, batch=4), Stage("encode", same, workers=2)]
    with (
        pytest.raises(RuntimeError, match="CUDA error") as caught,
        Pipeline(range(1000), stages, in_flight=8) as pipeline,
    ):
        list(pipeline)
    assert "in stage 'infer'" in notes(caught.value)
    assert "20" in notes(caught.value)


def test_full_disk_ends_the_run_even_where_errors_are_isolated() -> None:
    def save(value: int) -> int:
        if value % 7 == 3:
            raise OSError(errno.EACCES, "not this one")
        if value == 30:
            raise OSError(errno.ENOSPC, "disk full")
        return value

    def isolate(error: Exception) -> bool:
        return not (isinstance(error, OSError) and error.errno == errno.ENOSPC)

    stages = [Stage("decode", same), Stage("save", save, workers=2, isolate=isolate)]
    flight = Flight()
    results: list[Any] = []
    with (
        pytest.raises(OSError, match="disk full") as caught,
        Pipeline(flight.source(range(9999)), stages, in_flight=6) as run,
    ):
        results.extend(run)
    assert caught.value.errno == errno.ENOSPC
    assert len(results) <= 30
    assert [isinstance(result, Failed) for result in results] == [
        index % 7 == 3 for index in range(len(results))
    ]
    assert flight.read <= 30 + 2 * 6


def test_consumer_raises() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(10_000)
        finally:
            closed.set()

    error = OSError(errno.ENOSPC, "disk full")
    stages = [Stage("a", same, workers=2), Stage("b", same, batch=3)]
    with pytest.raises(OSError, match="disk full"), Pipeline(source(), stages, in_flight=8) as pipeline:
        raise_at(10, error, pipeline)
    assert closed.is_set()


@pytest.mark.parametrize("in_flight", [1, 2, 7])
def test_slow_consumer_bounds_what_is_in_flight(in_flight: int) -> None:
    flight = Flight()
    stages = [Stage("a", same, workers=3), Stage("b", same, batch=4), Stage("c", same, workers=2)]
    with Pipeline(flight.source(range(40)), stages, in_flight=in_flight) as pipeline:
        for _ in pipeline:
            flight.land()
            time.sleep(0.001)
    # The pipeline lets go of a value a moment before the consumer can count it as landed.
    assert flight.most <= in_flight + 1
    assert flight.read == 40


def test_consumer_at_rest_stops_the_source() -> None:
    flight = Flight()
    with Pipeline(
        flight.source(range(1000)), [Stage("a", same), Stage("slow", same, batch=2)], in_flight=5
    ) as pipeline:
        next(pipeline)
        until(lambda: flight.read == 6)  # one delivered, five on their way
        time.sleep(0.05)
        assert flight.read == 6


def test_slow_last_stage_bounds_what_is_in_flight() -> None:
    flight = Flight()

    def save(value: int) -> int:
        time.sleep(0.002)
        flight.land()
        return value

    with Pipeline(
        flight.source(range(40)), [Stage("a", same, workers=2), Stage("save", save)], in_flight=4
    ) as pipeline:
        assert list(pipeline) == list(range(40))
    assert flight.most <= 4


@pytest.mark.parametrize(
    "stages", [[], [Stage("a", same)], [Stage("a", same, workers=3), Stage("b", same, batch=4)]]
)
@pytest.mark.parametrize("count", [0, 1])
def test_zero_items_and_one(stages: list[Stage], count: int) -> None:
    with Pipeline(range(count), stages, in_flight=4) as pipeline:
        assert list(pipeline) == list(range(count))
        assert next(pipeline, "the end") == "the end"
    assert next(pipeline, "the end") == "the end"


@pytest.mark.parametrize("results", [0, 1, 20])
def test_consumer_stops_early(results: int) -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            closed.set()

    stages = [Stage("a", same, workers=4), Stage("b", same, batch=3, workers=2), Stage("c", same)]
    with Pipeline(source(), stages, in_flight=10) as pipeline:
        for _ in range(results):
            next(pipeline)
    assert closed.is_set()
    assert next(pipeline, "the end") == "the end"


def test_queued_values_are_dropped_when_the_consumer_stops() -> None:
    worked: list[int] = []

    def slow(value: int) -> int:
        worked.append(value)
        time.sleep(0.01)
        return value

    flight = Flight()
    with Pipeline(flight.source(range(100)), [Stage("slow", slow)], in_flight=50) as pipeline:
        until(lambda: flight.read == 50)
        next(pipeline)
        before = len(worked)
    assert len(worked) <= before + 1


def test_consumer_stops_while_the_budget_holds_everybody_up() -> None:
    with Pipeline(
        range(100), [Stage("a", same, workers=4)], in_flight=10, weigh=lambda value: 100, budget=1
    ) as pipeline:
        next(pipeline)


def test_failure_that_the_consumer_did_not_wait_for() -> None:
    stages = [Stage("a", fail_at(3))]
    with pytest.raises(WorkError, match="no 3"), Pipeline(range(9), stages, in_flight=9) as pipeline:
        until(lambda: pipeline._halted)

    def consume() -> None:
        until(lambda: pipeline._halted)
        raise KeyError("the consumer's own")

    with pytest.raises(KeyError) as caught, Pipeline(range(9), stages, in_flight=9) as pipeline:
        consume()
    assert "no 3" in notes(caught.value)


def test_failure_is_raised_once() -> None:
    with Pipeline(range(9), [Stage("a", fail_at(0))], in_flight=9) as pipeline:
        with pytest.raises(WorkError):
            next(pipeline)
        with pytest.raises(WorkError):
            next(pipeline)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, StopIteration, GeneratorExit, MemoryError])
@pytest.mark.parametrize("isolate", [False, True])
def test_strange_exceptions_neither_hang_nor_end_the_run_in_silence(
    error: type[BaseException], isolate: bool
) -> None:
    def work(value: int) -> int:
        if value == 5:
            raise error
        return value

    stages = [Stage("a", work, isolate=lambda error: isolate), Stage("b", same)]
    results: list[Any] = []
    if isolate and issubclass(error, Exception):
        with Pipeline(range(10), stages, in_flight=4) as pipeline:
            results.extend(pipeline)
        assert len(results) == 10
        assert isinstance(results[5].error, error)
    else:
        expected = PipelineError if error is StopIteration else error
        with pytest.raises(expected) as caught, Pipeline(range(10), stages, in_flight=4) as pipeline:
            results.extend(pipeline)
        assert "in stage 'a'" in str(caught.value) + notes(caught.value)
        assert results == list(range(len(results)))
        assert len(results) <= 5


def test_helpers_that_raise_do_not_hang() -> None:
    def bad(value: object) -> Any:
        raise WorkError("helper")

    for options in ({"weigh": bad}, {"describe": bad}):
        with (
            pytest.raises(WorkError),
            Pipeline(range(9), [Stage("a", fail_at(0))], in_flight=4, **options) as pipeline,
        ):  # type: ignore[arg-type]
            list(pipeline)
    with (
        pytest.raises(WorkError),
        Pipeline(range(9), [Stage("a", fail_at(0), isolate=bad)], in_flight=4) as pipeline,
    ):
        list(pipeline)


INTERRUPTED = """
    import signal, sys, threading, time
    from unet_batch.pipeline import Pipeline, Stage

    def source():
        try:
            for number in range(100_000):
                yield number
        finally:
            print("closed in", threading.current_thread().name, flush=True)

    def work(value):
        if value == 3:
            print("ready", flush=True)
        time.sleep(DELAY)
        return value

    RUN
"""


def interrupted(run: str, delay: float) -> tuple[int, str, str]:
    """Exit code, output and error output of a program that gets a SIGINT while it runs a pipeline."""
    program = textwrap.dedent(INTERRUPTED).replace("DELAY", str(delay)).replace("RUN", textwrap.dedent(run))
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(0.05)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=PATIENCE)
        finally:
            child.kill()
    return child.returncode, out, err


@pytest.mark.skipif(sys.platform == "win32", reason="a signal cannot be sent to one process alone")
@pytest.mark.parametrize("delay", [0.0001, 0.1])
def test_ctrl_c_ends_the_threads(delay: float) -> None:
    code, out, err = interrupted(
        """
        try:
            stages = [Stage("a", work, workers=2), Stage("b", lambda v: v, batch=4)]
            with Pipeline(source(), stages, in_flight=8) as results:
                for result in results:
                    pass
        except KeyboardInterrupt:
            print("interrupted", threading.active_count(), flush=True)
            sys.exit(130)
        """,
        delay,
    )
    assert (code, out, err) == (130, "closed in source\ninterrupted 1\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="a signal cannot be sent to one process alone")
@pytest.mark.parametrize("delay", [0.0001, 0.05])
def test_ctrl_c_can_finish_what_is_in_flight(delay: float) -> None:
    code, out, err = interrupted(
        """
        stages = [Stage("a", work, workers=2), Stage("b", lambda v: v, batch=4)]
        with Pipeline(source(), stages, in_flight=8) as results:
            signal.signal(signal.SIGINT, lambda *_: results.stop())
            seen = list(results)
        assert seen == list(range(results.stats[0].items)), seen
        print("drained", threading.active_count(), flush=True)
        """,
        delay,
    )
    assert (code, out, err) == (0, "closed in source\ndrained 1\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sees Ctrl-C only between two waits")
def test_ctrl_c_while_the_consumer_waits() -> None:
    gate = threading.Event()

    def work(value: int) -> int:
        assert gate.wait(PATIENCE)
        return value

    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        gate.set()

    timer = threading.Timer(0.1, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt), Pipeline(range(5), [Stage("a", work)], in_flight=4) as pipeline:
        next(pipeline)
    timer.join()


def test_waits_of_limited_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(value: int) -> int:
        time.sleep(0.01)
        return value

    # As on Windows, where a wait cannot be interrupted
    monkeypatch.setattr("unet_batch.pipeline._PATIENCE", 0.001)
    with Pipeline(range(3), [Stage("a", slow)], in_flight=2) as pipeline:
        assert list(pipeline) == [0, 1, 2]


def test_closing_the_source_raises() -> None:
    def source() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            raise WorkError("closing")

    with (
        pytest.raises(WorkError, match="closing"),
        Pipeline(source(), [Stage("a", same)], in_flight=4) as pipeline,
    ):
        next(pipeline)
    with (
        pytest.raises(WorkError, match="closing"),
        Pipeline(source(), [Stage("a", same)], in_flight=4) as pipeline,
    ):
        list(pipeline)
    with pytest.raises(KeyError) as caught, Pipeline(source(), [Stage("a", same)], in_flight=4) as pipeline:
        raise_at(0, KeyError("first"), pipeline)
    assert "closing" in notes(caught.value)


@contextmanager
def leaving_raises() -> Iterator[None]:
    yield
    raise WorkError("leaving")


def test_leaving_a_stage_raises() -> None:
    stages = [Stage("a", same, workers=3, enter=leaving_raises), Stage("b", same, workers=2)]
    with (
        pytest.raises(WorkError, match="leaving") as caught,
        Pipeline(range(10), stages, in_flight=4) as pipeline,
    ):
        assert list(pipeline) == list(range(10))
    assert "leaving stage 'a'" in notes(caught.value)

    stages = [Stage("a", fail_at(3), enter=leaving_raises)]
    with (
        pytest.raises(WorkError, match="no 3") as caught,
        Pipeline(range(10), stages, in_flight=4) as pipeline,
    ):
        list(pipeline)
    assert "then, on entering or leaving stage 'a': WorkError('leaving')" in notes(caught.value)


def test_entering_a_stage_raises() -> None:
    def entering_raises() -> Any:
        raise WorkError("entering")

    stages = [Stage("a", same, workers=2), Stage("b", same, workers=3, enter=entering_raises)]
    with pytest.raises(WorkError, match="entering"), Pipeline(range(10), stages, in_flight=4) as pipeline:
        list(pipeline)


def test_context_that_swallows_exceptions_does_not_hang() -> None:
    @contextmanager
    def swallows() -> Iterator[None]:
        with suppress(WorkError):
            yield

    with (
        pytest.raises(WorkError),
        Pipeline(range(10), [Stage("a", fail_at(3), enter=swallows)], in_flight=4) as pipeline,
    ):
        list(pipeline)


def test_thread_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "b-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with (
        pytest.raises(RuntimeError, match="can't start"),
        Pipeline(range(9), [Stage("a", same), Stage("b", same, workers=3)], in_flight=4),
    ):
        pass


# --- what shall go right ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.tuples(st.integers(1, 4), st.none() | st.integers(1, 5)) | st.none(), max_size=4),
    count=st.integers(0, 40),
    in_flight=st.integers(1, 12),
    budget=st.none() | st.integers(0, 20),
    bad=st.sets(st.integers(0, 39), max_size=5),
    seed=st.integers(0, 2**32),
)
def test_order(
    shape: list[tuple[int, int | None] | None],
    count: int,
    in_flight: int,
    budget: int | None,
    bad: set[int],
    seed: int,
) -> None:
    """Whatever the stages are like; None stands for one that takes its values in order."""
    delays = random.Random(seed)

    def one(value: int) -> int:
        time.sleep(delays.choice([0, 0, 0, 0.0002]))
        if value in bad:
            raise WorkError(value)
        return value

    def some(values: list[int]) -> list[int]:
        return [one(value) for value in values]

    seen: dict[int, list[int]] = {number: [] for number, like in enumerate(shape) if like is None}

    def note(number: int, value: int) -> int:
        seen[number].append(value)
        return one(value)

    stages = [
        Stage(f"s{number}", partial(note, number), isolate=is_work_error, ordered=True)
        if like is None
        else Stage(
            f"s{number}",
            one if like[1] is None else some,
            workers=like[0],
            batch=like[1],
            isolate=is_work_error,
        )
        for number, like in enumerate(shape)
    ]
    flight = Flight()
    weigh = None if budget is None else lambda value: value % 7
    results = []
    with Pipeline(
        flight.source(range(count)), stages, in_flight=in_flight, weigh=weigh, budget=budget or 0
    ) as pipeline:
        for result in pipeline:
            flight.land()
            results.append(result)
    assert [result.value if isinstance(result, Failed) else result for result in results] == list(
        range(count)
    )
    assert [result.value for result in results if isinstance(result, Failed)] == sorted(
        value for value in bad if shape and value < count
    )
    for number, values in seen.items():  # what failed before is left out
        assert values == [value for value in range(count) if number == 0 or value not in bad]
    assert flight.most <= in_flight + 1
    assert pipeline._weight == 0
    for stats in pipeline.stats[:2]:
        assert stats.items == count


def test_only_the_culprit_of_a_batch_fails() -> None:
    full = threading.Event()
    calls = []

    def first(value: int) -> int:
        if value == 7:
            full.set()
        return value

    def some(values: list[int]) -> list[int]:
        assert full.wait(PATIENCE)
        calls.append(list(values))
        for value in values:
            if value in (2, 5):
                raise WorkError(value)
        return [value * 10 for value in values]

    def last(value: int) -> int:
        assert value % 10 == 0, "the failed ones skip this stage"
        return value + 1

    stages = [Stage("first", first), Stage("some", some, batch=8, isolate=is_work_error), Stage("last", last)]
    with Pipeline(range(8), stages, in_flight=8) as pipeline:
        results = list(pipeline)
    assert max(len(call) for call in calls) > 1
    for value, result in enumerate(results):
        if value in (2, 5):
            assert isinstance(result, Failed)
            assert (result.stage, result.value, result.error.args) == ("some", value, (value,))
            assert result.error.__context__ is None
        else:
            assert result == value * 10 + 1


def test_error_that_is_not_isolated_is_not_retried() -> None:
    calls = []

    def some(values: list[int]) -> list[int]:
        calls.append(values)
        raise MemoryError("device lost")

    with (
        pytest.raises(MemoryError),
        Pipeline(range(8), [Stage("some", some, batch=8, isolate=is_work_error)], in_flight=8) as run,
    ):
        list(run)
    assert len(calls) == 1


@pytest.mark.parametrize("answer", [[], [1] * 9, None])
def test_wrong_number_of_results(answer: Any) -> None:
    stage = Stage("some", lambda values: answer, batch=4, isolate=lambda error: True)
    with (
        pytest.raises((PipelineError, TypeError)) as caught,
        Pipeline(range(8), [stage], in_flight=8) as pipeline,
    ):
        list(pipeline)
    assert "stage 'some'" in str(caught.value) + notes(caught.value)


def gathering(batch: int, decode: Any, *, count: int = 4) -> tuple[list[list[int]], Pipeline[int, Any]]:
    """A pipeline whose last batch, of the value 0, is made to have taken a minute; and all its batches."""
    calls: list[list[int]] = []
    first, last = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 0
        assert first.wait(PATIENCE)
        yield from range(1, count)
        last.set()

    def after_all_are_read(value: int) -> int:
        assert value == 0 or last.wait(PATIENCE)  # nobody waits for what is not known yet
        return cast("int", decode(value))

    def some(values: list[int]) -> list[int]:
        calls.append(list(values))
        return values

    stages = [
        Stage("decode", after_all_are_read, isolate=is_work_error),
        Stage("some", some, workers=3, batch=batch, isolate=is_work_error),
        Stage("last", lambda value: (pipeline._lasted.__setitem__(1, 60.0), first.set(), value)[-1]),
    ]
    pipeline: Pipeline[int, Any] = Pipeline(source(), stages, in_flight=count)
    return calls, pipeline


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch waits for as long as the last one took, a minute: what is on its way may be slow to come."""
    monkeypatch.setattr("unet_batch.pipeline._LONGEST_WAIT", PATIENCE)


def slowly(value: int) -> int:
    time.sleep(0.05)
    return value


@pytest.mark.usefixtures("patient")
def test_a_batch_waits_for_what_is_on_its_way() -> None:
    """Its values come one after the other, to three workers, all of which wait."""
    calls, pipeline = gathering(3, slowly)
    with pipeline:
        assert list(pipeline) == [0, 1, 2, 3]
    assert calls == [[0], [1, 2, 3]]


@pytest.mark.usefixtures("patient")
def test_a_batch_does_not_wait_for_what_will_not_come() -> None:
    """Neither at the end of the source, nor for values that failed before."""

    def decode(value: int) -> int:
        if value == 1:
            raise WorkError
        return slowly(value)

    calls, pipeline = gathering(8, decode)
    with pipeline:
        assert [type(result) for result in pipeline] == [int, Failed, int, int]
    assert calls == [[0], [2, 3]]


@pytest.mark.usefixtures("patient")
def test_what_ends_a_run_ends_the_wait_of_a_batch() -> None:
    def decode(value: int) -> int:
        if value == 2:
            time.sleep(0.1)
            raise OSError("the disk is gone")
        return value

    calls, pipeline = gathering(3, decode)
    with pytest.raises(OSError, match="the disk is gone"), pipeline:
        list(pipeline)
    assert calls == [[0]]


def test_a_batch_waits_no_longer_than_the_last_one_took() -> None:
    release = threading.Event()
    calls: list[list[int]] = []

    def decode(value: int) -> int:
        if value == 2:
            assert release.wait(PATIENCE)
        return value

    def some(values: list[int]) -> list[int]:
        calls.append(list(values))
        if 1 in values:
            release.set()  # or 2 would never come
        return values

    with Pipeline(range(3), [Stage("decode", decode), Stage("some", some, batch=3)], in_flight=3) as pipeline:
        assert list(pipeline) == [0, 1, 2]
    assert calls[-1] == [2]


def test_after_a_slow_batch_it_does_not_wait_as_long_again() -> None:
    """The last batch took a minute, and 2 comes once 1 has gone ahead."""

    def decode(value: int) -> int:
        if value == 2:
            until(lambda: [1] in calls)
        return value

    calls, pipeline = gathering(3, decode, count=3)
    with pipeline:
        assert list(pipeline) == [0, 1, 2]
    assert calls == [[0], [1], [2]]


def test_batches_take_what_waits_and_no_more() -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def some(values: list[int]) -> list[int]:
        if not sizes:
            assert gate.wait(PATIENCE)
        sizes.append(len(values))
        return values

    with Pipeline(range(12), [Stage("a", same), Stage("some", some, batch=4)], in_flight=12) as pipeline:
        until(lambda: pipeline.stats[1].items == 12)
        gate.set()
        assert list(pipeline) == list(range(12))
    assert sum(sizes) == 12
    assert max(sizes) == 4
    assert pipeline.stats[2].batches == len(sizes)

    sizes.clear()
    with Pipeline(range(12), [Stage("some", some, batch=4)], in_flight=1) as pipeline:
        assert list(pipeline) == list(range(12))
    assert sizes == [1] * 12  # none waits for a batch to fill


class Heavy:
    def __init__(self, weight: int) -> None:
        self.weight = weight


@pytest.mark.parametrize("workers", [1, 3])
def test_budget(workers: int) -> None:
    alive: weakref.WeakSet[Heavy] = weakref.WeakSet()
    lock = threading.Lock()
    most = 0

    def decode(value: int) -> Heavy:
        nonlocal most
        heavy = Heavy(10)
        with lock:
            alive.add(heavy)
            most = max(most, len(alive))
        return heavy

    def slow(value: Heavy) -> Heavy:
        time.sleep(0.001)
        return value

    def weigh(value: object) -> int:
        return value.weight if isinstance(value, Heavy) else 0

    stages = [Stage("decode", decode, workers=workers), Stage("slow", slow)]
    with Pipeline(range(60), stages, in_flight=30, weigh=weigh, budget=35) as pipeline:
        count = 0
        for heavy in pipeline:
            assert heavy.weight == 10
            count += 1
    assert count == 60
    # Four exceed the budget; the workers within the first stage could not know yet, nor could the oldest
    # value wait; the consumer has one, and may be just taking the next.
    assert 4 <= most <= 4 + workers + 1 + 2


def test_budget_gates_a_source_of_heavy_values() -> None:
    flight = Flight()
    with Pipeline(
        flight.source([10] * 50), [Stage("a", same)], in_flight=30, weigh=same, budget=35
    ) as pipeline:
        until(lambda: flight.read == 4)
        time.sleep(0.02)
        assert flight.read == 4  # 30 is within the budget, 40 is not
        for _ in pipeline:
            flight.land()
    assert flight.read == 50
    assert flight.most <= 5


def test_lone_heavy_value_is_admitted() -> None:
    flight = Flight()
    stages = [Stage("a", same, workers=2), Stage("b", same)]
    with Pipeline(flight.source([1000] * 20), stages, in_flight=8, weigh=same, budget=1) as pipeline:
        for _ in pipeline:
            flight.land()
    assert flight.read == 20
    assert flight.most <= 2


def test_values_that_become_lighter_make_room() -> None:
    flight = Flight()
    halves = Stage("halves", lambda value: value // 100)
    with Pipeline(flight.source([100] * 10), [halves], in_flight=10, weigh=same, budget=50) as pipeline:
        until(lambda: flight.read == 10)  # though the consumer has taken none
        assert list(pipeline) == [1] * 10


def test_idle_threads_hold_no_values() -> None:
    release = threading.Event()
    made: list[weakref.ref[Heavy]] = []

    def source() -> Iterator[Heavy]:
        for number in range(3):
            value = Heavy(number)
            made.append(weakref.ref(value))
            yield value
            del value
        assert release.wait(PATIENCE)

    stages = [
        Stage("a", same, workers=2),
        Stage("b", same, batch=3),
        Stage("c", lambda value: Heavy(value.weight)),
    ]
    with Pipeline(source(), stages, in_flight=8) as pipeline:
        made.extend(weakref.ref(next(pipeline)) for _ in range(3))
        try:
            until(lambda: not any(ref() for ref in made))
        finally:
            release.set()
    assert len(made) == 6


def test_error_kept_for_the_report_does_not_keep_the_value() -> None:
    def work(value: Heavy) -> Heavy:
        try:
            raise KeyError(1)
        except KeyError as error:
            raise WorkError("broken") from error

    def source() -> Iterator[Heavy]:
        value = Heavy(1)
        made.append(weakref.ref(value))
        yield value

    made: list[weakref.ref[Heavy]] = []
    with Pipeline(source(), [Stage("a", work, isolate=is_work_error)], in_flight=8) as pipeline:
        failed = next(pipeline)
        assert failed.value.weight == 1
        kept = failed.error
        del failed
        until(lambda: made[0]() is None)
    assert isinstance(kept.__cause__, KeyError)
    assert "in work\n    raise KeyError(1)" in notes(kept.__cause__)  # where it happened remains, as text
    assert "in work\n    raise WorkError" in notes(kept)


def test_pipeline_kept_for_its_statistics_keeps_no_values() -> None:
    made: list[weakref.ref[Heavy]] = []

    def source() -> Iterator[Heavy]:
        while True:
            value = Heavy(1)
            made.append(weakref.ref(value))
            yield value
            del value

    with Pipeline(source(), [Stage("a", same, workers=2)], in_flight=8) as pipeline:
        until(lambda: pipeline.stats[1].items == 8)
    gc.collect()
    assert pipeline.stats[0].items == 8
    assert not any(ref() for ref in made)


def test_stop_finishes_what_is_in_flight() -> None:
    flight = Flight()
    stages = [Stage("a", same, workers=2), Stage("b", same, batch=3)]
    with Pipeline(flight.source(range(1000)), stages, in_flight=6) as pipeline:
        until(lambda: flight.read == 6)
        pipeline.stop()
        assert list(pipeline) == list(range(6))
    assert flight.read == 6

    pipeline = Pipeline(range(1000), stages, in_flight=6)
    pipeline.stop()
    with pipeline:
        assert list(pipeline) == []

    with Pipeline(range(100_000), stages, in_flight=6) as pipeline:
        timer = threading.Timer(0.05, pipeline.stop)
        timer.start()
        results = list(pipeline)
        timer.join()
    assert results == list(range(pipeline.stats[0].items))


def test_contexts_are_entered_and_left_once_by_each_worker() -> None:
    seen: list[tuple[str, str]] = []
    lock = threading.Lock()

    def log(event: str) -> None:
        with lock:
            seen.append((threading.current_thread().name, event))

    @contextmanager
    def context() -> Iterator[None]:
        log("enter")
        yield
        log("leave")

    def work(value: int) -> int:
        log("work")
        time.sleep(0.001)
        return value

    def check() -> None:
        assert {name for name, _ in seen} == {"a-0", "a-1", "a-2"}
        for worker in ("a-0", "a-1", "a-2"):
            events = [event for name, event in seen if name == worker]
            assert events == ["enter", *["work"] * (len(events) - 2), "leave"]

    stages = [Stage("a", work, workers=3, enter=context), Stage("b", fail_at(30))]
    with Pipeline(range(30), stages, in_flight=8) as pipeline:
        list(pipeline)
    check()
    seen.clear()
    with pytest.raises(WorkError), Pipeline(range(1000), stages, in_flight=8) as pipeline:
        list(pipeline)
    check()


def test_stats_add_up() -> None:
    def source() -> Iterator[int]:
        for value in range(20):
            time.sleep(0.001)
            yield value

    def sleep(value: int) -> int:
        time.sleep(0.01)
        return value

    def spin(value: int) -> int:
        end = time.thread_time() + 0.002
        while time.thread_time() < end:
            pass
        return value

    with Pipeline(source(), [Stage("sleep", sleep, workers=2), Stage("spin", spin)], in_flight=8) as pipeline:
        assert len(list(pipeline)) == 20
        live = pipeline.stats
    assert live == pipeline.stats
    first, sleeping, spinning = live
    assert [stats.name for stats in live] == ["source", "sleep", "spin"]
    assert [stats.workers for stats in live] == [1, 2, 1]
    assert [stats.items for stats in live] == [stats.batches for stats in live] == [20, 20, 20]
    assert first.busy >= 0.02
    assert sleeping.busy >= 0.19 > 2 * sleeping.cpu
    assert spinning.busy >= 0.95 * spinning.cpu >= 0.038
    assert all(stats.waiting > 0 for stats in live)
    assert bottleneck([StageStats("a", 4, busy=3.0), StageStats("b", 1, busy=1.0)]).name == "b"


def test_overhead_is_small() -> None:
    count = 2000
    best = float("inf")
    for _ in range(2):
        begun = time.process_time()
        with Pipeline(range(count), [Stage(f"s{n}", same) for n in range(4)], in_flight=32) as pipeline:
            assert sum(1 for _ in pipeline) == count
        best = min(best, (time.process_time() - begun) / count)
    assert best < 300e-6  # some 20 us on a quiet machine


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="workers=0"):
        Stage("a", same, workers=0)
    with pytest.raises(ValueError, match="batch=0"):
        Stage("a", same, batch=0)
    with pytest.raises(ValueError, match="in order"):
        Stage("a", same, batch=1, ordered=True)
    with pytest.raises(ValueError, match="one worker"):
        Stage("a", same, workers=2, ordered=True)
    with pytest.raises(ValueError, match="in_flight=0"):
        Pipeline([], [], in_flight=0)
    with pytest.raises(PipelineError, match="with"):
        next(Pipeline([], [], in_flight=1))


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("6400000 100000", 8), ("", 8)],
)
def test_cores_respect_a_containers_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(pipeline.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert pipeline.cpu_count(str(tmp_path / "cpu.max")) == cores
