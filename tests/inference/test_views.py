"""The network sees pictures whole, stretched, in tiles, turned; what comes back lies where it was."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_batch.errors import UsageError
from unet_batch.inference.backends.ensemble import Ensemble
from unet_batch.inference.segmenter import Segmenter
from unet_batch.inference.views import FITS, TURNS, Placer, View, ViewOptions
from unet_batch.testing import FakeBackend, fake_spec

SQUARE = (32, 32)


def segmenter(classes: int = 1, size: tuple[int, int] = SQUARE, answer: Any = None, **view: Any) -> Segmenter:
    """One that says how bright each pixel is; of several classes, which quarter of the range it lies in."""
    if classes > 1 and answer is None:
        answer = quarters
    return Segmenter(FakeBackend(fake_spec(size, classes), answer), view=ViewOptions(**view), workers=1)


def quarters(pictures: np.ndarray) -> np.ndarray:
    return np.asarray(pictures[..., 0] // 64)


def left_half_bright(height: int, width: int) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2] = 255
    return picture


class TestFits:
    @settings(max_examples=40)
    @given(
        st.integers(1, 120),
        st.integers(1, 120),
        st.sampled_from(FITS),
        st.sampled_from([0.3, 1.0, 2.5]),
        st.sampled_from([1, 4]),
    )
    def test_masks_have_the_size_of_their_pictures(
        self, height: int, width: int, fit: str, scale: float, classes: int
    ) -> None:
        with segmenter(classes, fit=fit, scale=scale) as segment:
            assert segment(np.full((height, width, 3), 200, np.uint8)).shape == (height, width)

    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("size", [(40, 200), (200, 40), (33, 32), (16, 16)])
    def test_what_is_bright_is_found_where_it_is(self, fit: str, size: tuple[int, int]) -> None:
        picture = left_half_bright(*size)
        with segmenter(fit=fit) as segment:
            mask = segment(picture)
        differ = mask != picture[..., 0]
        assert differ.mean() <= 0.04
        assert not differ[:, : size[1] // 2 - 4].any()

    @settings(max_examples=30)
    @given(
        st.integers(1, 100), st.integers(1, 100), st.sampled_from([1, 4]), st.sampled_from([0.0, 0.25, 0.5])
    )
    def test_tiles_at_scale_1_change_no_pixel(
        self, height: int, width: int, classes: int, overlap: float
    ) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 1), np.uint8).repeat(3, 2)
        with segmenter(classes, fit="tile", overlap=overlap) as segment:
            prediction = segment.infer([segment.decode(_memory(picture), keep_pixels=False)])[0]
        expected = picture[..., 0] // 64 if classes > 1 else picture[..., 0]
        np.testing.assert_array_equal(prediction.map, expected)

    def test_tiles_of_several_pictures_share_batches(self) -> None:
        with segmenter(fit="tile") as segment:
            frames = [segment.decode(_memory(left_half_bright(32, 32)), keep_pixels=False) for _ in range(3)]
            segment.infer(frames)
            assert isinstance(segment.backend, FakeBackend)
            assert segment.backend.batches == [3]
            segment.infer([segment.decode(_memory(left_half_bright(32, 216)), keep_pixels=False), *frames])
            assert segment.backend.batches[1:] == [4, 4, 4]  # nine of the wide one

    def test_stretching_fills_the_input(self) -> None:
        with segmenter(fit="stretch") as segment:
            frame = segment.decode(_memory(left_half_bright(20, 300)), keep_pixels=False)
            assert frame.placement.content == SQUARE


class TestTurns:
    @pytest.mark.parametrize("tta", TURNS)
    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("classes", [1, 4])
    def test_turned_views_are_turned_back(self, tta: str, fit: str, classes: int) -> None:
        picture = left_half_bright(32, 32)
        picture[:8] //= 2
        with segmenter(classes, fit=fit, tta=tta) as segment, segmenter(classes, fit=fit) as plain:
            np.testing.assert_array_equal(segment(picture), plain(picture))

    @pytest.mark.parametrize(("tta", "views"), [("horizontal", 2), ("flips", 4), ("d4", 8)])
    def test_probabilities_are_averaged(self, tta: str, views: int) -> None:
        seen: list[bytes] = []

        def left_only(pictures: np.ndarray) -> np.ndarray:
            seen.extend(picture.tobytes() for picture in pictures)
            maps = np.zeros(pictures.shape[:3], np.uint8)
            maps[:, :, :16] = 255
            return maps

        with segmenter(answer=left_only, tta=tta) as segment:
            picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
            prediction = segment.infer([segment.decode(_memory(picture), keep_pixels=False)])[0]
        assert len(set(seen)) == views
        assert set(np.unique(prediction.map)) == {128}

    def test_of_ids_most_views_win(self) -> None:
        answers = iter([1, 3, 3, 2])

        def answer(pictures: np.ndarray) -> np.ndarray:
            return np.full(pictures.shape[:3], next(answers), np.uint8)

        with segmenter(4, answer=answer, tta="flips") as segment:
            assert (segment(left_half_bright(32, 32)) == 3).all()

    def test_quarter_turns_need_a_square_input(self) -> None:
        with pytest.raises(UsageError, match="32x48"):
            segmenter(size=(32, 48), tta="d4")


class TestRefined:
    def test_all_outputs_are_of_the_refined_map(self) -> None:
        picture = np.zeros((300, 300, 3), np.uint8)
        picture[70:80, 40:250] = picture[80:230, 120:131] = 255  # thinner than two pixels of the network's
        with segmenter(refine=True) as segment, segmenter() as plain:
            refined, rough = segment.predict(picture), plain.predict(picture)
            truth = picture[..., 0]
            assert refined.mask is not None
            assert rough.mask is not None
            assert (refined.mask != truth).sum() < (rough.mask != truth).sum()
            for result in (refined, rough):
                np.testing.assert_array_equal(result.mask, np.where(result.probability >= 128, 255, 0))
            assert (np.abs(refined.probability.astype(int) - truth) > 60).sum() < (
                np.abs(rough.probability.astype(int) - truth) > 60
            ).sum()
            np.testing.assert_array_equal(segment(picture), refined.mask)
            [streamed] = segment.stream([picture])
            np.testing.assert_array_equal(streamed.mask, refined.mask)

    def test_of_classes_there_is_no_edge_to_move(self) -> None:
        with pytest.raises(UsageError, match="ids of 4 classes"):
            segmenter(4, refine=True)


class TestEnsembles:
    @settings(max_examples=40, deadline=None)
    @given(
        st.integers(1, 150),
        st.integers(1, 150),
        st.sampled_from([((32, 48), (64, 40)), ((32, 32), (64, 64), (16, 48))]),
        st.sampled_from([("letterbox", None), ("stretch", None), ("tile", 1.0), ("tile", 0.5)]),
    )
    def test_maps_are_averaged_where_they_lie_in_the_picture(
        self, height: int, width: int, sizes: tuple[tuple[int, int], ...], how: tuple[Any, float | None]
    ) -> None:
        """Of a ramp, which every size shows alike: the first says its opposite."""
        ramp = np.linspace(40, 200, height)[:, None] + np.linspace(-40, 40, width)
        picture = np.rint(ramp).astype(np.uint8)[..., None].repeat(3, 2)
        view = ViewOptions(how[0], scale=how[1])

        def backend(number: int, size: tuple[int, int]) -> FakeBackend:
            answer = None if number else lambda batch: 255 - batch[..., 0]
            return FakeBackend(fake_spec(size), answer)

        def probability(*sizes: tuple[int, tuple[int, int]]) -> np.ndarray:
            members = [backend(*each) for each in sizes]
            chosen = members[0] if len(members) == 1 else Ensemble(members)
            with Segmenter(chosen, view=view, workers=1) as segment:
                return segment.predict(picture).probability.astype(float)

        alone = np.mean([probability(each) for each in enumerate(sizes)], 0)
        together = probability(*enumerate(sizes))
        assert together.shape == (height, width)
        step = max(160 / height, 80 / width)  # levels from pixel to pixel
        assert np.abs(together - alone).max() <= 2 + 4 * step

    def test_of_ids_most_decide_in_the_largest_map(self) -> None:
        specs = [fake_spec(size, 4) for size in ((16, 16), (32, 32), (64, 64))]
        with Segmenter(Ensemble([FakeBackend(spec, quarters) for spec in specs]), workers=1) as segment:
            prediction = segment.infer(
                [segment.decode(_memory(left_half_bright(64, 64)), keep_pixels=False)]
            )[0]
        assert prediction.map.shape == (64, 64)
        np.testing.assert_array_equal(prediction.map, left_half_bright(64, 64)[..., 0] // 64)

    def test_their_order_is_all_the_same(self) -> None:
        picture = np.random.default_rng(2).integers(0, 256, (50, 70, 3), np.uint8)
        backends = [
            FakeBackend(fake_spec(size), lambda batch: batch[..., 1]) for size in ((32, 48), (48, 32))
        ]
        maps = []
        for order in (backends, backends[::-1]):
            with Segmenter(Ensemble(order), workers=1) as segment:
                maps.append(segment.predict(picture).probability)
        np.testing.assert_array_equal(*maps)

    @pytest.mark.parametrize(("fit", "shown"), [("letterbox", 2), ("tile", 1)])
    def test_what_lies_alike_is_placed_once(self, fit: Any, shown: int) -> None:
        """Tiles of two sizes are cut from one scaled picture; members of one size share their batches."""
        members = [FakeBackend(fake_spec(size)) for size in ((32, 32), (64, 64), (32, 32))]
        with Segmenter(Ensemble(members), view=ViewOptions(fit, scale=1.0), workers=1) as segment:
            frame = segment.decode(_memory(left_half_bright(100, 90)), keep_pixels=False)
            assert len(frame.tensors) == shown
            assert frame.network_input.shape[:2] == frame.placement.network
            [prediction] = segment.infer([frame])
            assert prediction.map.shape == frame.placement.network
            assert prediction.frame.tensors == ()

    def test_all_are_shown_the_same_part_of_a_photo_that_may_be_decoded_smaller(self) -> None:
        """Alone, the smaller one would be shown two columns more, where the last one is repeated."""
        specs = [fake_spec(size) for size in ((160, 240), (448, 672))]
        small, large = View(Ensemble(list(map(FakeBackend, specs)))).placer.each((1280, 1918))
        assert small.covered == large.covered == (1280, 1918)
        assert View(FakeBackend(specs[0])).place((1280, 1918)).covered == (1280, 1920)

    def test_one_view_for_members_that_see_alike(self) -> None:
        members = [FakeBackend(fake_spec(SQUARE)) for _ in range(2)]
        with Segmenter(Ensemble(members), view=ViewOptions("tile"), workers=1) as segment:
            segment(left_half_bright(32, 216))
            assert [member.batches for member in members] == [[4, 4, 1]] * 2
            assert segment.view.tiling is not None, "one mosaic, also of a picture that is read in bands"

    def test_each_is_tiled_at_the_scale_of_its_own_training(self) -> None:
        specs = [replace(fake_spec(SQUARE), training={"scales": [scale] * 3}) for scale in (0.5, 0.25)]
        view = View(Ensemble(list(map(FakeBackend, specs))), ViewOptions("tile"))
        assert view.place((100, 60)).network == (50, 30)
        assert view.facts()["scale"] == [0.5, 0.25]
        assert len(view.assumed) == 2
        assert view.tiling is None
        told = json.loads(json.dumps(asdict(view.placer)))
        assert Placer.parse(told).each((100, 77)) == view.placer.each((100, 77))


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"fit": "crop"}, "letterbox, stretch, tile"),
            ({"tta": "all"}, "none, horizontal, flips, d4"),
            ({"overlap": 0.95}, "0 to 0.9"),
            ({"scale": 0.0}, "above 0"),
            ({"value_range": "5,2"}, "A below B"),
        ],
    )
    def test_what_is_out_of_range_is_named(self, options: dict[str, Any], told: str) -> None:
        with pytest.raises(UsageError, match=told):
            ViewOptions(**options)

    def test_what_always_was_leaves_no_fact(self) -> None:
        assert ViewOptions().facts() == {}
        assert ViewOptions(overlap=0.5, scale=2.0).facts() == {}
        assert ViewOptions("tile", 0.5, 2.0, "flips", True).facts() == {
            "fit": "tile",
            "overlap": 0.5,
            "scale": 2.0,
            "tta": "flips",
            "refine": True,
        }

    def test_the_scale_is_that_of_the_training(self) -> None:
        spec = replace(fake_spec(), training={"scales": [0.4, 0.5, 0.6]})
        view = View(FakeBackend(spec), ViewOptions("tile"))
        assert view.place((100, 60)).network == (50, 30)
        assert view.facts()["scale"] == 0.5
        assert view.assumed == ("scale 0.5: the median of its training, which saw pictures at 0.4 to 0.6",)
        assert View(FakeBackend(spec), ViewOptions("tile", scale=2.0)).assumed == ()
        assert View(FakeBackend(spec)).assumed == ()

    def test_the_range_is_that_of_the_training_unless_told_otherwise(self) -> None:
        spec = replace(fake_spec(), training={"range": "percentile", "scales": [0.5] * 3})
        view = View(FakeBackend(spec), ViewOptions("tile"))
        assert view.options.facts()["range"] == str(view.options.range) == "percentile"
        assert view.assumed == (
            "scale 0.5: the median of its training; range percentile: that of its training",
        )
        assert "range percentile" in str(view.options)
        for told in ("auto", "0,4095"):
            view = View(FakeBackend(spec), ViewOptions(value_range=told))
            assert (str(view.options.range), view.assumed) == (told, ())
        assert "range" not in View(FakeBackend(spec), ViewOptions(value_range="auto")).options.facts()

    @pytest.mark.parametrize("told", [[], [0.5], ["a", "b", "c"], None, [1, 99, 100]])
    def test_a_model_that_does_not_say_is_tiled_at_scale_1(self, told: Any) -> None:
        spec = replace(fake_spec(), training={"scales": told})
        view = View(FakeBackend(spec), ViewOptions("tile"))
        assert view.place((100, 60)).network == (100, 60)
        assert view.assumed[0].startswith("scale 1: ")

    def test_other_processes_place_pictures_alike(self) -> None:
        view = View(FakeBackend(replace(fake_spec(), training={"scales": [0.4] * 3})), ViewOptions("tile"))
        told = json.loads(json.dumps(asdict(view.placer)))  # as it goes to a worker
        placer = Placer.parse(told)
        assert placer((100, 77)) == view.place((100, 77))
        assert placer((100, 77)).network == (40, 31)


def _memory(picture: np.ndarray) -> Any:
    from unet_batch.inference.segmenter import source_of

    return source_of(picture)
