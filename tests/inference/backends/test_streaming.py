"""The executor that keeps a GPU busy, over memory that shows every missing wait."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.host import SHAPE, Brightness, HostBackend, brightness, fail, pictures
from tests.helpers.waiting import PATIENCE
from unet_batch.errors import BackendError, DeviceOutOfMemory
from unet_batch.inference.backends import streaming
from unet_batch.inference.backends.cuda_memory import Resource
from unet_batch.inference.backends.streaming import PicturePool, StreamingExecutor
from unet_batch.pipeline import cpu_count
from unet_batch.testing import HostMemory

pytestmark = pytest.mark.usefixtures("no_thread_is_left")
BYTES = int(np.prod(SHAPE))


class Bench:
    """An executor and what it stands on. Leaving the block closes it and checks that nothing is left."""

    def __init__(self, memory: HostMemory | None = None, **options: object) -> None:
        self.memory = memory or HostMemory()
        self.program = Brightness(self.memory)
        self.notes: list[str] = []
        self.options = {"batch": 4, "pictures": 6, **options}

    def __enter__(self) -> Bench:
        self.executor = StreamingExecutor(self.memory, self.program, SHAPE, notes=self.notes, **self.options)  # type: ignore
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.close()
        gc.collect()
        self.is_clean()

    def is_clean(self) -> None:
        assert not self.memory.alive
        assert not self.memory.pending
        assert self.program.open == 0

    def is_right(self, count: int, seed: int = 0) -> bool:
        batch = pictures(count, seed)
        return np.array_equal(self.executor.infer(batch), brightness(batch))


def together(count: int, work: Callable[[int], object]) -> list[object]:
    """What `work` returned, or raised, in `count` threads at once."""

    def attempt(number: int) -> object:
        try:
            return work(number)
        except BackendError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(attempt, range(count)))


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("graphs", [True, False])
def test_every_count(count: int, graphs: bool) -> None:
    """Ragged batches are run whole and cut; what does not fit one batch goes in several."""
    with Bench(graphs=graphs) as bench:
        for seed in range(5):
            maps = bench.executor.infer(pictures(count, seed))
            assert maps.dtype == np.uint8
            assert np.array_equal(maps, brightness(pictures(count, seed)))
        assert bench.program.prepared == [4, 4, 4]


def test_rows_that_are_not_used_hold_nothing_uninitialised() -> None:
    seen: list[np.ndarray] = []

    def kernel(batch: np.ndarray) -> np.ndarray:
        seen.append(batch.copy())
        return brightness(batch)

    with Bench(slots=1) as bench:
        bench.program.kernel = kernel
        bench.executor.infer(pictures(1))
        assert not seen[-1][1:].any()
        bench.executor.infer(pictures(3))
        bench.executor.infer(pictures(1, 5))
        assert np.array_equal(seen[-1][1:3], pictures(3)[1:3])


def test_the_maps_are_the_callers_and_the_pictures_are_free_again() -> None:
    with Bench(slots=1) as bench:
        batch = pictures(4)
        expected = brightness(batch)
        maps = bench.executor.infer(batch)
        assert bench.memory.pending == 0
        for picture in batch:
            picture[:] = 0
        bench.executor.infer(pictures(4, 1))
        assert np.array_equal(maps, expected)
        maps[:] = 0
        maps.resize((1,), refcheck=False)  # owns its memory


def test_read_only_pictures() -> None:
    batch = pictures(2)
    for picture in batch:
        picture.flags.writeable = False
    with Bench() as bench:
        assert np.array_equal(bench.executor.infer(batch), brightness(batch))


def test_no_pictures_have_no_maps() -> None:
    with Bench() as bench:
        assert bench.executor.infer([]).shape == (0, *SHAPE[:2])


def test_two_executors_share_a_memory() -> None:
    with Bench() as first, Bench(first.memory, batch=3) as second:
        benches = (first, second)
        assert together(6, lambda number: benches[number % 2].is_right(5, number)) == [True] * 6
        second.executor.close()
        assert first.is_right(7)
        first.executor.close()


def test_slots_are_used_at_once() -> None:
    """Three batches are on the GPU before the first one is waited for; a fourth thread waits for a slot."""
    meeting = threading.Barrier(3, timeout=PATIENCE)

    class Meeting(HostMemory):
        open = False

        def synchronize(self, resource: Resource) -> None:
            if self.open:
                meeting.wait()
            super().synchronize(resource)

    memory = Meeting()
    with Bench(memory) as bench:
        memory.open = True
        results = together(6, lambda number: bench.is_right(4, number))
        memory.open = False
    assert results == [True] * 6


def test_steps_of_different_batches_overlap() -> None:
    """While a batch is computed, the next one can be uploaded: no step waits for another batch."""
    with Bench(slots=2, graphs=False) as bench, ThreadPoolExecutor(2) as pool:
        entered, go_on = threading.Event(), threading.Event()

        def hold(batch: int) -> None:
            entered.set()
            go_on.wait(PATIENCE)

        bench.program.fails = hold
        first = pool.submit(bench.is_right, 3)
        assert entered.wait(PATIENCE)
        bench.program.fails = lambda batch: None
        second = pool.submit(bench.is_right, 3, 1)
        # Uploads of three pictures and a mark, twice; the first batch's wait, and its work
        both = 2 * (3 + 1) + 2
        for _ in range(1000):
            if bench.memory.pending == both:
                break
            threading.Event().wait(0.005)
        assert bench.memory.pending == both
        go_on.set()
        assert first.result(10)
        assert second.result(10)


class TestGraphs:
    def test_every_batch_is_a_launch(self) -> None:
        with Bench() as bench:
            assert bench.memory.launches == 0
            for seed in range(4):
                assert bench.is_right(2, seed)
            assert bench.memory.launches == 4
            assert bench.notes == []

    def test_without_them_there_is_one_note(self) -> None:
        with Bench(HostMemory(graphs=False)) as bench:
            assert all(bench.is_right(3, seed) for seed in range(4))
            assert bench.memory.launches == 0
            assert bench.notes == [
                "no CUDA graphs: refused in a test: the steps of each batch are queued one by one"
            ]
            bench.executor.resize(2)
            assert bench.is_right(2)
            assert len(bench.notes) == 1

    def test_not_asked_for(self) -> None:
        with Bench(graphs=False) as bench:
            assert bench.is_right(3)
            assert bench.memory.launches == 0
            assert bench.notes == []

    def test_nobody_else_queues_in_a_stream_that_is_captured(self) -> None:
        with Bench(slots=2) as bench, ThreadPoolExecutor(1) as pool:
            bench.executor.resize(2)
            assert bench.is_right(2)  # in the first slot; the second one will be built again
            others = []
            calls = iter(range(100))

            def intrude(batch: int) -> None:
                if next(calls) == 1:  # the rehearsal was the first call, this is the capture
                    others.append(pool.submit(bench.is_right, 2, 1))
                    threading.Event().wait(0.2)

            bench.program.fails = intrude
            assert bench.is_right(2, 2)
            assert others[0].result(10)

    def test_one_slot_without_a_graph_leaves_none_with_one(self) -> None:
        """On opening, and where a slot that is built again in the middle of a run cannot have one."""
        memory = HostMemory()
        memory.fail("capture", 3, BackendError("no"))
        with Bench(memory) as bench:
            assert bench.program.prepared == [4] * 5, "the first two are built again"
            assert [slot.graph for slot in bench.executor._slots] == [None] * 3
            assert len(bench.notes) == 1
        with Bench() as bench:
            bench.executor.resize(2)
            bench.memory.fail("capture", 2, BackendError("no"))
            for seed in range(6):
                assert bench.is_right(2, seed)
            assert [slot.graph for slot in bench.executor._slots] == [None] * 3
            assert bench.notes == ["no: the steps of each batch are queued one by one"]

    def test_no_memory_for_a_graph_is_no_reason_to_have_none(self) -> None:
        memory = HostMemory()
        memory.fail("capture", 2, DeviceOutOfMemory("no memory"))
        with Bench(memory) as bench:
            assert bench.executor.batch == 2
            assert bench.notes == ["out of GPU memory at a batch of 4: continuing with 2"]
            assert all(slot.graph is not None for slot in bench.executor._slots)
            bench.executor.resize(1)
            memory.fail("capture", 1, DeviceOutOfMemory("no memory"))
            with pytest.raises(DeviceOutOfMemory, match="no memory"):
                bench.executor.infer(pictures(1))
            assert bench.is_right(1)
            assert memory.launches == 1

    def test_a_slot_that_is_built_again_captures_again(self) -> None:
        with Bench() as bench:
            bench.executor.resize(2)
            assert bench.is_right(5)
            assert bench.memory.launches == 3


class TestMemory:
    def test_2000_batches_allocate_nothing(self) -> None:
        with Bench(pictures=8) as bench:
            before = bench.memory.allocations
            for number in range(2000):
                picture = bench.executor.buffer()
                picture[:] = number % 251
                assert (bench.executor.infer([picture]) == number % 251).all()
                del picture
            assert bench.memory.allocations == before
            assert len(bench.memory._freed) == 0
            assert len(bench.executor._pool._free) == 8  # type: ignore

    def test_halved_on_opening_until_it_fits(self) -> None:
        memory = HostMemory(capacity=3 * 5 * (BYTES + BYTES // 3))
        with Bench(memory, batch=32) as bench:
            assert bench.executor.batch == 4
            assert bench.notes == [
                "out of GPU memory at a batch of 32: continuing with 16",
                "out of GPU memory at a batch of 16: continuing with 8",
                "out of GPU memory at a batch of 8: continuing with 4",
            ]
            assert bench.is_right(9)

    def test_a_program_that_does_not_fit(self) -> None:
        bench = Bench(batch=8)
        bench.program.largest = 2
        with bench:
            assert bench.executor.batch == 2
            assert bench.program.prepared == [8, 4, 2, 2, 2]

    def test_least(self) -> None:
        bench = Bench(batch=32, least=8)
        bench.program.largest = 4
        with pytest.raises(
            DeviceOutOfMemory, match="no room for activations of 8, at a batch of 8, the smallest"
        ) as caught:
            bench.__enter__()
        assert "smaller input size" in caught.value.hint
        assert bench.notes[-1].endswith("continuing with 8")
        bench.is_clean()

    def test_a_failure_on_opening_leaves_nothing(self) -> None:
        for stage in range(6):  # rehearsals and captures of three slots
            bench = Bench()
            calls = iter(range(100))
            bench.program.fails = lambda batch, calls=calls, stage=stage: next(calls) == 2 * stage and fail()
            if stage >= 3:
                with bench:
                    assert bench.is_right(2)
                continue
            with pytest.raises(BackendError, match="fell off the bus"):
                bench.__enter__()
            bench.is_clean()

    def test_resize_stops_at_least(self) -> None:
        with Bench(least=2) as bench:
            bench.executor.resize(1)
            assert bench.executor.batch == 2
            assert bench.is_right(5)

    def test_resize_builds_slots_again_when_they_are_used(self) -> None:
        with Bench(slots=2) as bench:
            used = bench.memory.used
            bench.executor.resize(2)
            assert bench.memory.used == used
            assert bench.is_right(4)
            assert bench.memory.used == 3 * used // 4
            assert bench.is_right(4, 1)
            assert bench.memory.used == used // 2
            assert bench.program.prepared == [4, 4, 2, 2]
            assert bench.program.open == 2

    def test_a_slot_that_cannot_be_built_is_tried_again(self) -> None:
        with Bench(slots=1) as bench:
            bench.executor.resize(3)
            bench.program.largest = 2
            for _ in range(2):
                with pytest.raises(DeviceOutOfMemory, match="activations of 3"):
                    bench.executor.infer(pictures(1))
            assert bench.program.open == 0
            bench.executor.resize(2)
            assert bench.is_right(5)


class TestFailure:
    def test_midway_nothing_is_left_and_the_next_call_works(self) -> None:
        with Bench(slots=1, graphs=False) as bench:
            bench.program.fails = lambda batch: fail()
            batch = pictures(4)
            used = bench.memory.used
            with pytest.raises(BackendError, match="fell off the bus"):
                bench.executor.infer(batch)
            assert bench.memory.pending == 0  # the uploads are over: the caller may reuse its pictures
            bench.program.fails = lambda batch: None
            assert bench.is_right(4)
            assert bench.memory.used == used
            assert bench.program.prepared == [4, 4]

    def test_a_kernel_that_fails_while_it_runs(self) -> None:
        with Bench(slots=1) as bench:
            bench.program.kernel = lambda batch: fail("illegal memory access")
            with pytest.raises(BackendError, match="illegal memory access"):
                bench.executor.infer(pictures(2))
            bench.program.kernel = brightness
            assert bench.is_right(2)

    @pytest.mark.parametrize("method", ["upload", "record", "wait", "launch", "download", "synchronize"])
    def test_wherever_it_fails(self, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with Bench() as bench:
            allocations = bench.memory.allocations
            with monkeypatch.context() as patch:
                patch.setattr(bench.memory, method, lambda *_: fail(f"{method} failed"))
                for _ in range(7):
                    with pytest.raises(BackendError, match=f"{method} failed"):
                        bench.executor.infer(pictures(3))
                    assert bench.memory.pending == 0 or method == "synchronize"
                    if method == "synchronize":
                        break  # later ones fail in the rehearsal, and nothing can be waited for
            assert all(bench.is_right(3, seed) for seed in range(6))
            assert len(bench.memory.alive) == 3 * 7 + 3 + 1
            assert bench.memory.allocations > allocations

    def test_an_interrupt_is_a_failure_like_any_other(self) -> None:
        def interrupt(batch: int) -> None:
            raise KeyboardInterrupt

        with Bench(slots=1, graphs=False) as bench:
            bench.program.fails = interrupt
            with pytest.raises(KeyboardInterrupt):
                bench.executor.infer(pictures(2))
            assert bench.memory.pending == 0
            bench.program.fails = lambda batch: None
            assert bench.is_right(2)

    def test_what_failed_first_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A GPU that fell off the bus refuses to free things, too."""
        memory = HostMemory()
        free = memory.free

        def refuse(resource: Resource) -> None:
            free(resource)
            fail("cannot free")

        for call in ("prepare", "synchronize", "capture"):
            memory.fail(call, 2, DeviceOutOfMemory("no memory for it"))
            monkeypatch.setattr(memory, "free", refuse)
            with pytest.raises(DeviceOutOfMemory, match="no memory for it, at a batch of 4, the smallest"):
                Bench(memory, least=4).__enter__()
            monkeypatch.setattr(memory, "free", free)
            assert not memory.alive

    def test_others_are_not_disturbed(self) -> None:
        with Bench(graphs=False) as bench:
            failing = threading.local()

            def some(batch: int) -> None:
                if getattr(failing, "now", False):
                    fail()

            def work(number: int) -> object:
                outcomes = []
                for turn in range(20):
                    failing.now = (turn + number) % 5 == 0
                    try:
                        outcomes.append(bench.is_right(1 + turn % 4, 20 * number + turn))
                    except BackendError:
                        outcomes.append(None)
                return outcomes

            bench.program.fails = some
            for outcomes in together(4, work):
                assert outcomes.count(None) >= 4  # type: ignore
                assert False not in outcomes  # type: ignore
            bench.program.fails = lambda batch: None


