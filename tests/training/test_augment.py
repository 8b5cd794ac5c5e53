"""Augmentation: what moves in the picture moves in the mask, and the key alone decides how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unet_batch.datasets.encoding import VOID
from unet_batch.media.geometry import PAD_VALUE
from unet_batch.training.augment import (
    FLIPS,
    PASTED,
    PRESETS,
    Preset,
    Transform,
    apply,
    draw,
    draw_paste,
    paste,
)

NETWORK = (32, 48)
ALL = Preset(
    p_geometric=1,
    zoom=0.15,
    aspect=0.05,
    rotation=6,
    translation=0.05,
    p_colour=1,
    colour_strength=1,
    p_hue=1,
    p_blur=1,
    p_noise=1,
)
STILL = PRESETS["none"]
LEVEL = 0.01 / 255  # a hundredth of a grey level


def noise(count: int, size: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, coverage, and that all of it is known."""
    random = np.random.default_rng(seed)
    pictures = torch.from_numpy(random.integers(0, 256, (count, *size, 3), np.uint8))
    coverage = torch.from_numpy(random.integers(0, 256, (count, *size), np.uint8))
    return pictures, coverage, torch.full_like(coverage, 255)


def no_coverage(count: int) -> Tensor:
    return torch.empty((count, 0, 0), dtype=torch.uint8)


def identity(scale: int, size: tuple[int, int] = NETWORK, flip: str = "none") -> Transform:
    return draw(STILL, flip, (scale * size[0], scale * size[1]), size, (0,))


def moved_only(transform: Transform) -> Transform:
    return Transform(transform.matrix)


def shifted(x: float, y: float) -> Transform:
    return Transform(np.array([[1, 0, x], [0, 1, y]], float))


def pooled(values: Tensor, scale: int) -> Tensor:
    """(N, h, w, 3) as 0..1, (N, 3, H, W)."""
    return F.avg_pool2d(values.permute(0, 3, 1, 2).double(), scale) / 255


