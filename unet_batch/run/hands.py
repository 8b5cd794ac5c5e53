"""Who does the work of a run: this process, or several (`crew`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from unet_batch.inference.segmenter import Segmenter
from unet_batch.pipeline import StageStats
from unet_batch.run.observe import Stop
from unet_batch.run.options import PageRange
from unet_batch.run.pictures import OutputRenderer
from unet_batch.run.plan import RunPlan
from unet_batch.run.recipe import recipe_of
from unet_batch.run.records import OutputRecipe
from unet_batch.run.work import ItemWorker, Outcome, Progress
from unet_batch.types import Item

if TYPE_CHECKING:
    from unet_batch.media.video import Codec

T = TypeVar("T")


class Hands(Protocol):
    """What does to items what a plan says, and records each once its outputs stand under their names."""

    @property
    def cpu(self) -> float:
        """Seconds of processor time so far, of all processes."""

    @property
    def computes_on_cpu(self) -> bool:
        """Whether the network runs on the processor."""

    @property
    def stages(self) -> Mapping[str, StageStats]:
        """What each stage has done, in pipelines that have ended."""

    @property
    def stats(self) -> Sequence[StageStats]:
        """What the stages have done so far of the pipelines that run."""

    @property
    def devices(self) -> list[dict[str, Any]]:
        """What each device has done, if there are several; for reports: values that JSON can hold."""

    def call(self, function: Callable[[Segmenter], T]) -> T:
        """What a function of a module says of the segmenter, or of that of the first device."""

    def describe(self) -> dict[str, Any]:
        """As of a `Segmenter`."""

    def describe_model(self) -> dict[str, Any]:
        """As of a `Segmenter`."""

    def recipe(self, pages: PageRange | None) -> OutputRecipe:
        """What decides the pixels; see `recipe.recipe_of`."""

    def check(self, plan: RunPlan) -> None:
        """Raise UsageError where the outputs of a plan cannot be made."""

    def begin(self, plan: RunPlan, recipe: OutputRecipe) -> None:
        """Make ready for a plan that is resumed: its manifest will be open when there is work."""

    def pictures(self, items: Sequence[Item], stop: Stop) -> Iterator[Outcome]:
        """What becomes of pictures; see `ItemWorker.pictures`. A generator: closing it ends the work."""

    def alone(
        self, items: Sequence[Item], codec: Codec | None, on_progress: Progress, stop: Stop
    ) -> Iterator[Outcome]:
        """What becomes of items that are segmented by themselves; see `ItemWorker.alone`. A generator."""

    def halt(self) -> None:
        """Begin with no more items; what is in flight is finished."""


def computes_on_cpu(segmenter: Segmenter) -> bool:
    """Whether its network runs on the processor."""
    return segmenter.backend.name.endswith(("cpu", "openvino"))


class Here:
    """This process, with one segmenter.

    Args:
        segmenter: open.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self._worker: ItemWorker
        self._is_halted = False
        self.devices: list[dict[str, Any]] = []

    @property
    def cpu(self) -> float:
        return self._worker.cpu

    @property
    def computes_on_cpu(self) -> bool:
        return computes_on_cpu(self.segmenter)

    @property
    def stages(self) -> Mapping[str, StageStats]:
        return self._worker.stages

    @property
    def stats(self) -> Sequence[StageStats]:
        return self._worker.stats

    def call(self, function: Callable[[Segmenter], T]) -> T:
        return function(self.segmenter)

    def describe(self) -> dict[str, Any]:
        return self.segmenter.describe()

    def describe_model(self) -> dict[str, Any]:
        return self.segmenter.describe_model()

    def recipe(self, pages: PageRange | None) -> OutputRecipe:
        return recipe_of(self.segmenter, pages)

    def check(self, plan: RunPlan) -> None:
        OutputRenderer(plan.outputs, self.segmenter)

    def begin(self, plan: RunPlan, recipe: OutputRecipe) -> None:
        manifest = plan.manifest
        assert manifest is not None, "not resumed"
        self._worker = ItemWorker(plan, self.segmenter, recipe, check=manifest.check, record=manifest.record)

    def pictures(self, items: Sequence[Item], stop: Stop) -> Iterator[Outcome]:
        aside: list[Item] = []
        yield from self._worker.pictures(items, stop, aside.append)
        for item in aside:
            yield Outcome(item, aside=True)

    def alone(
        self, items: Sequence[Item], codec: Codec | None, on_progress: Progress, stop: Stop
    ) -> Iterator[Outcome]:
        for item in items:
            if stop.reason or self._is_halted:
                return
            if (outcome := self._worker.alone(item, codec, on_progress, stop)) is not None:
                yield outcome

    def halt(self) -> None:
        self._is_halted = True
        self._worker.halt()
