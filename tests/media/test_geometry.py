"""Where pictures lie in the network's input, and that maps come back to the same place."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unet_batch.media import geometry
from unet_batch.types import Placement

SIDE = st.integers(1, 700)
SIZE = st.tuples(SIDE, SIDE)
NETWORK = st.sampled_from([(160, 240), (64, 64), (320, 320), (96, 160), (33, 57)])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    array.flags.writeable = False
    return array


def bilinear(map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation at half-pixel centres, written out in float64."""
    result = map.astype(np.float64)
    for axis in (0, 1):
        at = (np.arange(size[axis]) + 0.5) * map.shape[axis] / size[axis] - 0.5
        low = np.floor(at).astype(int)
        share = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        first, second = (
            np.take(result, np.clip(low + step, 0, map.shape[axis] - 1), axis) for step in (0, 1)
        )
        result = first * (1 - share) + second * share
    return result


@pytest.mark.parametrize(
    ("source", "network", "top", "left", "content"),
    [
        ((1280, 1912), (160, 240), 0, 0, (160, 240)),  # 239 columns: fills
        ((1080, 1920), (160, 240), 12, 0, (135, 240)),  # 25 rows of padding: the odd one at the bottom
        ((1920, 1080), (160, 240), 0, 75, (160, 90)),
        ((240, 160), (160, 240), 0, 66, (160, 107)),
        ((100, 100), (160, 240), 0, 40, (160, 160)),
        ((160, 240), (160, 240), 0, 0, (160, 240)),
        ((1, 10_000), (160, 240), 79, 0, (1, 240)),
        ((10_000, 1), (160, 240), 0, 119, (160, 1)),
        ((1, 1), (160, 240), 0, 40, (160, 160)),
    ],
)
def test_place_examples(source, network, top, left, content):
    assert geometry.place(source, network) == Placement(source, network, top, left, content, covered=source)


@pytest.mark.parametrize(
    ("source", "content", "covered"),
    [
        ((1280, 1918), (160, 240), (1280, 1920)),  # decoded at 1/4, to 320x480
        ((1277, 1918), (160, 240), (1280, 1920)),
        ((1276, 1918), (160, 240), (1276, 1918)),  # 319 rows are too few for 1/4, and 1/2 divides both
        ((1275, 1917), (160, 240), (1276, 1918)),
        ((639, 961), (160, 240), (640, 962)),
        ((638, 961), (160, 240), (638, 961)),  # is never decoded at a reduced scale
        ((6003, 3999), (160, 107), (6008, 4000)),
    ],
)
def test_place_covers_whole_pixels_of_a_reduced_decode(source, content, covered):
    placement = geometry.place(source, (160, 240))
    assert (placement.content, placement.covered) == (content, covered)


@given(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), NETWORK)
def test_what_is_covered_reaches_past_the_picture_by_under_half_a_pixel_of_the_network(source, network):
    placement = geometry.place(source, network)
    for whole, own, content in zip(placement.covered, source, placement.content, strict=True):
        assert 0 <= (whole - own) * content < whole / 2 or whole == own


@given(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), NETWORK)
def test_place_is_inside_centred_and_keeps_the_aspect(source, network):
    placement = geometry.place(source, network)
    scale = min(network[0] / placement.covered[0], network[1] / placement.covered[1])
    fills = placement.content == network
    for axis, start in ((0, placement.top), (1, placement.left)):
        length = placement.content[axis]
        assert 1 <= length <= network[axis]
        assert start == (network[axis] - length) // 2
        # Half a pixel of rounding, or the last pixel of one that fills; at least one pixel.
        assert abs(length - max(1.0, scale * placement.covered[axis])) <= (1.5 if fills else 0.5) + 1e-9
    assert placement.content[0] == network[0] or placement.content[1] == network[1]