class TestMoving:
    @settings(deadline=None, max_examples=60)
    @given(
        st.sampled_from([*PRESETS.values(), replace(ALL, zoom=0.4, rotation=40, translation=0.2)]),
        st.sampled_from(FLIPS),
        st.sampled_from([1, 2]),
        st.sampled_from([NETWORK, (40, 40), (56, 24)]),
        st.integers(0, 2**32),
        st.data(),
    )
    def test_picture_and_mask_go_where_the_matrix_says(self, preset, flip, scale, network, key, data):
        stored = (scale * network[0], scale * network[1])
        top, left = (data.draw(st.integers(0, side // 2)) for side in stored)
        bottom, right = (
            data.draw(st.integers(start + 6, side)) for start, side in zip((top, left), stored, strict=True)
        )
        ids = np.zeros(stored, np.uint8)
        ids[top:bottom, left:right] = 1
        picture, mask = torch.from_numpy(np.dstack([ids * 255] * 3))[None], torch.from_numpy(ids)[None]
        transform = moved_only(draw(preset, flip, stored, network, (key,)))
        x, found = apply(picture, mask, no_coverage(1), [transform], network)
        _, shares = apply(picture, mask * 255, torch.full_like(mask, 255), [transform], network)
        # Where each pixel of the result was, in pixels of what is stored; nothing reaches further than one of
        # these.
        v, u = np.mgrid[: network[0], : network[1]]
        at = np.linalg.solve(
            transform.matrix[:, :2], np.stack([u.ravel(), v.ravel()]) - transform.matrix[:, 2:]
        )
        at = at.reshape(2, *network)

        def within(low: Sequence[float], high: Sequence[float], margin: float) -> np.ndarray:
            return np.all([(at[i] >= low[i] + margin) & (at[i] <= high[i] - margin) for i in (0, 1)], axis=0)

        low, high = (left - 0.5, top - 0.5), (right - 0.5, bottom - 0.5)
        inside, near = within(low, high, 0.55), within(low, high, -0.55)
        sample = within((0, 0), (stored[1] - 1, stored[0] - 1), 0.05)
        outside = ~within((0, 0), (stored[1] - 1, stored[0] - 1), -1.05)
        assert (x[0, :, inside & sample] > 0.999).all()
        assert (x[0, :, ~near & sample] < 0.001).all()
        assert torch.allclose(x[0, :, outside], torch.tensor(PAD_VALUE / 255), atol=LEVEL)
        assert (found[0][inside & sample] == 1).all()
        assert (found[0][~near & sample] == 0).all()
        assert (found[0][outside] == VOID).all()
        assert (shares[0, 0, inside & sample] > 0.999).all()
        assert (shares[0, 0, ~near & sample] < 0.001).all()
        assert (shares[0, 1, sample] > 0.99).all()
        assert (shares[0, 1, outside] == 0).all()
        # At the shape's own edges, too: half of the picture's pixel is half of the mask's.
        assert torch.allclose(x[0, 0, sample], shares[0, 0, sample], atol=1e-4)

    @pytest.mark.parametrize("network", [NETWORK, (160, 240), (50, 33)])
    @pytest.mark.parametrize("scale", [1, 2])
    def test_standing_still_is_the_mean_of_areas(self, network: tuple[int, int], scale: int) -> None:
        pictures, coverage, known = noise(2, (scale * network[0], scale * network[1]))
        x, y = apply(pictures, coverage, known, [identity(scale, network)] * 2, network)
        assert torch.allclose(x.double(), pooled(pictures, scale), atol=LEVEL, rtol=0)
        assert torch.allclose(y[:, :1].double(), pooled(coverage[..., None], scale), atol=LEVEL, rtol=0)
        assert torch.allclose(y[:, 1], torch.ones(()), atol=1e-4)

    def test_standing_still_leaves_ids_as_they_are(self) -> None:
        pictures, ids, _ = noise(2, NETWORK)
        _, found = apply(pictures, ids, no_coverage(2), [identity(1)] * 2, NETWORK)
        assert torch.equal(found, ids.long())

    def test_ids_at_twice_the_size_come_from_their_own_four_pixels(self) -> None:
        pictures, ids, _ = noise(1, (64, 96))
        _, found = apply(pictures, ids, no_coverage(1), [identity(2)], NETWORK)
        four = ids.view(1, 32, 2, 48, 2).long()
        assert (four == found[:, :, None, :, None]).any(4).any(2).all()

    @pytest.mark.parametrize("network", [NETWORK, (24, 24)])
    def test_horizontal_mirrors_half_of_the_samples_and_does_nothing_else(
        self, network: tuple[int, int]
    ) -> None:
        stored = (2 * network[0], 2 * network[1])
        pictures, coverage, known = noise(1, stored)
        straight = pooled(pictures, 2)
        mirrored = 0
        for key in range(40):
            x, y = apply(
                pictures, coverage, known, [draw(STILL, "horizontal", stored, network, (key,))], network
            )
            is_mirrored = bool((x - straight.flip(3)).abs().max() < LEVEL)
            assert is_mirrored or (x - straight).abs().max() < LEVEL
            expected = pooled(coverage[..., None], 2)
            assert torch.allclose(
                y[:, :1].double(), expected.flip(3) if is_mirrored else expected, atol=LEVEL, rtol=0
            )
            mirrored += is_mirrored
        assert 10 <= mirrored <= 30

    def test_any_gives_all_eight_positions_of_a_square(self) -> None:
        pictures, coverage, known = noise(1, (48, 48))
        straight = pooled(pictures, 2)
        eight = [
            torch.rot90(side, turns, (2, 3)) for side in (straight, straight.flip(3)) for turns in range(4)
        ]
        seen = set()
        for key in range(100):
            x, _ = apply(
                pictures, coverage, known, [draw(STILL, "any", (48, 48), (24, 24), (key,))], (24, 24)
            )
            (which,) = [index for index, each in enumerate(eight) if (x - each).abs().max() < LEVEL]
            seen.add(which)
        assert seen == set(range(8))

    @pytest.mark.parametrize("scale", [1, 2])
    def test_any_keeps_everything_in_a_frame_that_is_no_square(self, scale: int) -> None:
        stored = (scale * NETWORK[0], scale * NETWORK[1])
        picture = np.zeros((1, *stored, 3), np.uint8)
        half = stored[0] // 2, stored[1] // 2
        for index, (rows, columns) in enumerate(
            (r, c) for r in (slice(half[0]), slice(half[0], None)) for c in (0, 1)
        ):
            picture[0, rows, slice(columns * half[1], (columns + 1) * half[1])] = 60 * (index + 1)
        pictures, known = torch.from_numpy(picture), torch.full((1, *stored), 255, dtype=torch.uint8)
        seen = set()
        for key in range(100):
            x, y = apply(pictures, known, known, [draw(STILL, "any", stored, NETWORK, (key,))], NETWORK)
            assert (y[:, 0] > 0.999).all()
            assert (y[:, 1] > (0.999 if scale == 2 else 0.6)).all()  # what is enlarged has soft edges
            corners = x[0, 0, [1, 1, -2, -2], [1, -2, 1, -2]] * 255 / 60
            assert sorted(corners.round().int().tolist()) == [1, 2, 3, 4]
            assert torch.allclose(x[0, 0, 1:15, 1:23], x[0, 0, 1, 1], atol=LEVEL)  # a quarter fills a quarter
            seen.add(tuple(corners.round().int().tolist()))
        assert len(seen) == 8

    @settings(deadline=None, max_examples=40)
    @given(
        st.sampled_from([STILL, ALL]),
        st.sampled_from(FLIPS),
        st.integers(0, 2**31),
        st.integers(1, 32),
        st.integers(1, 48),
    )
    def test_a_window_is_a_part_of_the_whole(
        self, preset: Preset, flip: str, key: int, height: int, width: int
    ) -> None:
        values, crop = noise(1, (64, 96), 3), (height, width)
        whole = draw(preset, flip, (64, 96), NETWORK, (key,))
        part = draw(preset, flip, (64, 96), NETWORK, (key,), crop=crop)
        assert all(
            getattr(part, field.name) == getattr(whole, field.name)
            for field in fields(Transform)
            if field.name != "matrix"
        )
        left, top = (int(value) for value in np.rint(whole.matrix[:, 2] - part.matrix[:, 2]))
        assert 0 <= top <= NETWORK[0] - height
        assert 0 <= left <= NETWORK[1] - width
        # Without colours: blur and noise look at what is beside.
        x, y = apply(*values, [moved_only(whole)], NETWORK)
        seen, target = apply(*values, [moved_only(part)], crop)
        window = (..., slice(top, top + height), slice(left, left + width))
        assert torch.allclose(seen, x[window], atol=2e-3)
        assert torch.allclose(target, y[window], atol=2e-3)

    def test_windows_lie_everywhere(self) -> None:
        still = identity(1).matrix[:, 2]
        windows = [
            draw(STILL, "none", NETWORK, NETWORK, (key,), crop=(30, 44)).matrix[:, 2] for key in range(300)
        ]
        places = {tuple(int(value) for value in np.rint(still - window)) for window in windows}
        assert places == {(left, top) for left in range(5) for top in range(3)}


class TestBending:
    @pytest.mark.parametrize("flip", FLIPS)
    def test_no_bend_beside_a_bent_sample_is_the_same_as_without_one(self, flip: str) -> None:
        pictures, coverage, known = noise(2, (64, 96))
        plain = moved_only(draw(ALL, flip, (64, 96), NETWORK, (5,)))
        bent = replace(
            plain, displacement=np.random.default_rng(1).normal(0, 3, (2, 4, 4)).astype(np.float32)
        )
        alone = apply(pictures[:1], coverage[:1], known[:1], [plain], NETWORK)
        beside = apply(pictures, coverage, known, [plain, bent], NETWORK)
        for one, other in zip(alone, beside, strict=True):
            # The same places, in another order of operations
            assert torch.allclose(one[0], other[0], atol=1e-3)

    def test_each_pixel_looks_as_far_beside_itself_as_the_lattice_says(self) -> None:
        pictures, coverage, known = noise(1, NETWORK)
        still = identity(1)
        everywhere = replace(
            still, displacement=np.stack([np.full((4, 4), 10.0), np.full((4, 4), -7.0)]).astype(np.float32)
        )
        bent, moved = (
            apply(pictures, coverage, known, [transform], NETWORK)
            for transform in (everywhere, shifted(-10, 7))
        )
        assert torch.allclose(bent[0], moved[0], atol=1e-3)
        assert torch.allclose(bent[1][:, 1], moved[1][:, 1], atol=1e-3)
        assert torch.allclose(bent[1].prod(1), moved[1].prod(1), atol=1e-3)  # coverage, where it is known
        corner = np.zeros((2, 4, 4), np.float32)
        corner[:, 3, 0] = 4.0, -3.0  # the lower left corner alone
        x, _ = apply(pictures, coverage, known, [replace(still, displacement=corner)], NETWORK)
        straight = pooled(pictures, 1).float()
        assert torch.allclose(x[0, :, -1, 0], straight[0, :, -4, 4], atol=1e-3)
        assert torch.allclose(
            x[0, :, [0, 0, -1], [0, -1, -1]], straight[0, :, [0, 0, -1], [0, -1, -1]], atol=1e-3
        )

    @pytest.mark.parametrize("scale", [1, 2])
    def test_picture_and_mask_bend_alike(self, scale: int) -> None:
        stored = (scale * NETWORK[0], scale * NETWORK[1])
        ids = np.zeros(stored, np.uint8)
        ids[stored[0] // 4 : -stored[0] // 4, stored[1] // 4 : -stored[1] // 4] = 1
        picture, mask = torch.from_numpy(np.dstack([ids * 255] * 3))[None], torch.from_numpy(ids)[None]
        still = []
        for key in range(20):
            transform = draw(PRESETS["elastic"], "any", stored, NETWORK, (key,))
            transform = replace(moved_only(transform), displacement=transform.displacement)
            x, shares = apply(picture, mask * 255, torch.full_like(mask, 255), [transform], NETWORK)
            _, found = apply(picture, mask, no_coverage(1), [transform], NETWORK)
            seen = shares[0, 1] > 0.999
            assert torch.allclose(x[0, 0][seen], shares[0, 0][seen], atol=1e-3)
            assert (found[0][seen & (shares[0, 0] > 0.999)] == 1).all()
            assert (found[0][seen & (shares[0, 0] < 0.001)] == 0).all()
            without = apply(picture, mask * 255, torch.full_like(mask, 255), [moved_only(transform)], NETWORK)
            still.append(bool(torch.equal(without[0], x)))
        assert not any(still)

    def test_elastic_bends_and_nothing_else_does(self) -> None:
        transforms = [draw(PRESETS["elastic"], "none", (512, 1024), (256, 512), (key,)) for key in range(50)]
        bends = np.array([transform.displacement for transform in transforms])
        assert bends.std() == pytest.approx(0.02 * 256, rel=0.1)
        assert all(
            draw(PRESETS[name], "any", NETWORK, NETWORK, (3,)).displacement is None
            for name in ("none", "light", "strong")
        )


class TestEdges:
    def test_outside_is_grey_and_unknown(self) -> None:
        pictures, coverage, known = noise(1, NETWORK)
        x, y = apply(pictures, coverage, known, [shifted(10, -7)], NETWORK)
        _, ids = apply(pictures, coverage % 5, no_coverage(1), [shifted(10, -7)], NETWORK)
        beyond = torch.ones(NETWORK, dtype=torch.bool)
        beyond[:-7, 10:] = False
        assert torch.allclose(x[0, :, beyond], torch.tensor(PAD_VALUE / 255), atol=LEVEL)
        assert (y[0, 1, beyond] < 1e-4).all()
        assert (ids[0][beyond] == VOID).all()
        assert torch.equal(ids[0][:-7, 10:], (coverage[0, 7:, :-10] % 5).long())

    @pytest.mark.parametrize("share", [51, 255])
    def test_half_a_pixel_beyond_the_edge_is_half_known_not_half_covered(self, share: int) -> None:
        pictures, coverage, known = noise(1, NETWORK)
        coverage[:] = share
        _, y = apply(pictures, coverage, known, [shifted(0.5, 0)], NETWORK)
        assert torch.allclose(y[0, 1, :, 0], torch.tensor(0.5), atol=1e-4)
        assert torch.allclose(y[0, 0], torch.tensor(share / 255), atol=1e-4)

    def test_void_takes_its_neighbours_weight_and_not_their_coverage(self) -> None:
        pictures, coverage, known = noise(1, NETWORK)
        coverage[:] = 255
        coverage[..., 20:30] = known[..., 20:30] = 0
        _, y = apply(pictures, coverage, known, [shifted(0.25, 0)], NETWORK)
        assert torch.allclose(y[0, 1, 0, 18:32], torch.tensor([1, 1, 0.25, *[0] * 9, 0.75, 1]), atol=1e-4)
        assert torch.allclose(y[0, 0, :, [18, 19, 20, 30, 31]], torch.ones(()), atol=1e-4)

    @pytest.mark.parametrize("network", [(1, 1), (2, 3), (1, 9), (5, 2)])
    def test_a_network_of_few_pixels(self, network: tuple[int, int]) -> None:
        stored = (2 * network[0], 2 * network[1])
        x, y = apply(
            *noise(2, stored), [draw(ALL, "any", stored, network, (key,)) for key in (1, 2)], network
        )
        assert x.shape == (2, 3, *network)
        assert torch.isfinite(x).all()
        assert torch.isfinite(y).all()


class TestColour:
    def test_follows_its_formula(self) -> None:
        pictures, coverage, known = noise(1, NETWORK)
        transform = replace(shifted(0, 0), gain=(1.2, 0.9, 1.1), brightness=-0.05, saturation=0.6)
        x, y = apply(pictures, coverage, known, [transform], NETWORK)
        base = (pictures[0].double().numpy() / 255 * (1.2, 0.9, 1.1) - 0.05).clip(0, 1)
        grey = base @ (0.299, 0.587, 0.114)
        expected = (0.6 * base + 0.4 * grey[..., None]).clip(0, 1)
        assert np.abs(x[0].permute(1, 2, 0).numpy() - expected).max() < 1e-3
        assert torch.equal(y, apply(pictures, coverage, known, [shifted(0, 0)], NETWORK)[1])

    @pytest.mark.parametrize("channels", [1, 2, 7])
    def test_other_channels_than_three_are_never_mixed(self, channels: int) -> None:
        random = np.random.default_rng(channels)
        values = random.integers(60, 200, channels)
        pictures = torch.from_numpy(np.tile(values.astype(np.uint8), (4, 64, 96, 1)))
        full = torch.full((4, 64, 96), 255, dtype=torch.uint8)
        keys = range(4)
        colours = replace(PRESETS["strong"], p_geometric=0, p_noise=0, p_colour=1, p_hue=1)
        transforms = [draw(colours, "any", (64, 96), NETWORK, (key,), channels=channels) for key in keys]
        x, _ = apply(pictures, full, full, transforms, NETWORK)
        assert x.shape == (4, channels, *NETWORK)
        for found, transform in zip(x, transforms, strict=True):
            assert len(transform.gain) == channels
            expected = (values / 255 * transform.gain + transform.brightness).clip(0, 1)
            assert np.abs(found.numpy() - expected[:, None, None]).max() < 1e-3

    def test_a_third_of_a_turn_makes_red_green_and_leaves_grey(self) -> None:
        pictures, coverage, known = noise(3, NETWORK)
        pictures[:2] = torch.tensor([200, 20, 20], dtype=torch.uint8)
        pictures[2] = 90
        turns = [0.0, 2 * np.pi / 3, 2 * np.pi / 3]
        x, y = apply(pictures, coverage, known, [replace(shifted(0, 0), hue=hue) for hue in turns], NETWORK)
        for found, expected in zip(x[:, :, 0, 0], [(200, 20, 20), (20, 200, 20), (90, 90, 90)], strict=True):
            assert torch.allclose(255 * found, torch.tensor(expected, dtype=torch.float32), atol=0.1)
        assert torch.equal(y, apply(pictures, coverage, known, [shifted(0, 0)] * 3, NETWORK)[1])

    def test_blur_spreads_a_point_by_its_deviation(self) -> None:
        pictures, coverage, known = noise(2, NETWORK)
        pictures[:] = 0
        pictures[:, 16, 24] = 255
        x, _ = apply(
            pictures, coverage, known, [replace(shifted(0, 0), blur=blur) for blur in (0.5, 1.1)], NETWORK
        )
        columns = torch.arange(48.0)
        for one, blur in zip(x[:, 0], (0.5, 1.1), strict=True):
            assert one.sum() == pytest.approx(1, abs=1e-3)
            assert ((one.sum(0) * (columns - 24) ** 2).sum() ** 0.5).item() == pytest.approx(blur, rel=0.03)

    def test_noise_has_its_deviation_and_is_the_same_each_time(self) -> None:
        pictures, coverage, known = noise(3, (64, 64))
        pictures[:] = 128
        transforms = [replace(shifted(0, 0), noise=0.02, seed=seed) for seed in (7, 7, 8)]
        torch.manual_seed(0)
        x, _ = apply(pictures, coverage, known, transforms, (64, 64))
        assert (x - 128 / 255).std().item() == pytest.approx(0.02, rel=0.05)
        assert torch.equal(x[0], x[1])
        assert not torch.equal(x[0], x[2])
        before = torch.get_rng_state()
        assert torch.equal(apply(pictures, coverage, known, transforms, (64, 64))[0], x)
        assert torch.equal(torch.get_rng_state(), before)

    @settings(deadline=None, max_examples=15)
    @given(st.integers(0, 2**32), st.sampled_from(FLIPS))
    def test_results_are_what_the_network_takes(self, key, flip):
        stored = (2 * NETWORK[0], 2 * NETWORK[1])
        pictures, coverage, known = noise(3, stored, key)
        ids = coverage % 4 * 60
        ids[coverage > 250] = VOID
        transforms = [draw(ALL, flip, stored, NETWORK, (key, number)) for number in range(3)]
        x, y = apply(pictures, coverage, known, transforms, NETWORK)
        assert x.shape == (3, 3, *NETWORK)
        assert (x.dtype, y.dtype) == (torch.float32, torch.float32)
        assert x.is_contiguous(memory_format=torch.channels_last)
        for values in (x, y):
            assert values.min() >= 0
            assert values.max() <= 1 + 1e-6
        same, found = apply(pictures, ids, no_coverage(3), transforms, NETWORK)
        assert torch.equal(same, x)
        assert found.dtype == torch.int64
        assert set(found.unique().tolist()) <= {0, 60, 120, 180, VOID}  # no blends
        assert pictures.dtype == torch.uint8


class TestKeys:
    @settings(deadline=None, max_examples=30)
    @given(
        st.integers(0, 2**40),
        st.integers(0, 10**4),
        st.integers(0, 10**7),
        st.sampled_from([*PRESETS.values(), ALL]),
    )
    def test_the_key_decides(self, seed, epoch, number, preset):
        def values(key: Sequence[int]) -> tuple[object, ...]:
            transform = draw(preset, "any", (64, 96), NETWORK, key)
            return (
                transform.matrix.tolist(),
                transform.gain,
                transform.brightness,
                transform.saturation,
                transform.hue,
                transform.blur,
                transform.noise,
                transform.seed,
            )

        first = values((seed, epoch, number))
        np.random.seed(1)
        values((seed, epoch, number + 1))
        assert values((seed, epoch, number)) == first
        assert all(
            values(key)[-1] != first[-1]
            for key in ((seed + 1, epoch, number), (seed, epoch + 1, number), (seed, epoch, number + 1))
        )

    @pytest.mark.parametrize("blurred", [False, True])
    def test_a_sample_is_the_same_in_every_batch(self, blurred: bool) -> None:
        stored, count = (2 * NETWORK[0], 2 * NETWORK[1]), 5
        values = noise(count, stored)
        preset = replace(ALL, p_blur=0.5 * blurred, p_noise=0.5)
        transforms = [draw(preset, "any", stored, NETWORK, (0, 1, number)) for number in range(count)]
        x, y = apply(*values, transforms, NETWORK)
        for chosen in ([0], [4], [3, 1], [4, 0, 2, 1]):
            part, target = apply(
                *(value[chosen] for value in values), [transforms[index] for index in chosen], NETWORK
            )
            assert torch.equal(target, y[chosen])
            # A convolution may add in another order where the batch is larger.
            assert (
                torch.allclose(part, x[chosen], atol=1e-6, rtol=0)
                if blurred
                else torch.equal(part, x[chosen])
            )


class TestPresets:
    def test_each_is_stronger_than_the_one_before(self) -> None:
        none, light, strong = (PRESETS[name] for name in ("none", "light", "strong"))
        for field in fields(Preset):
            if field.name not in ("elastic", "p_hue"):
                assert (
                    0 == getattr(none, field.name) < getattr(light, field.name) < getattr(strong, field.name)
                )

    def test_hues_turn_where_any_thing_may_be_of_any_colour(self) -> None:
        # Light changes stay near what is seen, and stains of slices mean something.
        shares = {name: preset.p_hue for name, preset in PRESETS.items()}
        assert {name for name, share in shares.items() if share} == {"strong"}
        assert 0 < shares["strong"] < 0.5 < 2 * PASTED.p_hue

    def test_slices_have_no_up_but_a_magnification(self) -> None:
        light, strong, elastic = (PRESETS[name] for name in ("light", "strong", "elastic"))
        assert elastic.rotation > strong.rotation
        assert light.zoom < elastic.zoom < strong.zoom
        assert light.colour_strength < elastic.colour_strength < strong.colour_strength

    def test_samples_are_changed_as_often_and_as_far_as_they_say(self) -> None:
        stored = (2 * NETWORK[0], 2 * NETWORK[1])
        still = identity(2).matrix
        corners = np.array([[0, stored[1], 0, stored[1]], [0, 0, stored[0], stored[0]], [1, 1, 1, 1]])
        far = []
        for preset in PRESETS.values():
            transforms = [draw(preset, "none", stored, NETWORK, (9, number)) for number in range(600)]
            found = (
                np.mean([not np.allclose(transform.matrix, still) for transform in transforms]),
                np.mean([transform.saturation != 1 for transform in transforms]),
                np.mean([transform.blur > 0 for transform in transforms]),
                np.mean([transform.noise > 0 for transform in transforms]),
                np.mean([transform.hue != 0 for transform in transforms]),
            )
            shares = (preset.p_geometric, preset.p_colour, preset.p_blur, preset.p_noise, preset.p_hue)
            assert np.allclose(found, shares, atol=0.06)
            assert all(abs(transform.hue) <= np.pi for transform in transforms)
            far.append(
                np.mean([np.abs((transform.matrix - still) @ corners).mean() for transform in transforms])
            )
        assert far[0] == 0
        assert 0.3 < far[1] < 0.5 * far[2] < 3  # pixels of a picture that is 48 wide


class TestPasting:
    def test_the_object_replaces_pixels_and_is_known_to_be_the_class(self) -> None:
        pictures, targets = torch.zeros(3, 3, 4, 4), torch.zeros(3, 2, 4, 4)
        targets[0, 1] = 1.0  # all of the first is known to be background, nothing of the others
        others, other_targets = torch.ones(1, 3, 4, 4), torch.zeros(1, 2, 4, 4)
        other_targets[:, 1] = 1.0
        other_targets[0, 0, 1:3, 1:3] = torch.tensor([[1.0, 0.5], [1.0, 0.25]])
        paste(pictures, targets, others, other_targets, [1])
        expected = other_targets[0, 0]
        torch.testing.assert_close(pictures[1], expected.expand(3, 4, 4))
        torch.testing.assert_close(targets[1], expected.expand(2, 4, 4))
        assert pictures[[0, 2]].sum() == 0
        assert targets[0, 0].sum() == targets[2].sum() == 0

    def test_void_of_the_other_picture_is_left_behind(self) -> None:
        pictures, targets = torch.zeros(1, 3, 4, 4), torch.ones(1, 2, 4, 4)
        before = targets.clone()
        paste(pictures, targets, torch.ones(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), [0])
        assert pictures.sum() == 0
        assert torch.equal(targets, before)

    def test_as_many_as_asked_for_of_all_pictures_by_the_key_alone(self) -> None:
        drawn = [draw_paste(0.3, 5, (64, 96), NETWORK, (1, 0, number, 1)) for number in range(1000)]
        again = draw_paste(0.3, 5, (64, 96), NETWORK, (1, 0, 7, 1))
        found = [each for each in drawn if each is not None]
        assert 250 < len(found) < 350
        assert {each.number for each in found} == set(range(5))
        assert (again is None) == (drawn[7] is None)
        scales = [np.sqrt(abs(np.linalg.det(each.transform.matrix[:, :2]))) * 2 for each in found]
        assert 0.55 < np.median(scales) < 0.65  # of what it was
        assert min(scales) < 0.35
        assert max(scales) > 1.0
        middle = [each.transform.matrix @ (47.5, 31.5, 1) for each in found]
        assert np.allclose(np.mean(middle, 0), (23.5, 15.5), atol=2)  # around the middle
