"""What can be done with a segmented picture, in a notebook for instance."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

import unet_batch
from tests.helpers.runs import files, segment
from tests.helpers.waiting import PATIENCE
from unet_batch.errors import EncodeError, ImageError, OutputError, UsageError
from unet_batch.files.outputs import PICTURE_KINDS, OutputTree
from unet_batch.inference import postprocess
from unet_batch.inference import segmenter as segmenter_module
from unet_batch.inference.renderers import RENDERERS
from unet_batch.inference.result import Result
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media.images.profiles import coded_profile
from unet_batch.media.render import class_table
from unet_batch.run.pictures import OutputRenderer
from unet_batch.testing import FakeBackend, fake_spec

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 48:] = 255
    path = tmp_path / "photos" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture
def segmenter() -> Iterator[Segmenter]:
    with Segmenter(FakeBackend(), workers=2) as opened:
        yield opened


def test_predict_gives_what_calling_gives_and_more(segmenter: Segmenter, photo: Path) -> None:
    result = segmenter.predict(photo)
    assert isinstance(result, unet_batch.Result)
    assert result.path == str(photo)
    assert result.error is None
    assert np.array_equal(result.mask, segmenter(photo))
    assert result.probability.shape == (64, 96)
    assert result.overlay().shape == (64, 96, 3)
    cutout = result.cutout()
    assert cutout.shape == (64, 96, 4)
    assert np.array_equal(cutout[..., 3] >= 128, result.mask > 0)


@pytest.mark.parametrize("held", ["bytes", "image", "array", "floats"])
def test_pictures_in_memory_give_the_masks_of_their_files(
    segmenter: Segmenter, photo: Path, held: str
) -> None:
    picture = {
        "bytes": Path.read_bytes,
        "image": Image.open,
        "array": lambda path: np.array(Image.open(path)),
        "floats": lambda path: np.array(Image.open(path)) / 255,
    }[held](photo)
    assert np.array_equal(segmenter(picture), segmenter(photo))
    assert np.array_equal(segmenter.predict(picture).overlay(), segmenter.predict(photo).overlay())


def test_stream_takes_a_mixture_and_reports_what_fails(segmenter: Segmenter, photo: Path) -> None:
    mixture = [photo, photo.read_bytes(), Image.open(photo), np.full((4, 4), 7.0), 3, str(photo)]
    results = list(segmenter.stream(mixture))  # type: ignore[arg-type]
    assert [result.path for result in results] == [
        str(photo), "bytes", "image", "array", "image", str(photo)
    ]  # fmt: skip
    assert [type(result.error) for result in results] == [
        type(None), type(None), type(None), ImageError, ImageError, type(None)
    ]  # fmt: skip
    assert "x / 255" in results[3].error.hint
    assert results[3].mask is None
    for result in results:
        if result.error is None:
            assert np.array_equal(result.mask, results[0].mask)


def test_one_lazy_image_may_be_given_many_times(segmenter: Segmenter, photo: Path) -> None:
    image = Image.open(photo)
    masks = [result.mask for result in segmenter.stream([image] * 20)]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("holed", [False, True])
def test_a_mask_that_is_only_written_is_the_one_that_can_be_looked_at(
    segmenter: Segmenter, photo: Path, holed: bool
) -> None:
    seen = segmenter.predict(photo)
    if holed:
        missing = np.zeros((64, 96), np.bool_)
        missing[:, 60:70] = True
        frame = replace(seen.prediction.frame, missing=missing)
        seen = replace(seen, prediction=replace(seen.prediction, frame=frame))
    frame = replace(seen.prediction.frame, pixels=None)  # as a run for masks alone has it
    written = replace(seen, prediction=replace(seen.prediction, frame=frame))
    data = written.encode("mask")
    assert "mask" not in vars(written)  # not made as an array of its own
    assert data == seen.encode("mask")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), seen.mask)
    assert bool(seen.mask[:, 60:70].any()) is not holed


def test_stream_makes_masks_in_its_threads(
    segmenter: Segmenter, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, threads = postprocess.mask_from_map, set()

    def noted(*arguments: object) -> object:
        threads.add(threading.current_thread().name)
        return real(*arguments)

    monkeypatch.setattr(postprocess, "mask_from_map", noted)
    for result in segmenter.stream([photo] * 4):
        assert result.mask.any()
    assert threads
    assert threading.main_thread().name not in threads


@pytest.mark.parametrize(
    ("value", "maker"),
    [("mask", "mask_from_map"), ("probability", "probability")],
    ids=["mask", "probability"],
)
def test_threads_make_masks_at_the_same_time(
    segmenter: Segmenter, photo: Path, monkeypatch: pytest.MonkeyPatch, value: str, maker: str
) -> None:
    results = [segmenter.predict(photo) for _ in range(2)]
    real, both = getattr(postprocess, maker), threading.Barrier(2, timeout=PATIENCE)

    def meeting(*arguments: object) -> object:
        both.wait()  # breaks unless the other thread comes meanwhile
        return real(*arguments)

    monkeypatch.setattr(postprocess, maker, meeting)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda result: getattr(result, value), results)
    assert np.array_equal(first, second)
    assert getattr(results[0], value) is first  # made once


def test_fits_on_a_line_of_a_notebook(segmenter: Segmenter, photo: Path) -> None:
    assert repr(segmenter.predict(photo)) == f"Result(path={str(photo)!r}, threshold=0.5, error=None)"


def test_stream_keeps_pixels_only_where_asked(segmenter: Segmenter, photo: Path) -> None:
    (kept,) = segmenter.stream([photo], keep_pixels=True)
    assert np.array_equal(kept.overlay(), segmenter.predict(photo).overlay())
    (result,) = segmenter.stream([photo])
    for draw in (result.overlay, result.cutout):
        with pytest.raises(UsageError, match="its pixels were not kept") as caught:
            draw()
        assert "keep_pixels=True" in caught.value.hint
    assert result.mask.any()


def test_a_stream_of_large_pictures_stays_within_its_memory(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet_batch.inference.segmenter.PIXEL_BUDGET", 100_000)
    made = 0

    def pictures() -> Iterator[np.ndarray]:
        nonlocal made
        for _ in range(30):
            made += 1
            yield np.zeros((100, 100, 3), np.uint8)

    for done, _ in enumerate(segmenter.stream(pictures(), keep_pixels=True), 1):
        assert made <= done + 8  # three in the budget, and those just being decoded


def test_what_failed_has_nothing_to_draw(segmenter: Segmenter, tmp_path: Path) -> None:
    (result,) = segmenter.stream([tmp_path / "none.jpg"])
    assert result.mask is None
    for what in (result.overlay, result.cutout, lambda: result.probability, lambda: result.save(tmp_path)):
        with pytest.raises(UsageError, match=r"failed, there is no .*: .*no such file"):
            what()
    with pytest.raises(ImageError, match="no such file"):
        segmenter.predict(tmp_path / "none.jpg")


def test_of_several_classes_there_is_no_one_probability(photo: Path, tmp_path: Path) -> None:
    with Segmenter(FakeBackend(fake_spec(classes=3), lambda batch: batch[..., 0] % 3)) as segmenter:
        result = segmenter.predict(photo)
        assert set(np.unique(result.mask)) <= {0, 1, 2}
        assert result.overlay().shape == (64, 96, 3)
        for kind in ("prob", "prob16", "prob32"):
            with pytest.raises(UsageError, match="fake has 3 classes: ids, not one probability"):
                result.save(tmp_path, (kind,))
        for kind in ("cutout", "background", "blur", "pixelate"):
            with pytest.raises(UsageError, match="none of the 3 classes of fake is a background"):
                result.save(tmp_path, (kind,))


class TestSave:
    def test_the_files_that_a_run_writes(self, segmenter: Segmenter, photo: Path, tmp_path: Path) -> None:
        kinds = tuple(kind for kind in PICTURE_KINDS if kind != "dicomseg")  # of DICOM alone
        segment(photo.parent, output=tmp_path / "run", save=kinds)
        saved = segmenter.predict(photo).save(tmp_path / "saved", kinds)
        assert list(saved) == list(kinds)
        for path in saved.values():
            name = Path(path).relative_to(tmp_path / "saved")
            assert Path(path).read_bytes() == (tmp_path / "run" / name).read_bytes()
        assert files(tmp_path / "saved") == [
            "backgrounds/photo.jpg",
            "blurred/photo.jpg",
            "contours/photo.jpg",
            "cutouts/photo.png",
            "geotiffs/photo.tif",
            "instances/photo.png",
            "masks/photo.png",
            "objects/photo.csv",
            "overlays/photo.jpg",
            "palettes/photo.png",
            "pixelated/photo.jpg",
            "probs/photo.png",
            "probs16/photo.png",
            "probs32/photo.tif",
            "sheets/photo.jpg",
            "stats/photo.csv",
        ]

    def test_the_mask_alone_unless_more_is_asked_for(
        self, segmenter: Segmenter, photo: Path, tmp_path: Path
    ) -> None:
        (result,) = segmenter.stream([photo])
        assert result.save(tmp_path) == {"mask": str(tmp_path / "masks/photo.png")}
        assert np.array_equal(np.array(Image.open(tmp_path / "masks/photo.png")), result.mask)

    def test_a_name_of_its_own(self, segmenter: Segmenter, photo: Path, tmp_path: Path) -> None:
        result = segmenter.predict(photo.read_bytes())
        with pytest.raises(UsageError, match="bytes: has no file name of its own") as caught:
            result.save(tmp_path)
        assert "name=" in caught.value.hint
        assert result.save(tmp_path, name="lot/7") == {"mask": str(tmp_path / "masks/lot/7.png")}
        with pytest.raises(OutputError, match="outside the output folder"):
            result.save(tmp_path, name="../7")
        with pytest.raises(UsageError, match="unknown kind of output: masks"):
            result.save(tmp_path, ("masks",), name="7")

    def test_another_pictures_result_is_not_overwritten(
        self, segmenter: Segmenter, photo: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "others" / photo.name
        other.parent.mkdir()
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(other)
        first, second = segmenter.predict(photo), segmenter.predict(other)
        (path,) = first.save(tmp_path).values()
        before = Path(path).read_bytes()
        with pytest.raises(OutputError, match="is there already, with other contents") as caught:
            second.save(tmp_path, ("overlay", "mask"))
        assert "name=" in caught.value.hint
        assert Path(path).read_bytes() == before
        assert not (tmp_path / "overlays").exists(), "all or nothing"
        first.save(tmp_path)  # a cell of a notebook that is run again
        second.save(tmp_path, overwrite=True)
        assert not np.array(Image.open(path)).any()

    def test_what_cannot_be_made_writes_nothing(
        self, segmenter: Segmenter, photo: Path, tmp_path: Path
    ) -> None:
        (result,) = segmenter.stream([photo])
        with pytest.raises(UsageError, match="its pixels were not kept"):
            result.save(tmp_path / "out", ("mask", "overlay"))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("held", ["file", "image", "array"])
def test_a_cutout_is_as_transparent_as_its_picture(segmenter: Segmenter, tmp_path: Path, held: str) -> None:
    rgba = np.zeros((64, 96, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, np.arange(96) * 2 + 40
    path = tmp_path / "soft.png"
    Image.fromarray(rgba).save(path)
    result = segmenter.predict({"file": path, "image": Image.fromarray(rgba), "array": rgba}[held])
    cutout = result.cutout()
    opaque = segmenter.predict(np.asarray(result.prediction.frame.pixels)).cutout()[..., 3]  # type: ignore[union-attr]
    assert (opaque == 255).any()
    assert np.array_equal(cutout[..., 3], np.rint(opaque / 255 * rgba[..., 3]))
    assert np.abs(cutout[opaque == 255][:, :3].astype(int) - [200, 0, 0]).max() <= 6


def test_outputs_carry_metadata_and_the_colours_of_the_picture(segmenter: Segmenter, tmp_path: Path) -> None:
    """A wide-gamut photo beside its outputs in a viewer that knows profiles: the same colours."""
    exif = Image.Exif()
    exif[0x0112], exif[0x8298] = 6, "(c) Someone"
    y, x = np.mgrid[:64, :96]
    stored = np.stack([x * 2 + 30, y * 3 + 20, 200 - x], axis=-1).astype(np.uint8)
    p3 = coded_profile(12, 13)[0]
    path = tmp_path / "p3.png"
    Image.fromarray(stored).save(path, icc_profile=p3, exif=exif, dpi=(300, 300))
    shown = ImageCms.profileToProfile(
        Image.fromarray(stored), ImageCms.ImageCmsProfile(io.BytesIO(p3)), ImageCms.createProfile("sRGB"),
        renderingIntent=1, outputMode="RGB",
    )  # fmt: skip
    expected = np.rot90(np.asarray(shown, np.int16), -1)
    result = segmenter.predict(path)
    with Image.open(io.BytesIO(result.encode("overlay"))) as image:
        assert "sRGB" in ImageCms.getProfileDescription(
            ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        )
        assert image.getexif()[0x8298] == "(c) Someone"
        assert 0x0112 not in image.getexif()
        assert image.info["dpi"] == (300, 300)
        away = np.asarray(result.mask) == 0
        away[1:] &= away[:-1]
        away[:, 1:] &= away[:, :-1]
        assert np.abs(np.asarray(image, np.int16) - expected)[away].mean() < 3
    with Image.open(io.BytesIO(result.encode("cutout"))) as image:
        assert image.info["srgb"] == 1
        assert image.getexif()[0x8298] == "(c) Someone"
        cutout = np.asarray(image, np.int16)
        inside = cutout[..., 3] == 255
        assert np.abs(cutout[..., :3] - expected)[inside].max() <= 1
    with Image.open(io.BytesIO(result.encode("mask"))) as image:
        assert image.info == {}


def test_a_picture_wider_than_a_jpeg_keeps_its_mask_and_has_a_smaller_overlay(
    segmenter: Segmenter, tmp_path: Path
) -> None:
    path = tmp_path / "line.png"
    Image.fromarray(np.full((3, 70_000, 3), 90, np.uint8)).save(path)
    result = segmenter.predict(path)
    with Image.open(io.BytesIO(result.encode("mask"))) as image:
        assert image.size == (70_000, 3)
    with Image.open(io.BytesIO(result.encode("overlay"))) as image:
        assert image.size == (65_500, 3)
    note = "its overlay is 3x65500 instead of 3x70000: a JPEG holds no longer side"
    assert result.notes_on(("mask", "overlay")) == (note,)
    assert result.notes_on(("mask", "cutout", "palette")) == ()
    assert len(result.notes_on(("contour", "background", "blur", "pixelate"))) == 4
    for kind in ("contour", "background", "blur", "pixelate"):
        with Image.open(io.BytesIO(result.encode(kind))) as image:
            assert image.size == (65_500, 3)
    renderer = OutputRenderer(OutputTree(str(tmp_path / "out"), ("mask", "overlay")), segmenter)
    assert result.prediction is not None
    assert renderer.render(result.prediction).notes == (note,)


def test_every_kind_of_picture_output_has_a_renderer() -> None:
    assert tuple(RENDERERS) == PICTURE_KINDS


def test_a_kind_of_output_that_there_is_not(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.fromarray(np.full((3, 5, 3), 90, np.uint8)).save(path)
    result = segmenter.predict(path)
    with pytest.raises(UsageError, match="unknown kind of output: masks") as caught:
        result.encode("masks")
    assert "choose from mask, overlay" in caught.value.hint
    with pytest.raises(UsageError, match="unknown kind of output: stats"):
        result.draw("stats")


def test_probabilities_in_each_type(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.fromarray(np.arange(0, 240, 4, np.uint8).reshape(6, 10, 1).repeat(3, 2)).save(path)
    result = segmenter.predict(path)
    assert result.probability16.dtype == np.uint16
    assert result.probability32.dtype == np.float32
    np.testing.assert_allclose(result.probability32, result.probability16 / 65535, atol=1e-7)
    np.testing.assert_allclose(result.probability32, result.probability / 255, atol=0.5 / 255 + 1e-6)
    assert 0 < result.probability32.min() < result.probability32.max() < 1
    assert result.missing is None
    np.testing.assert_array_equal(result.class_ids, (result.probability32 >= 0.5).astype(np.uint8))


def test_dir_shows_what_is_public_and_nothing_else() -> None:
    assert dir(unet_batch) == sorted(unet_batch.__all__)
    assert all(hasattr(unet_batch, name) for name in dir(unet_batch))
    assert unet_batch.Result is Result


def several(answer: Callable[[np.ndarray], np.ndarray]) -> Segmenter:
    """Of a background and two classes."""
    spec = replace(fake_spec(classes=3), classes=class_table(["background", "car", "road"]))
    return Segmenter(FakeBackend(spec, answer), workers=2)


def thirds(batch: np.ndarray) -> np.ndarray:
    """Background, car and road, a third of the picture each."""
    ids = np.zeros(batch.shape[:3], np.uint8)
    ids[:, :, 16:] = 1
    ids[:, :, 32:] = 2
    return ids


def opened(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


class TestKinds:
    """What each kind shows."""

    @pytest.fixture
    def scene(self, tmp_path: Path) -> Path:
        """Noise, its right half bright: that is the object."""
        picture = np.random.default_rng(0).integers(0, 60, (64, 96, 3)).astype(np.uint8)
        picture[:, 48:] += 190
        path = tmp_path / "scene.png"
        exif = Image.Exif()
        exif[0x010F] = "Maker"
        Image.fromarray(picture).save(path, exif=exif, dpi=(200, 200))
        return path

    def test_a_contour_tints_nothing(self, segmenter: Segmenter, scene: Path) -> None:
        result, pixels = segmenter.predict(scene), np.asarray(Image.open(scene))
        changed = (result.contour() != pixels).any(axis=2)
        assert changed[:, 44:52].any(axis=1).all(), "the edge is drawn in every row"
        assert not changed[:, :44].any()
        assert not changed[:, 52:].any()

    def test_a_sheet_shows_all_three(self, segmenter: Segmenter, scene: Path) -> None:
        sheet, pixels = segmenter.predict(scene).sheet(), np.asarray(Image.open(scene))
        assert sheet.shape == (64, 3 * 96 + 2 * 8, 3)
        assert (sheet[:, :96] == pixels).all()
        assert set(np.unique(sheet[:, 104:200])) == {0, 255}
        assert (sheet[:, 208:] == segmenter.predict(scene).overlay()).all()
        large = np.zeros((3000, 40, 3), np.uint8)
        assert segmenter.predict(large).sheet().shape[0] == 720

    def test_a_sheet_of_several_classes_has_their_colours(self, scene: Path) -> None:
        with several(thirds) as segmenter:
            result = segmenter.predict(scene)
            middle = result.sheet()[:, 104:200]
            assert {tuple(colour) for colour in middle[32]} == set(segmenter.spec.classes.colours)

    def test_a_palette_has_ids_and_colours(self, segmenter: Segmenter, scene: Path) -> None:
        with Image.open(io.BytesIO(segmenter.predict(scene).encode("palette"))) as image:
            assert image.mode == "P"
            assert image.getpalette()[:6] == [0, 0, 0, *segmenter.spec.classes.colours[0]]
            assert np.array_equal(np.asarray(image), segmenter.predict(scene).mask // 255)
        with several(thirds) as many:
            result = many.predict(scene)
            with Image.open(io.BytesIO(result.encode("palette"))) as image:
                assert np.array_equal(np.asarray(image), result.mask)
                colours = [component for colour in many.spec.classes.colours for component in colour]
                assert image.getpalette()[:9] == colours

    def test_the_probability_in_floats(self, segmenter: Segmenter, scene: Path) -> None:
        result = segmenter.predict(scene)
        values = tifffile.imread(io.BytesIO(result.encode("prob32")))
        assert values.dtype == np.float32
        assert np.abs(values * 255 - result.probability).max() <= 0.51
        assert result.prediction is not None
        missing = np.zeros((64, 96), np.bool_)
        missing[:, 60:70] = True
        frame = replace(result.prediction.frame, missing=missing)
        holed = replace(result, prediction=replace(result.prediction, frame=frame))
        assert np.array_equal(np.isnan(tifffile.imread(io.BytesIO(holed.encode("prob32")))), missing)

    def test_the_object_before_another_background(self, segmenter: Segmenter, scene: Path) -> None:
        result, pixels = segmenter.predict(scene), np.asarray(Image.open(scene))
        for colour, rgb in (("white", (255, 255, 255)), ("#ff8000", (255, 128, 0))):
            shown = result.styled(background=colour).on_background()
            assert (shown[:, :40] == rgb).all()
            assert (shown[:, 56:] == pixels[:, 56:]).all()
        blurred = result.styled(background="blur").on_background()
        assert np.ptp(blurred[10:-10, 10:30].astype(int)) < 30
        with pytest.raises(UsageError, match="no colour, and no picture"):
            result.styled(background="nowhere.png").on_background()

    @pytest.mark.parametrize("how", ["blur", "pixelate"])
    def test_what_is_hidden_is_hidden_in_the_file_and_nothing_tells_of_it(
        self, segmenter: Segmenter, scene: Path, how: str
    ) -> None:
        result, pixels = segmenter.predict(scene), np.asarray(Image.open(scene), int)
        shown = opened(result.encode(how)).astype(int)
        inside, before = shown[8:-8, 60:90], pixels[8:-8, 60:90]
        assert np.abs(np.diff(inside, axis=0)).mean() < np.abs(np.diff(before, axis=0)).mean() / 5
        assert np.abs(shown[:, :20] - pixels[:, :20]).mean() < 12, "the rest is as it was"
        with Image.open(io.BytesIO(result.encode(how))) as image:
            assert not image.getexif()
            assert image.info["dpi"] == (200, 200)
        with Image.open(io.BytesIO(result.encode("contour"))) as image:
            assert image.getexif()[0x010F] == "Maker"

    def test_of_several_classes_the_object_is_all_but_the_background(self, scene: Path) -> None:
        pixels = np.asarray(Image.open(scene))
        with several(thirds) as segmenter:
            result = segmenter.predict(scene)
            assert np.array_equal(result.cutout()[..., 3] >= 128, result.mask > 0)
            assert (result.on_background()[:, :24] == 255).all()
            hidden = result.hidden("pixelate")
            assert (hidden[:, 40:] != pixels[:, 40:]).any()
        with several(lambda batch: np.zeros(batch.shape[:3], np.uint8)) as segmenter:
            assert (segmenter.predict(scene).hidden("pixelate") == pixels).all()

    @pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
    def test_cutouts_in_every_format_and_cropped(
        self, segmenter: Segmenter, scene: Path, tmp_path: Path, kind: str
    ) -> None:
        result = segmenter.predict(scene)
        whole, cropped = (
            opened(result.styled(cutout_format=kind, crop=crop).encode("cutout")) for crop in (False, True)
        )
        seen = result.cutout()[..., 3] > 0
        left = int(np.flatnonzero(seen.any(axis=0))[0])
        assert whole.shape[:2] == (64, 96)
        assert cropped.shape[:2] == (64, 96 - left)
        if kind == "jpeg":
            assert (whole[:, :32] > 250).all(), "white, where others are transparent"
        else:
            assert np.array_equal(whole[..., 3], result.cutout()[..., 3])
            alpha = cropped[..., 3] if cropped.shape[2] == 4 else 255  # all that is seen may be opaque
            assert np.array_equal(result.cutout()[:, left:, 3], np.broadcast_to(alpha, cropped.shape[:2]))
        [path] = result.styled(cutout_format=kind).save(tmp_path / "out", ("cutout",)).values()
        assert Path(path).suffix == {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}[kind]

    def test_where_nothing_is_seen_nothing_is_cropped(self, segmenter: Segmenter) -> None:
        result = segmenter.predict(np.zeros((30, 40, 3), np.uint8)).styled(crop=True)
        assert opened(result.encode("cutout")).shape == (30, 40, 4)
        assert opened(result.encode("background")).shape == (30, 40, 3)

    def test_a_webp_holds_no_side_beyond_16383(self, segmenter: Segmenter) -> None:
        result = segmenter.predict(np.full((2, 16_384, 3), 255, np.uint8)).styled(cutout_format="webp")
        with pytest.raises(EncodeError, match=r"2x16384.*too large for WebP") as info:
            result.encode("cutout")
        assert "PNG" in info.value.hint

    def test_another_style_keeps_what_was_made(self, segmenter: Segmenter, scene: Path) -> None:
        result = segmenter.predict(scene)
        mask, cutout = result.mask, result.cutout()
        other = result.styled(crop=True)
        assert other.mask is mask
        assert other.cutout() is cutout
        assert (result.style.crop, other.style.crop) == (False, True)
        with pytest.raises(UsageError, match="cutout format"):
            result.styled(cutout_format="bmp")


def test_files_are_the_same_in_whatever_order_they_are_encoded(segmenter: Segmenter, photo: Path) -> None:
    kinds = ("mask", "overlay", "cutout", "prob", "prob16")
    after = segmenter.predict(photo)
    assert after.mask is not None
    expected = {kind: after.encode(kind) for kind in kinds}
    for chosen in (("mask",), kinds, kinds[::-1]):
        assert segmenter.predict(photo).encode_all(chosen) == [(kind, expected[kind]) for kind in chosen]
    (small,) = segmenter.stream([photo])
    with pytest.raises(UsageError, match=r"photo\.png: overlay: .*its pixels were not kept"):
        small.encode_all(("mask", "overlay"))


def test_a_result_says_how_its_picture_was_read(
    segmenter: Segmenter, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert segmenter.predict(photo).notes == ()
    real = segmenter_module.images.read
    monkeypatch.setattr(
        segmenter_module.images,
        "read",
        lambda path, **options: replace(real(path, **options), notes=("3 pages: the first is read",)),
    )
    assert segmenter.predict(photo).notes == ("3 pages: the first is read",)
    photo.write_bytes(b"")
    [failed] = segmenter.stream([photo])
    assert (failed.mask, failed.notes) == (None, ())


class TestPixelsWithoutAValue:
    """Nodata of a GeoTIFF is nothing in whatever is made of it, whatever the network says there."""

    @pytest.fixture
    def survey(self, tmp_path: Path) -> tuple[Path, np.ndarray]:
        values = np.linspace(0.2, 1, 64 * 96, dtype=np.float32).reshape(64, 96)
        holes = np.random.default_rng(0).random((64, 96)) < 0.3
        values[holes] = -9999
        path = tmp_path / "survey.tif"
        tifffile.imwrite(path, values, extratags=[(42113, 2, 6, "-9999", True)], metadata=None)
        return path, holes

    @pytest.mark.parametrize("isolate", [False, True])
    def test_of_one_class(self, survey: tuple[Path, np.ndarray], isolate: bool) -> None:
        path, holes = survey
        backend = FakeBackend(answer=lambda batch: np.full(batch.shape[:3], 255, np.uint8))
        with Segmenter(backend, workers=1, threshold=0.1, isolate=isolate) as segmenter:
            result = segmenter.predict(path)
            assert np.array_equal(result.mask == 0, holes)
            assert np.array_equal(result.probability == 0, holes)
            assert np.array_equal(result.cutout()[..., 3] == 0, holes)
            prob16 = np.array(Image.open(io.BytesIO(result.encode("prob16"))))
            assert np.array_equal(prob16 == 0, holes)
            pixels = result.prediction.frame.pixels
            assert np.array_equal(result.overlay()[holes], pixels[holes])
            assert not np.array_equal(result.overlay(), pixels)
            (streamed,) = segmenter.stream([path])  # without pixels, and so perhaps decoded at reduced size
            fresh = segmenter.predict(path)  # of which nobody has asked for `mask`
            assert np.array_equal(Image.open(io.BytesIO(fresh.encode("mask"))), result.mask)
            assert np.array_equal(streamed.mask, result.mask)

    def test_of_several_classes_is_id_0_without_its_colour(self, survey: tuple[Path, np.ndarray]) -> None:
        path, holes = survey
        backend = FakeBackend(fake_spec(classes=3), lambda batch: np.full(batch.shape[:3], 2, np.uint8))
        with Segmenter(backend, workers=1) as segmenter:
            result = segmenter.predict(path)
            assert np.array_equal(result.mask, np.where(holes, 0, 2))
            assert np.array_equal(result.overlay()[holes], result.prediction.frame.pixels[holes])

    def test_known_at_a_reduced_size_only(self, survey: tuple[Path, np.ndarray]) -> None:
        path, _ = survey
        backend = FakeBackend(answer=lambda batch: np.full(batch.shape[:3], 255, np.uint8))
        with Segmenter(backend, workers=1) as segmenter:
            prediction = segmenter.predict(path).prediction
            quarter = np.zeros((16, 24), bool)
            quarter[3, 5] = True
            frame = dataclasses.replace(prediction.frame, missing=quarter)
            mask = segmenter.mask(dataclasses.replace(prediction, frame=frame))
        assert np.array_equal(mask == 0, quarter.repeat(4, 0).repeat(4, 1))