@pytest.mark.parametrize(
    ("source", "network"), [((0, 5), (8, 8)), ((5, 0), (8, 8)), ((5, 5), (0, 8)), ((5, 5), (8, -1))]
)
def test_place_refuses_empty_sizes(source, network):
    with pytest.raises(ValueError, match="at least 1x1"):
        geometry.place(source, network)


@settings(deadline=None, max_examples=60)
@given(SIZE, NETWORK)
def test_to_network_fills_the_content_and_pads_with_grey(source, network):
    pixels = np.full((*source, 3), (255, 0, 30), np.uint8)
    placement = geometry.place(source, network)
    tensor = geometry.to_network(pixels, placement)
    assert tensor.shape == (*network, 3)
    assert tensor.dtype == np.uint8
    assert tensor.flags.c_contiguous
    content = np.zeros(network, bool)
    geometry.content_of(content, placement)[:] = True
    assert (tensor[content] == (255, 0, 30)).all()
    assert (tensor[~content] == geometry.PAD_VALUE).all()


@settings(deadline=None, max_examples=60)
@given(SIZE, NETWORK, st.integers(0, 3))
def test_to_network_writes_where_it_is_told(source, network, seed):
    pixels = noise(*source, 3, seed=seed)
    placement = geometry.place(source, network)
    room = np.full((3, *network, 3), 7, np.uint8)
    tensor = geometry.to_network(pixels, placement, out=room[1])
    assert np.shares_memory(tensor, room)
    assert np.array_equal(room[1], geometry.to_network(pixels, placement))
    assert (room[0] == 7).all()
    assert (room[2] == 7).all()


@pytest.mark.parametrize(
    "out",
    [np.zeros((160, 241, 3), np.uint8), np.zeros((160, 240), np.uint8), np.zeros((160, 240, 3), np.float32)],
)
def test_to_network_refuses_a_place_that_does_not_fit(out):
    with pytest.raises(ValueError, match=r"out must be uint8 \(160, 240, 3\), got"):
        geometry.to_network(noise(10, 10, 3), geometry.place((10, 10), (160, 240)), out=out)


