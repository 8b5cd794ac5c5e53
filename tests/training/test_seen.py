"""What a training has seen stands in the model."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tests.helpers.datasets import write_shapes
from unet_batch.datasets.find import find_dataset
from unet_batch.media import domain, geometry
from unet_batch.training.seen import domain_of

SIZE = (40, 56)


def test_pictures_with_something_marked_are_what_it_learned_from(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "shapes", 40)
    for number in range(4):  # shown to it so that it leaves them alone
        name = f"none{number}_0.png"
        cv2.imwrite(str(folder / "images" / name), np.full((48, 64, 3), 255, np.uint8))
        cv2.imwrite(str(folder / "masks" / name), np.zeros((48, 64), np.uint8))
    dataset = find_dataset(str(folder))
    pairs = sorted(dataset.pairs, key=lambda pair: pair.key)
    seen = domain_of(dataset, pairs[:34], pairs[34:], SIZE)
    assert seen is not None
    assert seen.pictures + seen.validated == 40
    assert seen == domain_of(dataset, pairs[:34], pairs[34:], SIZE)

    def how_far(picture: np.ndarray) -> float:
        placement = geometry.place(picture.shape[:2], SIZE)
        found = domain.unlike((seen,), (geometry.to_network(picture, placement),), placement)
        assert found is not None
        return found

    own = cv2.cvtColor(cv2.imread(pairs[35].image), cv2.COLOR_BGR2RGB)
    assert how_far(own) <= 1.001
    assert how_far(np.full((48, 64, 3), 255, np.uint8)) > 2


def test_where_little_or_other_channels_were_seen_nothing_is_known(shapes: Path) -> None:
    dataset = find_dataset(str(shapes))
    assert domain_of(dataset, dataset.pairs[:10], dataset.pairs[10:], SIZE) is None
    assert domain_of(dataset, dataset.pairs[:20], dataset.pairs[20:], SIZE, channels=4) is None
    assert domain_of(dataset, dataset.pairs[:20], dataset.pairs[20:], SIZE, channels=1) is not None
