"""An object before another background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unet_batch.errors import UsageError
from unet_batch.media import backdrop


def rgba(height: int, width: int) -> np.ndarray:
    """Red; opaque, half transparent and not there, a third each."""
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[:, : width // 3, 3] = 255
    pixels[:, width // 3 : 2 * width // 3, 3] = 128
    return pixels


def test_what_is_opaque_stays_and_the_rest_shows_the_background() -> None:
    background = np.full((4, 9, 3), 100, np.uint8)
    shown = backdrop.before(rgba(4, 9), background)
    assert (shown[:, :3] == (200, 0, 0)).all()
    assert (shown[:, 3:6] == (150, 50, 50)).all()
    assert (shown[:, 6:] == 100).all()
    assert (background == 100).all()


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (10, 90), (1, 1), (400, 300)])
def test_a_picture_covers_all_and_keeps_its_proportions(size: tuple[int, int]) -> None:
    picture = np.zeros((50, 80, 3), np.uint8)
    picture[..., 0] = np.arange(50)[:, None] * 5
    picture[..., 1] = np.arange(80) * 3
    covered = backdrop.cover(picture, size)
    assert covered.shape == (*size, 3)
    middle = covered[size[0] // 2, size[1] // 2].astype(int)
    assert abs(middle[0] - 125) <= 9
    assert abs(middle[1] - 120) <= 9
    if min(size) > 20:  # a step down changes as much as it does in the picture, and so does one across
        scale = max(size[0] / 50, size[1] / 80)
        down = np.ptp(covered[5:-5, size[1] // 2, 0].astype(int)) / (size[0] - 11)
        across = np.ptp(covered[size[0] // 2, 5:-5, 1].astype(int)) / (size[1] - 11)
        assert down == pytest.approx(5 / scale, rel=0.2)
        assert across == pytest.approx(3 / scale, rel=0.2)


def test_out_of_focus_nothing_of_the_object_runs_into_the_rest() -> None:
    pixels = np.full((200, 300, 3), (0, 120, 0), np.uint8)
    alpha = np.zeros((200, 300), np.uint8)
    alpha[60:140, 100:200] = 255
    pixels[alpha > 0] = (255, 0, 255)
    blurred = backdrop.out_of_focus(pixels, alpha)
    outside = blurred[alpha == 0].astype(int)
    assert np.abs(outside - (0, 120, 0)).max() <= 4


def test_out_of_focus_detail_is_gone() -> None:
    pixels = (np.indices((300, 400)).sum(axis=0) // 4 % 2 * 255).astype(np.uint8)
    blurred = backdrop.out_of_focus(np.dstack([pixels] * 3), np.zeros((300, 400), np.uint8))
    assert np.ptp(blurred[40:-40, 40:-40].astype(int)) <= 12


def test_a_picture_that_is_all_object_has_no_background(tmp_path: Path) -> None:
    whole = np.full((5, 7), 255, np.uint8)
    for name in ("blur", "white"):
        assert backdrop.behind(name, np.zeros((5, 7, 3), np.uint8), whole).shape == (5, 7, 3)


def test_colours_pictures_and_neither(tmp_path: Path) -> None:
    pixels, alpha = np.zeros((6, 8, 3), np.uint8), np.zeros((6, 8), np.uint8)
    for text, colour in (("white", (255, 255, 255)), ("#f80", (255, 136, 0)), ("rgb(1,2,3)", (1, 2, 3))):
        backdrop.check(text)
        assert (backdrop.behind(text, pixels, alpha) == colour).all()
    path = tmp_path / "sea.png"
    Image.new("RGB", (30, 20), (9, 8, 7)).save(path)
    backdrop.check(str(path))
    assert (backdrop.behind(str(path), pixels, alpha) == (9, 8, 7)).all()
    with pytest.raises(UsageError, match="no colour, and no picture") as info:
        backdrop.check("whiet")
    assert "blur" in info.value.hint