@pytest.mark.parametrize("network", [(160, 240), (320, 480)])
def test_to_network_shrinks_in_steps_as_well_as_at_once(network):
    pixels = cv2.GaussianBlur(noise(1280, 1918, 3), (0, 0), 3)
    placement = geometry.place((1280, 1918), network)
    steps = geometry.to_network(pixels, placement).astype(int)
    whole = geometry.cover(pixels, placement)
    assert whole.shape == (1280, 1920 if network == (160, 240) else 1918, 3)
    at_once = cv2.resize(whole, network[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(steps - at_once).mean() < (0.4 if network == (160, 240) else 0.2)  # one halving more
    once = cv2.resize(pixels, network[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(geometry.resize_map(pixels[..., 0], network).astype(int) - once[..., 0]).mean() < 0.2


def test_to_network_takes_reduced_pixels():
    pixels = cv2.GaussianBlur(noise(640, 960, 3), (0, 0), 8)
    placement = geometry.place((640, 960), (96, 160))
    full = geometry.to_network(pixels, placement).astype(int)
    for factor in (2, 4):
        reduced = cv2.resize(pixels, (960 // factor, 640 // factor), interpolation=cv2.INTER_AREA)
        assert np.abs(geometry.to_network(reduced, placement) - full).max() <= 3


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(639, 1400), st.integers(959, 1800)), st.sampled_from([2, 4, 8]), st.integers(0, 9)
)
def test_a_reduced_decode_lies_where_the_full_one_does(source, step, seed):
    """A step rounds sides up, by the last row and column repeated, as libjpeg's blocks are."""
    placement = geometry.place(source, (160, 240))
    assume(step <= geometry.reduction(source, (320, 480)))
    coarse = noise(source[0] // 40 + 1, source[1] // 40 + 1, 3, seed=seed)
    pixels = cv2.resize(coarse, source[::-1], interpolation=cv2.INTER_CUBIC)
    rows, columns = (-(-side // step) for side in source)
    whole = cv2.copyMakeBorder(
        pixels, 0, rows * step - source[0], 0, columns * step - source[1], cv2.BORDER_REPLICATE
    )
    reduced = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
    there = geometry.to_network(pixels, placement).astype(int)
    assert np.abs(there - geometry.to_network(reduced, placement)).max() <= 2


def test_what_a_map_is_resized_into_must_fit():
    placement = geometry.place((1280, 1918), (160, 240))
    for out in (np.zeros((1280, 1918), np.uint16), np.zeros((1280, 1920), np.uint8)):
        with pytest.raises(ValueError, match=r"out must be uint16 \(1280, 1920\), got"):
            geometry.from_network(np.zeros((160, 240), np.uint16), placement, out)


def test_equal_sizes_are_exact_and_never_shared():
    pixels, placement = noise(160, 240, 3), geometry.place((160, 240), (160, 240))
    there = geometry.to_network(pixels, placement)
    back = geometry.from_network(pixels[..., 0], placement)
    assert np.array_equal(there, pixels)
    assert np.array_equal(back, pixels[..., 0])
    assert not np.shares_memory(there, pixels)
    assert not np.shares_memory(back, pixels)
    there[:] = back[0, 0] = 0  # both may be written to


def test_equal_sizes_with_padding_are_exact():
    pixels, placement = noise(100, 240, 3), geometry.place((100, 240), (160, 240))
    tensor = geometry.to_network(pixels, placement)
    assert np.array_equal(geometry.from_network(tensor[..., 1].copy(), placement), pixels[..., 1])


@settings(deadline=None, max_examples=60)
@given(SIZE, NETWORK, st.sampled_from([np.uint8, np.uint16]))
def test_from_network_gives_the_size_and_keeps_the_type(source, network, dtype):
    placement = geometry.place(source, network)
    top = np.iinfo(dtype).max
    map = np.zeros(network, dtype)
    geometry.content_of(map, placement)[:] = top
    map.flags.writeable = False
    back = geometry.from_network(map, placement)
    assert back.shape == source
    assert back.dtype == dtype
    assert (back == top).all()  # nothing of the padding leaks in


@settings(deadline=None, max_examples=40)
@given(st.tuples(st.integers(160, 500), st.integers(240, 500)), st.integers(0, 100))
def test_from_network_is_bilinear(size, seed):
    map = noise(160, 240, seed=seed)
    placement = Placement(size, (160, 240), 0, 0, (160, 240), size)
    exact = bilinear(map, size)
    # Two axes of fixed-point weights: within one level.
    assert np.abs(geometry.from_network(map, placement) - exact).max() < 1.01
    wide = geometry.from_network(map.astype(np.uint16) * 257, placement)
    assert np.abs(wide / 257 - exact).max() < 0.005


def test_from_network_averages_for_tiny_pictures():
    placement = geometry.place((16, 24), (160, 240))
    stripes = np.zeros((160, 240), np.uint8)
    stripes[::2] = 200
    assert (geometry.from_network(stripes, placement) == 100).all()


@settings(deadline=None, max_examples=80)
@given(st.data(), st.tuples(st.integers(20, 700), st.integers(20, 700)), NETWORK)
def test_a_rectangle_comes_back(data, source, network):
    placement = geometry.place(source, network)
    # Of a network pixel, in source pixels
    sides = [max(1.0, source[axis] / placement.content[axis]) for axis in (0, 1)]
    spans = []
    for axis in (0, 1):
        least = int(6 * sides[axis]) + 1
        assume(least <= source[axis])
        start = data.draw(st.integers(0, source[axis] - least))
        spans.append((start, data.draw(st.integers(start + least, source[axis]))))
    mask = np.zeros(source, np.uint8)
    mask[slice(*spans[0]), slice(*spans[1])] = 255
    back = (
        geometry.from_network(geometry.to_network(np.dstack([mask] * 3), placement)[..., 0], placement) >= 128
    )
    overlap = (back & (mask > 0)).sum() / (back | (mask > 0)).sum()
    # Every edge may move by half a network pixel.
    bound = 1.0
    for axis in (0, 1):
        length = spans[axis][1] - spans[axis][0]
        bound *= (length - sides[axis]) / (length + sides[axis])
    assert overlap >= bound


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(
        [(1280, 1918), (480, 640), (700, 333), (161, 241), (90, 130), (1281, 1921), (643, 963), (1603, 2409)]
    ),
    NETWORK,
    st.floats(0.35, 0.65),
    st.floats(0.35, 0.65),
)
def test_nothing_shifts(source, network, y, x):
    placement = geometry.place(source, network)
    rows, columns = np.ogrid[: source[0], : source[1]]
    centre = (y * source[0], x * source[1])
    radius = 0.2 * min(source)
    distance = np.hypot(rows + 0.5 - centre[0], columns + 0.5 - centre[1])
    disk = np.rint(255 * np.clip(radius - distance + 0.5, 0, 1)).astype(np.uint8)
    back = geometry.from_network(geometry.to_network(np.dstack([disk] * 3), placement)[..., 0], placement)
    for axis in (0, 1):
        before, after = (
            np.average(np.arange(source[axis]), weights=map.sum(1 - axis)) for map in (disk, back)
        )
        assert abs(before - after) * placement.content[axis] / placement.covered[axis] < 0.05


@settings(deadline=None, max_examples=60)
@given(SIZE, NETWORK, st.sampled_from([0, 1]))
def test_flips_commute_where_the_padding_is_even(source, network, axis):
    placement = geometry.place(source, network)
    assume((network[axis] - placement.content[axis]) % 2 == 0)
    assume(placement.covered[axis] == source[axis])  # what reaches past the picture lies at one end
    pixels = noise(*source, 3)
    flipped = np.ascontiguousarray(np.flip(pixels, axis))
    there = geometry.to_network(pixels, placement)
    # Fixed-point weights are not symmetric to the last bit.
    assert np.abs(np.flip(there, axis).astype(int) - geometry.to_network(flipped, placement)).max() <= 2
    map = np.ascontiguousarray(there[..., 0])
    back = geometry.from_network(map, placement)
    assert (
        np.abs(
            np.flip(back, axis).astype(int) - geometry.from_network(np.flip(map, axis).copy(), placement)
        ).max()
        <= 2
    )


@settings(max_examples=40, deadline=None)
@given(SIZE, NETWORK, st.integers(1, 9))
def test_each_channel_is_placed_as_if_it_were_alone(
    size: tuple[int, int], network: tuple[int, int], channels: int
) -> None:
    placement = geometry.place(size, network)
    picture = noise(*size, channels)
    placed = geometry.to_network(picture, placement)
    assert placed.shape == (*network, channels)
    for channel in range(channels):
        alone = geometry.to_network(np.ascontiguousarray(picture[..., channel, None]), placement)
        # cv2 rounds otherwise by the number of channels, in each of two steps
        assert np.abs(placed[..., channel, None].astype(int) - alone).max() <= 2


def test_one_channel_is_the_luminance_of_three() -> None:
    placement = geometry.place((50, 70), (32, 48))
    picture = noise(50, 70, 3)
    expected = cv2.cvtColor(geometry.to_network(picture, placement), cv2.COLOR_RGB2GRAY)
    out = np.empty((32, 48, 1), np.uint8)
    assert geometry.to_network(picture, placement, out) is out
    assert np.array_equal(out[..., 0], expected)
    assert np.array_equal(geometry.to_network(picture, placement, channels=1), out)
    with pytest.raises(ValueError, match="a picture of 3 channels for a network of 4"):
        geometry.to_network(picture, placement, channels=4)
