"""Overlays, cutouts, sheets and colours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.inference import postprocess
from unet_batch.media import render
from unet_batch.types import ClassTable

CAR = ClassTable(("car",), ((200, 40, 255),))
STREET = ClassTable(("background", "car", "road", "void"), ((9, 9, 9), (255, 0, 0), (0, 0, 255), (0, 0, 0)))
ODD_SIZES = [(1, 1), (1, 7), (7, 1), (1, 4), (4, 1), (2, 2), (3, 501), (5, 3)]
SIZE = st.tuples(st.integers(1, 90), st.integers(1, 90))


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def photo(*size: int, seed: int = 0) -> np.ndarray:
    return frozen(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def disk(height: int, width: int, radius: float = 0.3) -> np.ndarray:
    rows, columns = np.ogrid[:height, :width]
    inside = np.hypot(rows - height / 2, columns - width / 2) < radius * min(height, width)
    return frozen(inside.astype(np.uint8) * 255)


def tinted(pixels: np.ndarray, colour: tuple[int, int, int], alpha: float) -> np.ndarray:
    return pixels * (1 - alpha) + np.array(colour) * alpha


def shrunk(mask: np.ndarray, by: int) -> np.ndarray:
    """The mask without the pixels nearer than `by` to its edge (the picture's border is none)."""
    return cv2.erode(mask, np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0


def test_overlay_tints_inside_and_leaves_the_outside():
    pixels, mask = photo(300, 400), disk(300, 400)
    out = render.overlay(pixels, mask, CAR, alpha=0.3)
    assert out.dtype == np.uint8
    assert not np.shares_memory(out, pixels)
    deep, far = shrunk(mask, 3), shrunk(255 - mask, 2)
    assert np.abs(out[deep] - tinted(pixels, CAR.colours[0], 0.3)[deep]).max() <= 0.51
    assert np.array_equal(out[far], pixels[far])


def test_overlay_draws_a_crisp_line_inside_the_edge():
    pixels = frozen(np.full((800, 1000, 3), 90, np.uint8))
    mask = np.zeros((800, 1000), np.uint8)
    mask[200:600, 300:700] = 255
    out = render.overlay(pixels, mask, CAR, alpha=0.5)
    profile = out[200 - 3 : 200 + 5, 500]  # down through the upper edge; the line is 2 wide
    colour = np.array(CAR.colours[0])
    assert np.array_equal(profile[3], colour)
    assert np.array_equal(profile[4], colour)
    assert np.abs(profile[5:] - tinted(pixels[0, 0], CAR.colours[0], 0.5)).max() <= 0.51
    assert np.abs(profile[2] - (colour + 90) / 2).max() <= 1.5  # half a pixel's worth, against stairs
    assert (profile[:2] == 90).all()


def test_overlay_without_contour_only_tints():
    pixels, mask = photo(300, 400), disk(300, 400)
    out = render.overlay(pixels, mask, CAR, contour=False)
    inside = mask > 0
    assert np.abs(out[inside] - tinted(pixels, CAR.colours[0], 0.45)[inside]).max() <= 0.51
    assert np.array_equal(out[~inside], pixels[~inside])


def test_overlay_of_an_empty_and_of_a_full_mask():
    pixels = photo(120, 90)
    assert np.array_equal(render.overlay(pixels, np.zeros((120, 90), np.uint8), CAR), pixels)
    full = render.overlay(pixels, np.full((120, 90), 255, np.uint8), CAR)
    # No line along the picture's border: the object goes on beyond it.
    assert np.abs(full - tinted(pixels, CAR.colours[0], 0.45)).max() <= 0.51


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 90), (1.0, 200)])
def test_overlay_at_the_ends_of_alpha(alpha, expected):
    pixels, mask = np.full((50, 50, 3), 90, np.uint8), disk(50, 50)
    table = ClassTable(("car",), ((200, 200, 200),))
    assert render.overlay(pixels, mask, table, alpha=alpha, contour=False)[25, 25, 0] == expected


def test_overlay_of_ids_leaves_background_and_black_classes():
    pixels = photo(80, 120)
    ids = frozen(np.repeat(np.repeat(np.array([[0, 1], [2, 3]], np.uint8), 40, 0), 60, 1))
    out = render.overlay(pixels, ids, STREET, alpha=0.4, contour=False)
    assert np.array_equal(out[ids == 0], pixels[ids == 0])
    assert np.array_equal(out[ids == 3], pixels[ids == 3])
    for id in (1, 2):
        assert np.abs(out - tinted(pixels, STREET.colours[id], 0.4))[ids == id].max() <= 0.51


