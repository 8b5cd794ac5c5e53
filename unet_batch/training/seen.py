"""What a training has seen, so that the model can say of a picture that it is unlike that."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from unet_batch.datasets.encoding import VOID
from unet_batch.errors import ImageError
from unet_batch.media import domain, geometry
from unet_batch.media.images import AUTO, Range
from unet_batch.media.threads import single_threaded_cv2
from unet_batch.pipeline import cpu_count

if TYPE_CHECKING:
    from unet_batch.datasets.dataset import Dataset, Pair
    from unet_batch.media.domain import Figures
    from unet_batch.types import Domain, Size

MOST = 2000
"""Pictures that are looked at, evenly spaced; figures of nineteen numbers settle before."""


def domain_of(
    dataset: Dataset,
    train: Sequence[Pair],
    val: Sequence[Pair],
    size: Size,
    value_range: Range = AUTO,
    channels: int = 3,
) -> Domain | None:
    """What a model has seen that was trained on some pictures.

    Those in which nothing is marked show what is to be left alone: they are none of those it learned from.

    Args:
        dataset: which says how masks are read.
        train: what it was trained on.
        val: what it was not, for the limit.
        size: (height, width) of the network's input.
        value_range: which values of a picture are black and white.
        channels: of the network's input.

    Returns:
        None of a network that takes other channels than colours or grey, or where pictures are too few.
    """
    if channels not in (1, 3):
        return None

    def look(pair: Pair) -> Figures | None:
        try:
            picture = dataset.read_picture(pair, (2 * size[0], 2 * size[1]), value_range)
            ids = dataset.read_mask(pair, picture.size)
        except ImageError:  # told when it was to be trained on
            return None
        if len(dataset.classes.names) == 1 and not np.any((ids != 0) & (ids != VOID)):
            return None
        placement = geometry.place(picture.size, size)
        tensor = geometry.to_network(picture.pixels, placement, channels=channels)
        return domain.describe(geometry.content_of(tensor, placement))

    with single_threaded_cv2(), ThreadPoolExecutor(cpu_count()) as pool:
        trained, validated = (
            [found for found in pool.map(look, pairs[:: -(-len(pairs) // MOST) or 1]) if found is not None]
            for pairs in (train, val)
        )
    return domain.learn(trained, validated)
