"""The sheet beside a model: the best, the middle and the worst, whatever the number of images."""

from __future__ import annotations

import pytest

from unet_batch.training.report import pick_examples


@pytest.mark.parametrize(
    ("count", "captions"),
    [
        (0, []),
        (1, ["best"]),
        (2, ["best", "worst"]),
        (3, ["best", "middle", "worst"]),
        (5, ["best"] * 2 + ["middle"] + ["worst"] * 2),
        (12, ["best"] * 4 + ["middle"] * 4 + ["worst"] * 4),
        (101, ["best"] * 4 + ["middle"] * 4 + ["worst"] * 4),
    ],
)
def test_the_sheet_ends_with_the_worst(count: int, captions: list[str]) -> None:
    ranked = [(f"p{number:03}", number / 128) for number in range(count)]  # worst first
    rows = pick_examples(ranked)
    keys = [key for key, _ in rows]
    assert [caption.split(",")[0] for _, caption in rows] == captions
    assert keys == sorted(set(keys), reverse=True)
    if count <= 12:
        assert len(keys) == count
    else:
        assert keys[0] == "p100"
        assert keys[4:8] == ["p052", "p051", "p050", "p049"]
        assert keys[-1] == "p000"
    assert all(caption.endswith(f"Dice {dict(ranked)[key]:.4f}") for key, caption in rows)
