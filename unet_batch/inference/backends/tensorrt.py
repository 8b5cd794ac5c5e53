"""TensorRT and TensorRT-RTX: plans from `engine.store`, run by `streaming`.

Imports no PyTorch. A plan that was never run on this GPU is proven before its first use: its masks against
PyTorch's, which lie beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from unet_batch import gpu
from unet_batch.engine import proof
from unet_batch.engine.flavours import Flavour
from unet_batch.engine.proof import ProofRun
from unet_batch.engine.sidecar import Sidecar
from unet_batch.engine.store import REBUILD, Engine
from unet_batch.errors import BackendError, BackendUnavailable, DeviceOutOfMemory, OutputError, UsageError
from unet_batch.inference.backends.base import Backend
from unet_batch.inference.backends.cuda_memory import CudaMemory, Resource, is_out_of_memory, open_memory
from unet_batch.inference.backends.proving import basename, complete_proof
from unet_batch.inference.backends.streaming import SLOTS, StreamingExecutor, undo_on_failure

if TYPE_CHECKING:
    from unet_batch.engine.onnx_model import Convolution
    from unet_batch.engine.proof import Parity, Reference
    from unet_batch.types import ModelSpec, Pixels, Size


class TensorRTBackend(Backend):
    """Runs an engine.

    Args:
        flavour: that built it.
        engine: as found by `engine.store`.
        size: (height, width) of the input, inside the engine's profile; None takes the profile's best.
        batch_size: inside the profile; None takes the profile's best.
        device: index of the GPU.
        reason: why this backend was chosen.
        memory: for tests and measurements; None opens PyCUDA or PyTorch.
        graphs: whether to repeat batches through CUDA graphs.

    Raises:
        UsageError: the size or batch lies outside the profile.
    """

    def __init__(
        self,
        flavour: Flavour,
        engine: Engine,
        *,
        size: Size | None = None,
        batch_size: int | None = None,
        device: int = 0,
        reason: str = "",
        memory: CudaMemory | None = None,
        graphs: bool = True,
    ) -> None:
        profile = engine.sidecar.recipe.profile
        low, best, high = profile.batch
        self.flavour = flavour
        self.engine = engine
        self.spec = engine.sidecar.spec
        self.input_size = size or profile.size[1]
        self.name = flavour.name
        self.precision = engine.sidecar.recipe.precision
        self.batch_size = batch_size or best
        self.least_batch = low
        self.streams = SLOTS
        if not profile.holds(self.input_size) or not low <= self.batch_size <= high:
            height, width = self.input_size
            raise UsageError(
                f"{engine.path} takes {profile}, not batch {self.batch_size}, {height}x{width}", hint=REBUILD
            )
        self.reason = "; ".join(
            part for part in (reason, f"{flavour.name} {flavour.version}", basename(engine.path)) if part
        )
        self.device = device
        self.memory = memory
        self.graphs = graphs
        self._undo: ExitStack | None = None
        self._executor: StreamingExecutor | None = None

    def _open(self) -> None:
        plan = self.engine.read_plan()
        with undo_on_failure() as undo:
            memory = self.memory or open_memory(self.device)
            card = self._gpu()
            kernels = self.engine.read_kernels(card.sm)
            loaded = LoadedEngine(self.flavour, plan, memory, kernels)
            undo.callback(loaded.close)
            self._complete_proof(loaded, card.name)
            program = Program(loaded, (*self.input_size, self.spec.in_channels))
            executor = StreamingExecutor(
                memory,
                program,
                program.shape,
                batch=self.batch_size,
                least=self.least_batch,
                graphs=self.graphs,
                notes=self.notes,
            )
            undo.callback(executor.close)
            self._executor = executor
            self.batch_size = executor.batch
            self._keep_kernels(loaded.kernels(), kernels, card.sm)
            self._undo = undo

    def _infer(self, pictures: Sequence[Pixels]) -> Pixels:
        executor = self._executor
        if executor is None:
            raise BackendError(f"{self.name}: closed while it ran")
        return executor.infer(pictures)

    def _resize(self, batch: int) -> None:
        if self._executor is not None:
            self._executor.resize(batch)

    def buffer(self) -> Pixels:
        executor = self._executor
        return super().buffer() if executor is None else executor.buffer()

    def _close(self) -> None:
        self._executor = None
        if self._undo is not None:
            self._undo.close()
            self._undo = None

    def _keep_kernels(self, kernels: bytes, known: bytes, target: str) -> None:
        """Save what was compiled while opening, so that the next run opens at once."""
        if kernels and kernels != known:
            try:
                self.engine.write_kernels(target, kernels)
            except OutputError as error:
                self.notes.append(f"compiled kernels could not be kept: {error.message}")

    def _gpu(self) -> gpu.Gpu:
        driver = gpu.driver()
        if driver is None or self.device >= len(driver.gpus):
            raise BackendUnavailable(f"{self.name}: {gpu.missing() or f'there is no GPU {self.device}'}")
        return driver.gpus[self.device]

    def _complete_proof(self, loaded: LoadedEngine, card: str) -> None:
        """See `proving.complete_proof`."""

        def run(reference: Reference, batches: tuple[int, ...]) -> Mapping[str, Parity]:
            return prove_loaded(loaded, self.engine.sidecar, reference, {}, batches).parities

        self.engine = complete_proof(self.engine, card, self.input_size, self.batch_size, run, self.notes)


def run_proof(
    flavour: Flavour,
    plan: bytes,
    sidecar: Sidecar,
    reference: Reference,
    convolutions: Mapping[str, Convolution],
    device: int = 0,
) -> ProofRun:
    """Run a plan that is not installed yet, on the pictures of the reference.

    Raises:
        BackendUnavailable: it cannot be loaded on this GPU, or no buffers are to be had.
        BackendError: it failed while running, or the inspector says that its precision is not the one asked
            for.
    """
    loaded = LoadedEngine(flavour, plan, open_memory(device))
    try:
        return prove_loaded(loaded, sidecar, reference, convolutions, sidecar.recipe.profile.batch, device)
    finally:
        loaded.close()


def prove_loaded(
    loaded: LoadedEngine,
    sidecar: Sidecar,
    reference: Reference,
    convolutions: Mapping[str, Convolution],
    batches: Iterable[int],
    device: int = 0,
) -> ProofRun:
    """Run a loaded engine on the reference at several batch sizes. Raises BackendError as `run_proof`."""
    least = sidecar.recipe.profile.batch[0]
    notes: list[str] = []
    program = Program(loaded, (*sidecar.recipe.profile.size[1], sidecar.spec.in_channels))
    parities: dict[str, Parity] = {}
    for batch in dict.fromkeys(batches):
        executor = StreamingExecutor(
            loaded.memory,
            program,
            program.shape,
            batch=batch,
            least=least,
            pictures=0,
            graphs=False,
            notes=notes,
        )
        with closing(executor):
            parities |= _parities(executor, reference, sidecar.spec)
    shares = []
    found = proof.inspected_precisions(loaded.information(), convolutions) if convolutions else {}
    counted = proof.share(convolutions, sidecar.recipe.precision, sidecar.float32, found, "engine")
    if convolutions and len(found) == len(convolutions):
        counted.check()
        shares.append(proof.as_dict(counted))
    elif convolutions and not loaded.flavour.strongly_typed:
        raise BackendError(
            f"the engine inspector names {len(found)} of {len(convolutions)} convolutions: nothing proves "
            f"their precision"
        )
    driver = gpu.driver()
    name = driver.gpus[device].name if driver is not None and device < len(driver.gpus) else "GPU"
    return ProofRun(name, parities, shares, notes)


def _parities(executor: StreamingExecutor, reference: Reference, spec: ModelSpec) -> dict[str, Parity]:
    def infer(pictures: Pixels) -> Pixels:
        return executor.infer(list(pictures))

    return proof.prove(lambda batch: infer, reference, spec, (executor.batch,))


class LoadedEngine:
    """An engine that the library has deserialized.

    Args:
        flavour: that built it.
        data: its bytes, compared with the sidecar before.
        memory: of the GPU it runs on.
        kernels: that were compiled in an earlier run.

    Attributes:
        input, output: names of its tensors.

    Raises:
        BackendUnavailable: the library refuses it, or it is not pictures in, maps out.
    """

    def __init__(self, flavour: Flavour, data: bytes, memory: CudaMemory, kernels: bytes = b"") -> None:
        self.flavour = flavour
        self.memory = memory
        self._runtime: Any = None
        self.engine: Any = None
        self._config: Any = None
        self._cache: Any = None
        with undo_on_failure() as undo:
            undo.callback(self.close)
            self._load(data)
            self.input, self.output = self._tensors()
            with memory.current():
                if settings := flavour.runtime_config(self.engine, kernels):
                    self._config, self._cache = settings

    def _load(self, data: bytes) -> None:
        flavour = self.flavour
        flavour.errors.clear()
        with self.memory.current():
            self._runtime = flavour.runtime()
            self.engine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            reason = flavour.take_errors()
            raise BackendUnavailable(
                f"{flavour.name} {flavour.version} refuses the plan: {reason}", hint=REBUILD
            )

    def _tensors(self) -> tuple[str, str]:
        """Names of the input and the output."""
        trt = self.flavour.module
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        inputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise BackendUnavailable(
                f"the plan has {len(inputs)} inputs and {len(outputs)} outputs, one each expected"
            )
        for name in names:
            if self.engine.get_tensor_dtype(name) != trt.DataType.UINT8:
                raise BackendUnavailable(
                    f"the plan's tensor {name} is {self.engine.get_tensor_dtype(name)}, not UINT8"
                )
        return inputs[0], outputs[0]

    def context(self) -> Any | None:
        """A new execution context; None where there was no memory for one."""
        return self.flavour.create_context(self.engine, self._config)

    def kernels(self) -> bytes:
        """What was compiled for this GPU; empty where the plan holds it all."""
        if self._cache is None:
            return b""
        with self.memory.current():
            kernels = self._cache.serialize()
            return b"" if kernels is None else bytes(kernels)

    def information(self) -> str:
        """The engine inspector's JSON."""
        with self.memory.current():
            inspector = self.engine.create_engine_inspector()
            return str(inspector.get_engine_information(self.flavour.module.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Unload it; no execution of it may be left."""
        with self.memory.current():
            self._config = self._cache = self.engine = self._runtime = None

    def error(self, what: str) -> BackendError:
        """What the library just refused, with its own reason."""
        reason = self.flavour.take_errors()
        kind = DeviceOutOfMemory if is_out_of_memory(reason) else BackendError
        return kind(f"{self.flavour.name}: {what}: {reason}")


class Program:
    """A plan for pictures of one shape, (H, W, C); a `streaming.Program`."""

    def __init__(self, loaded: LoadedEngine, shape: tuple[int, int, int]) -> None:
        self._loaded = loaded
        self.shape = shape

    def prepare(self, batch: int, pictures: Resource, maps: Resource) -> Execution:
        """See `streaming.Program`."""
        self._loaded.flavour.errors.clear()
        with undo_on_failure() as undo:
            execution = Execution(self._loaded)
            undo.callback(execution.close)
            execution.prepare((batch, *self.shape), pictures, maps)
        return execution


class Execution:
    """An execution context with its shape and addresses; a `streaming.Execution`.

    Nothing else refers to the context: it is destroyed in `close`, where the GPU is current.
    """

    def __init__(self, loaded: LoadedEngine) -> None:
        self._loaded = loaded
        self._scratch: Resource | None = None
        self._context: Any = loaded.context()

    def prepare(self, shape: tuple[int, int, int, int], pictures: Resource, maps: Resource) -> None:
        """Set the shape of the input and all addresses.

        Raises:
            DeviceOutOfMemory: there is no memory for the context or its activations.
            BackendError: the plan does not take the shape, or is not pictures in, maps out.
        """
        loaded = self._loaded
        what = f"a batch of {shape[0]} pictures of {shape[1:]}"
        if self._context is None:
            raise loaded.error(f"no execution context for {what}")
        self._choose_profile()
        try:
            taken = self._context.set_input_shape(loaded.input, shape)
            missing = self._context.infer_shapes() if taken else []
        except RuntimeError as error:  # the bindings' own, for shapes that do not fit together
            raise loaded.error(f"{what}: {error}") from error
        if not taken:
            raise loaded.error(f"the plan does not take {what}")
        if missing:
            raise loaded.error(f"the plan's shapes depend on {missing}")
        found = tuple(self._context.get_tensor_shape(loaded.output))
        if found != shape[:3]:
            raise BackendError(f"the plan's maps are {found}, {shape[:3]} expected")
        if not (
            self._context.set_tensor_address(loaded.input, pictures.address)
            and self._context.set_tensor_address(loaded.output, maps.address)
        ):
            raise loaded.error("the plan's buffers cannot be set")
        if loaded.flavour.lends_memory:
            self._lend_memory(what)

    def enqueue(self, stream: Resource) -> None:
        """See `streaming.Execution`."""
        if not self._context.execute_async_v3(stream.address):
            raise self._loaded.error("a batch cannot be queued")

    def close(self) -> None:
        """See `streaming.Execution`."""
        self._context = None
        if self._scratch is not None:
            self._loaded.memory.free(self._scratch)

    def _choose_profile(self) -> None:
        """Choose the only profile; 8.6 does so by itself for the first context of an engine only."""
        if self._context.active_optimization_profile == 0:
            return
        memory = self._loaded.memory
        stream = memory.stream()
        try:
            if not self._context.set_optimization_profile_async(0, stream.address):
                raise self._loaded.error("the plan's profile cannot be chosen")
            memory.synchronize(stream)
        finally:
            memory.free(stream)

    def _lend_memory(self, what: str) -> None:
        """Give the context memory for its activations.

        As much as this batch needs, not what the profile's largest would: else no smaller batch could ever
        save memory.
        """
        nbytes = self._context.update_device_memory_size_for_shapes()
        if not nbytes:  # how TensorRT says that it failed; a U-Net always needs some
            raise self._loaded.error(f"the memory that {what} needs cannot be told")
        self._scratch = self._loaded.memory.device(nbytes)
        self._context.set_device_memory(self._scratch.address, self._scratch.nbytes)
