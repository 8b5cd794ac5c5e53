"""Which colour is which class, in the corner of a picture."""

from __future__ import annotations

import numpy as np
import pytest

from unet_batch.media.images.lettering import draw_text, parse_colour
from unet_batch.media.legend import MOST, draw_legend
from unet_batch.media.render import class_table
from unet_batch.types import ClassTable

GREY = np.full((400, 600, 3), 128, np.uint8)


def colours_in(pixels: np.ndarray) -> set[tuple[int, ...]]:
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    return {(value >> 16, value >> 8 & 255, value & 255) for value in np.unique(packed).tolist()}


def test_every_class_but_the_background_is_named() -> None:
    table = class_table(["background", "car", "road", "sky"])
    drawn = draw_legend(GREY, table)
    found = colours_in(drawn)
    assert set(table.colours[1:]) <= found
    changed = np.argwhere((drawn != GREY).any(axis=2))
    assert changed[:, 0].min() > 200, "it is at the bottom"
    assert changed[:, 1].max() < 300, "it is at the left"
    assert (GREY == 128).all()


@pytest.mark.parametrize("size", [(1, 1), (30, 40), (16, 2000), (2000, 16)])
def test_what_is_too_small_has_none(size: tuple[int, int]) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    assert draw_legend(pixels, class_table(["background", *"abcdef"])) is pixels


def test_one_class_needs_none() -> None:
    assert draw_legend(GREY, ClassTable(("car",), ((200, 40, 255),))) is GREY


def test_of_many_classes_those_in_the_picture_are_named() -> None:
    table = class_table(["background", *(f"class {number}" for number in range(40))])
    pixels = np.full((900, 1200, 3), 128, np.uint8)
    found = colours_in(draw_legend(pixels, table, present={3, 17, 30}))
    assert {table.colours[id] for id in (3, 17, 30)} <= found
    assert table.colours[4] not in found
    everything = colours_in(draw_legend(pixels, table, present=set(range(41))))
    chosen = colours_in(draw_legend(pixels, table, {5, 6}))
    assert {table.colours[5], table.colours[6]} <= chosen
    assert table.colours[7] not in chosen
    assert sum(colour in everything for colour in table.colours[1:]) == MOST


def test_text_of_any_kind_is_drawn() -> None:
    for text in ("car", "Straße", "汽车", "a\nb\x00", ""):
        assert draw_text(text, 12).dtype == np.uint8
    assert draw_text("car", 20).any()


def test_colours_by_name() -> None:
    assert parse_colour("white") == (255, 255, 255)
    assert parse_colour(" #102030 ") == (16, 32, 48)
    assert parse_colour("#10203040") == (16, 32, 48)
    assert parse_colour("sea.jpg") is None