class TestClose:
    def test_new_calls_are_refused(self) -> None:
        with Bench() as bench:
            bench.executor.close()
            bench.is_clean()
            with pytest.raises(BackendError, match="is closed"):
                bench.executor.infer(pictures(1))
            assert bench.executor.buffer().shape == SHAPE
            bench.executor.close()

    def test_waits_for_calls_that_run_and_wakes_those_that_wait(self) -> None:
        with Bench(slots=1, graphs=False) as bench:
            running, finish = threading.Event(), threading.Event()

            def hold(batch: int) -> None:
                running.set()
                finish.wait(PATIENCE)

            bench.program.fails = hold
            with ThreadPoolExecutor(4) as pool:
                first = pool.submit(bench.is_right, 2)
                assert running.wait(PATIENCE)
                waiting = [pool.submit(bench.is_right, 2) for _ in range(2)]
                closing = pool.submit(bench.executor.close)
                while not bench.executor._closed:
                    threading.Event().wait(0.001)
                assert not closing.done()
                assert bench.memory.alive
                finish.set()
                assert first.result(10) is True
                closing.result(10)
                bench.is_clean()
                for future in waiting:
                    assert isinstance(future.exception(10), BackendError)

    def test_all_is_freed_where_freeing_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = Bench()
        bench.__enter__()
        free = bench.memory.free

        def refuse(resource: Resource) -> None:
            free(resource)
            fail("cannot free")

        monkeypatch.setattr(bench.memory, "free", refuse)
        with pytest.raises(BackendError, match="cannot free"):
            bench.executor.close()
        bench.is_clean()
        bench.executor.close()

    def test_an_interrupt_while_it_waits_can_be_followed_by_another_close(self) -> None:
        class Interrupted(SimpleQueue):  # type: ignore[type-arg]
            def get(self, *_: object) -> object:
                if self.qsize() == 1:
                    raise KeyboardInterrupt
                return super().get()

        with Bench(slots=2) as bench:
            whole = bench.executor._idle
            interrupted = Interrupted()
            for _ in range(2):
                interrupted.put(whole.get())
            bench.executor._idle = interrupted
            with pytest.raises(KeyboardInterrupt):
                bench.executor.close()
            for _ in range(2):
                whole.put(SimpleQueue.get(interrupted))
            bench.executor._idle = whole
            bench.executor.close()
            bench.is_clean()

    def test_several_at_once(self) -> None:
        with Bench() as bench:
            assert together(4, lambda number: bench.executor.close()) == [None] * 4


