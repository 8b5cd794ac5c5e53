"""The check of a dataset before a training starts on it: what would spoil the training stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from unet_batch.datasets import check
from unet_batch.training.plan import TrainingPlan


@dataclass(frozen=True)
class PairsCheck:
    """What was found in the pairs that a plan trains and validates on.

    Attributes:
        report: of the pairs, see `datasets.check`; the training may start if it is ok.
        left_out: files without a partner, or with several: nobody trains on them, so they spoil nothing.
    """

    report: check.Report
    left_out: tuple[str, ...]

    @property
    def class_frequencies(self) -> list[float]:
        """Share of each class in the pixels that are not void, 0..1, background included."""
        return [share.pixels for share in self.report.classes]


def check_pairs(plan: TrainingPlan, progress: Callable[[int], None] | None = None) -> PairsCheck:
    """Decode every pair of a plan and look for what would spoil the training.

    Args:
        plan: of the training.
        progress: called with the number of pairs done, from this thread.
    """
    data = plan.dataset
    pairs = (*plan.train, *plan.val)
    used = replace(data, pairs=pairs, unmatched_images=(), unmatched_masks=(), ambiguous={})
    splits = {"training": plan.train, "validation": plan.val}
    report = check.check(used, splits=splits, value_range=plan.options.range, progress=progress)
    return PairsCheck(report, (*data.unmatched_images, *data.unmatched_masks, *data.ambiguous))