@pytest.mark.parametrize("name", ["Background", "bg", "_background_", "none", "unlabeled"])
def test_overlay_of_ids_leaves_the_background_whatever_it_is_called(name):
    table = ClassTable(("car", name, "road"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    photo = np.full((20, 20, 3), 100, np.uint8)
    assert np.array_equal(render.overlay(photo, np.ones((20, 20), np.uint8), table), photo)
    assert not np.array_equal(render.overlay(photo, np.zeros((20, 20), np.uint8), table), photo)


def test_overlay_of_ids_tints_a_first_class_that_is_no_background():
    pixels = photo(40, 40)
    table = ClassTable(("sky", "road"), ((0, 100, 200), (0, 200, 100)))
    out = render.overlay(pixels, np.zeros((40, 40), np.uint8), table)
    assert np.abs(out - tinted(pixels, (0, 100, 200), 0.45)).max() <= 0.51


def test_overlay_gives_neighbours_a_line_each():
    pixels = frozen(np.full((800, 800, 3), 90, np.uint8))
    ids = np.full((800, 800), 1, np.uint8)
    ids[:, 400:] = 2
    row = render.overlay(pixels, ids, STREET)[400]
    assert np.array_equal(row[398], STREET.colours[1])
    assert np.array_equal(row[401], STREET.colours[2])


@pytest.mark.parametrize(
    ("size", "width"),
    [((1, 1), 1), ((160, 240), 1), ((1280, 1918), 3), ((1918, 1280), 3), ((4000, 6000), 10)],
)
def test_line_width_follows_the_shorter_side(size, width):
    assert render.line_width(*size) == width


@settings(deadline=None, max_examples=80)
@given(SIZE, st.integers(0, 1000), st.booleans())
def test_anything_can_be_drawn_and_inputs_stay(size, seed, contour):
    random = np.random.default_rng(seed)
    pixels = photo(*size, seed=seed)
    mask = frozen((random.random(size) < random.random()).astype(np.uint8) * 255)
    ids = frozen(random.integers(0, 4, size, dtype=np.uint8))
    copies = [array.copy() for array in (pixels, mask, ids)]
    for regions, table in ((mask, CAR), (ids, STREET)):
        assert render.overlay(pixels, regions, table, contour=contour).shape == (*size, 3)
    assert render.cutout(pixels, mask).shape == (*size, 4)
    assert all(np.array_equal(array, copy) for array, copy in zip((pixels, mask, ids), copies, strict=True))


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("value", [0, 255])
def test_odd_sizes(size, value):
    pixels, mask = photo(*size), frozen(np.full(size, value, np.uint8))
    out = render.overlay(pixels, mask, CAR)
    rgba = render.cutout(pixels, mask)
    assert out.shape == (*size, 3)
    assert rgba.shape == (*size, 4)
    assert render.overlay(pixels, frozen(mask // 255), STREET).shape == (*size, 3)
    assert render.on_checkerboard(frozen(rgba)).shape == (*size, 3)
    if value:
        assert np.array_equal(rgba[..., :3], pixels)
        assert (rgba[..., 3] == 255).all()
    else:
        assert np.array_equal(out, pixels)
        assert not rgba.any()


def test_overlay_takes_views():
    pixels, mask = photo(120, 200), disk(120, 200)
    wanted = render.overlay(pixels[:, ::-1].copy(), mask[:, ::-1].copy(), CAR)
    assert np.array_equal(render.overlay(pixels[:, ::-1], np.ascontiguousarray(mask[:, ::-1]), CAR), wanted)
    assert np.array_equal(
        render.overlay(pixels[10:90, 20:150], mask[10:90, 20:150], CAR),
        render.overlay(pixels[10:90, 20:150].copy(), mask[10:90, 20:150].copy(), CAR),
    )


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1, exclude_min=True))
def test_cutout_alpha(threshold):
    probability = frozen(np.arange(256, dtype=np.uint8).reshape(16, 16))
    pixels = photo(16, 16)
    rgba = render.cutout(pixels, probability, threshold)
    alpha = rgba[..., 3].reshape(-1).astype(int)
    assert alpha[0] == 0
    assert alpha[255] == 255
    assert (np.diff(alpha) >= 0).all()
    assert np.array_equal(rgba[..., 3] >= 128, postprocess.mask(probability, threshold) > 0)
    assert np.array_equal(rgba[rgba[..., 3] == 255][:, :3], pixels[rgba[..., 3] == 255])
    assert not rgba[rgba[..., 3] == 0].any()


def test_cutout_is_opaque_inside_and_empty_outside():
    p = np.arange(256, dtype=np.uint8).reshape(1, 256)
    alpha = render.cutout(photo(1, 256), p)[0, :, 3]
    assert not alpha[: int(255 * 0.35) + 1].any()
    assert (alpha[int(255 * 0.65) + 1 :] == 255).all()
    assert len(set(alpha.tolist())) > 60  # and soft between


def test_checkerboard_shows_only_where_the_picture_does_not():
    pixels = photo(64, 64)
    opaque = np.dstack([pixels, np.full((64, 64), 255, np.uint8)])
    assert np.array_equal(render.on_checkerboard(opaque), pixels)
    empty = render.on_checkerboard(np.zeros((64, 64, 4), np.uint8), square=16)
    assert set(np.unique(empty)) == {208, 244}
    assert (empty[:16, :16] == empty[0, 0]).all()
    assert (empty[16, 0] != empty[0, 0]).all()


def test_side_by_side():
    pictures = [photo(100, 200), disk(50, 50), photo(10, 10)]
    sheet = render.side_by_side(pictures, 60, gap=5)
    assert sheet.shape == (60, 120 + 5 + 60 + 5 + 60, 3)
    assert sheet.dtype == np.uint8
    assert (sheet[:, 120:125] == 255).all()
    assert (sheet[30, 155] == 255).all()  # the mask's middle, as grey
    alone = render.side_by_side([pictures[0]], 100)
    assert np.array_equal(alone, pictures[0])
    assert not np.shares_memory(alone, pictures[0])


def test_palette_is_the_same_for_every_count():
    table = render.palette(256)
    assert len(set(table)) == 256
    assert all(render.palette(count) == table[:count] for count in (0, 1, 2, 10, 11, 40))
    assert all(
        len(colour) == 3 and all(type(value) is int and 0 <= value <= 255 for value in colour)
        for colour in table
    )
    assert all(max(colour) > 100 for colour in table)  # none is so dark that it reads as "untinted"


# Machado, Oliveira and Fernandes 2009: how red- and green-blind eyes see linear RGB.
EYES = {
    "all": np.eye(3),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize(("count", "least"), [(6, 0.16), (10, 0.095)])
def test_palette_is_distinct_for_colour_blind_eyes(eyes, count, least):
    rgb = np.array(render.palette(count)) / 255
    linear = np.clip(
        np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ EYES[eyes].T, 0, 1
    )
    cones = np.cbrt(
        linear
        @ np.array([[0.41222, 0.21190, 0.08830], [0.53633, 0.68070, 0.28172], [0.05145, 0.10740, 0.62998]])
    )
    oklab = cones @ np.array(
        [[0.21045, 1.97800, 0.02590], [0.79362, -2.42859, 0.78277], [-0.00407, 0.45059, -0.80868]]
    )
    apart = np.linalg.norm(oklab[:, None] - oklab, axis=-1)[np.triu_indices(count, 1)]
    assert apart.min() >= least


def test_threads_do_not_disturb_one_another():
    jobs = [(photo(200, 300, seed=seed), disk(200, 300, 0.1 + 0.04 * seed)) for seed in range(8)]

    def run(job):
        return render.overlay(*job, CAR), render.cutout(*job)

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, jobs * 4))
    for number, results in enumerate(together):
        assert all(np.array_equal(a, b) for a, b in zip(results, alone[number % 8], strict=True))


def test_what_is_transparent_in_a_picture_is_so_in_its_cutout() -> None:
    """In its own colours, not those that were laid over white."""
    own = np.arange(256, dtype=np.uint8)[None].repeat(3, 0)
    colours = np.stack([own, own[:, ::-1], np.full_like(own, 60)], axis=-1)
    share = own[..., None] / 255
    pixels = np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)
    probability = np.array([[255], [128], [0]], np.uint8).repeat(256, 1)
    before = pixels.copy()
    plain = render.cutout(pixels, probability)
    rgba = render.cutout(pixels, probability, opacity=own)
    assert np.array_equal(pixels, before)
    assert np.array_equal(rgba[..., 3], np.rint(plain[..., 3] * share[..., 0]))
    assert (rgba[2] == 0).all()
    shown = rgba[..., 3] > 0
    # Shown over anything, two roundings have lost one level at most; where opaque, nothing
    lost = np.abs(rgba[..., :3].astype(float) - colours) * share
    assert lost[shown].max() <= 1
    assert np.array_equal(rgba[0, 255, :3], colours[0, 255])
    assert np.abs(rgba[0, 128:, :3].astype(int) - colours[0, 128:]).max() <= 2