class TestPool:
    def test_a_picture_returns_with_its_last_view(self) -> None:
        with Bench(pictures=1) as bench:
            picture = bench.executor.buffer()
            address = picture.ctypes.data
            view = picture[1:, ::2, 1].T
            del picture
            other = bench.executor.buffer()
            assert other.ctypes.data != address  # used up: an ordinary array
            assert other.flags.owndata or other.base is not None
            del view
            again = bench.executor.buffer()
            assert again.ctypes.data == address
            assert again.shape == SHAPE
            assert again.dtype == np.uint8
            assert again.flags.c_contiguous
            assert again.flags.writeable
            del again

    def test_pictures_do_not_overlap(self) -> None:
        with Bench(pictures=4) as bench:
            lent = [bench.executor.buffer() for _ in range(6)]  # two more than there are
            for number, picture in enumerate(lent):
                picture[:] = number
            assert np.array_equal(bench.executor.infer(lent)[:, 0, 0], range(6))
            del lent, picture

    def test_one_in_a_cycle_returns_with_the_garbage(self) -> None:
        with Bench(pictures=1) as bench:
            cycle: list[object] = [bench.executor.buffer()]
            cycle.append(cycle)
            del cycle
            gc.collect()
            assert len(bench.executor._pool._free) == 1  # type: ignore

    def test_what_outlives_the_executor_stays_safe_and_is_freed_in_the_end(self) -> None:
        with Bench(pictures=2) as bench:
            kept, lost = bench.executor.buffer(), bench.executor.buffer()
            kept[:] = 7
            del lost
            bench.executor.close()
            assert list(bench.memory.alive.values()) == ["host"]
            assert (kept == 7).all()
            view = kept[0]
            del kept
            assert (view == 7).all()
            holder = [view]  # the last one may go in any thread, where no GPU is current
            del view
            thread = threading.Thread(target=holder.clear)
            thread.start()
            thread.join()
            assert not bench.memory.alive

    def test_no_page_locked_memory_is_no_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        memory = HostMemory()
        real = memory.host
        monkeypatch.setattr(
            memory, "host", lambda size: fail("no memory to lock") if size == 6 * BYTES else real(size)
        )
        with Bench(memory) as bench:
            assert bench.notes == [
                "no page-locked memory for 6 pictures, copies take longer: no memory to lock"
            ]
            assert bench.executor.buffer().shape == SHAPE
            assert bench.is_right(3)

    def test_its_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Bench(pictures=None) as bench:
            assert bench.executor._pool._count == 2 * (3 * 4 + 3 * cpu_count())  # type: ignore
        monkeypatch.setattr(streaming, "POOL_BYTES", 10 * BYTES + 1)
        with Bench(pictures=None) as bench:
            assert bench.executor._pool._count == 10  # type: ignore
        with Bench(pictures=0) as bench:
            assert bench.executor.buffer().shape == SHAPE

    def test_it_holds_all_that_a_run_has_on_its_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Twice what the streams and the threads of all stages hold: see `Segmenter.pipeline`."""
        monkeypatch.setattr(streaming, "cpu_count", lambda: 16)
        with Bench(pictures=None, batch=32) as bench:
            assert bench.executor._pool._count == 2 * (3 * 32 + 3 * 16) == 288  # type: ignore

    def test_running_out_often_is_told_once(self) -> None:
        with Bench(pictures=2) as bench:
            lent = [bench.executor.buffer() for _ in range(3)]
            assert bench.notes == []
            lent += [bench.executor.buffer() for _ in range(9)]
            assert bench.notes == [
                "more pictures are on their way than the 2 in page-locked memory: copies of some take longer"
            ]
            lent.clear()
            assert bench.is_right(4)

    def test_letting_go_of_the_last_picture_never_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        raised: list[object] = []
        monkeypatch.setattr("sys.unraisablehook", raised.append)
        with Bench(pictures=2) as bench:
            kept = bench.executor.buffer()
            bench.executor.close()
            bench.memory.fail("free", 1, BackendError("the GPU fell off the bus"))
            del kept
            assert bench.memory.calls["free"] == 1
            assert not raised

    def test_many_threads(self) -> None:
        """Whatever the threads do, no picture is lent twice, and all come back; also when it closes
        meanwhile.
        """
        for turn in range(20):
            memory = HostMemory()
            with memory.current():
                pool = PicturePool(memory, (4,), 3, [])

            def work(number: int, pool: PicturePool = pool, closes: int = turn % 4) -> bool:
                for round in range(50):
                    if number == closes and round == 25:
                        pool.close()
                    picture = pool.take()
                    picture[:] = number
                    if not (picture == number).all():
                        return False
                return True

            assert together(4, work) == [True] * 4
            assert not memory.alive


class TestBackend:
    """The contract of `Backend` where memory runs out: halved once, retried, noted."""

    def test_out_of_memory_during_a_run(self) -> None:
        spec_pictures = pictures(13, shape=(32, 48, 3))
        with HostBackend(batch_size=16) as backend:
            backend.program.largest = 4
            assert np.array_equal(backend.infer(spec_pictures), brightness(spec_pictures))
            assert backend.notes == [
                "out of GPU memory at a batch of 16: continuing with 8",
                "out of GPU memory at a batch of 8: continuing with 4",
            ]
            assert backend.batch_size == 16
            assert backend.executor.batch == 4  # slots need not be larger than what they are given
            assert np.array_equal(backend.infer(spec_pictures), brightness(spec_pictures))
            assert len(backend.notes) == 2
        assert not backend.memory.alive

    def test_threads_that_fail_together_halve_once(self) -> None:
        meeting = threading.Barrier(3, timeout=PATIENCE)
        with HostBackend(batch_size=8) as backend:
            tried = threading.local()
            run = backend._infer

            def meet(batch: list[np.ndarray]) -> np.ndarray:
                if not getattr(tried, "once", False):
                    tried.once = True
                    meeting.wait()
                return run(batch)

            backend._infer = meet  # type: ignore
            backend.program.largest = 4
            batches = [pictures(8, seed, (32, 48, 3)) for seed in range(3)]
            results = together(
                3, lambda number: np.array_equal(backend.infer(batches[number]), brightness(batches[number]))
            )
            assert results == [True] * 3
            assert backend.notes == ["out of GPU memory at a batch of 8: continuing with 4"]

    def test_at_one_picture_the_error_goes_out(self) -> None:
        with HostBackend(batch_size=4) as backend:
            backend.program.largest = 0
            with pytest.raises(
                DeviceOutOfMemory, match="no room for a batch of 1, at a batch of 1, the smallest"
            ) as caught:
                backend.infer(pictures(3, shape=(32, 48, 3)))
            assert caught.value.hint
            assert len(backend.notes) == 2
            backend.program.largest = 4
            assert len(backend.infer(pictures(3, shape=(32, 48, 3)))) == 3

    def test_out_of_memory_on_opening(self) -> None:
        with HostBackend(batch_size=16, largest=5) as backend:
            assert backend.batch_size == 4
            assert len(backend.notes) == 2
            assert len(backend.infer(pictures(4, shape=(32, 48, 3)))) == 4
        backend.program.largest = 1000
        with backend:
            assert backend.notes == []

    def test_buffers_are_page_locked(self) -> None:
        with HostBackend() as backend:
            addresses = {backend.buffer().ctypes.data for _ in range(3)}
            assert len(addresses) == 1  # lent and returned
            slab = max(
                (found for found, kind in backend.memory.alive.items() if kind == "host"),
                key=lambda found: found.nbytes,
            )
            assert slab.address <= addresses.pop() < slab.address + slab.nbytes


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_interleaving(data: st.DataObject) -> None:
    """Threads, batch sizes, slots and failures as they come: every map is right, nothing is left."""
    with Bench(
        HostMemory(graphs=data.draw(st.booleans(), "graphs")),
        batch=data.draw(st.integers(1, 5), "batch"),
        slots=data.draw(st.integers(1, 3), "slots"),
        pictures=data.draw(st.integers(0, 5), "pictures"),
    ) as bench:
        step = st.one_of(st.integers(1, 7), st.just("fail"), st.just("resize"))
        plans = data.draw(st.lists(st.lists(step, max_size=6), min_size=1, max_size=4), "plans")
        failing = threading.local()

        def some(batch: int) -> None:
            if getattr(failing, "now", False):
                fail()

        def follow(number: int) -> bool:
            for at, what in enumerate(plans[number]):
                if what == "resize":
                    bench.executor.resize(1 + (number + at) % 5)
                    continue
                failing.now = what == "fail"
                batch = []
                for picture in pictures(2 if what == "fail" else int(what), 10 * number + at):
                    batch.append(bench.executor.buffer())
                    batch[-1][:] = picture
                try:
                    maps = bench.executor.infer(batch)
                except BackendError:
                    if what != "fail":
                        return False
                else:
                    if not np.array_equal(maps, brightness(batch)):
                        return False
            return True

        bench.program.fails = some
        assert together(len(plans), follow) == [True] * len(plans)
        bench.program.fails = lambda batch: None


def test_nothing_heavy_is_imported() -> None:
    """An engine runs where neither PyTorch nor Pillow is installed."""
    heavy = {"torch", "PIL", "simplejpeg", "pycuda", "cv2"}
    code = "import sys, unet_batch.inference.backends.streaming, unet_batch.testing; "
    code += f"print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
