"""What decides the pixels of outputs: models, how pictures are shown to them, what is made of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from unet_batch.inference.views import ViewOptions
from unet_batch.media.cleanup import UNTOUCHED, Cleanup
from unet_batch.media.measure import Measuring
from unet_batch.run.options import PageRange
from unet_batch.run.records import OutputRecipe

if TYPE_CHECKING:
    from unet_batch.inference.segmenter import Segmenter
    from unet_batch.types import Channels

# Of the recipe: raise it when the same model gives masks that differ by more than those of two backends may
# (Dice 0.999, see `engine.proof`), as after a change of `geometry` or `postprocess`.
RULES = 1


def recipe_of(segmenter: Segmenter, pages: PageRange | None = None) -> OutputRecipe:
    """What decides the pixels: the model's sha256, a threshold if it has one, the network's size, our rules.

    Of an ensemble those of all. And which pages and bands of a picture are taken, how the network sees them,
    what masks are cleaned of, and how they are measured, where that is not as it always was.

    A checkpoint and the graph exported from it are one model: either goes on with what the other began.
    Backend and precision are not in it. A backend is used only after its masks were proven equal to
    PyTorch's, and a night's work must not begin anew because the GPU was taken in the morning. Batch, streams
    and threads change nothing at all.
    """
    threshold = None if segmenter.spec.output == "class_ids" else segmenter.threshold
    sights = segmenter.view.members
    hashes = [model.sha256 for model in segmenter.models] or [""] * len(sights)
    seen = [
        (sha256, sight.backend.spec.name, sight.backend.input_size, sight.options)
        for sha256, sight in zip(hashes, sights, strict=True)
    ]
    channels = None if segmenter.channels == segmenter.spec.channels else segmenter.channels
    return recipe_of_models(seen, threshold, pages, channels, segmenter.cleanup, segmenter.measuring)


def recipe_of_models(
    seen: Sequence[tuple[str, str, Sequence[int], ViewOptions]],
    threshold: float | None,
    pages: PageRange | None = None,
    channels: Channels | None = None,
    cleanup: Cleanup = UNTOUCHED,
    measuring: Measuring = Measuring(),  # noqa: B008 - it has no state
) -> OutputRecipe:
    """The recipe of models, each with its sha256, name, input size and how it sees pictures."""
    facts: dict[str, Any] = {"threshold": threshold, "rules": RULES}
    members = [{"model": sha256, "input_size": list(size), **view.facts()} for sha256, _, size, view in seen]
    if len(members) == 1:
        facts |= members[0]
    else:  # of a mean the order is all the same, of votes the first decides a tie
        facts["members"] = members if threshold is None else sorted(members, key=itemgetter("model"))
    label = " + ".join(f"{name} (sha256 {sha256[:12]})" for sha256, name, _, _ in seen)
    label += f", threshold {threshold:g}" if threshold is not None else ""
    views = dict.fromkeys(f"{size[0]}x{size[1]} {view}".rstrip() for _, _, size, view in seen)
    label += f", {' + '.join(views)}"
    if pages is not None:
        facts["pages"] = str(pages)
        label += f", pages {pages}"
    if channels is not None:
        facts["channels"] = list(channels)
        label += f", channels {','.join(map(str, channels))}"
    if cleaned := cleanup.facts():
        facts["cleanup"] = cleaned
        label += f", {cleanup}"
    facts |= measuring.facts()
    label += f", {measuring}" if str(measuring) else ""
    return OutputRecipe(facts, label)
