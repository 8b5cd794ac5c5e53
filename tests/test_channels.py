"""Networks of two and of seven channels, from their training to an engine."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner

import unet_batch
from tests.helpers.tiny import tiny_model, tiny_spec
from unet_batch.build import BuildOptions, build_engine
from unet_batch.cli import main
from unet_batch.datasets.dataset import natural_channels
from unet_batch.datasets.find import find_dataset
from unet_batch.errors import UsageError
from unet_batch.evaluation.evaluate import evaluate
from unet_batch.inference.backends.select import Request
from unet_batch.inference.segmenter import open_segmenter
from unet_batch.media import images
from unet_batch.model import checkpoint
from unet_batch.model.architectures import build_network
from unet_batch.training.loop import train
from unet_batch.training.options import Options
from unet_batch.training.plan import TrainingPlan, make_plan
from unet_batch.types import ModelSpec

SIZE = (32, 32)


def write_discs(folder: Path, bands: int, kind: str, count: int = 12) -> Path:
    """Noise in all bands, and in the last one a disc that the mask holds."""
    random = np.random.default_rng(bands)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros(SIZE, np.uint8)
        cv2.circle(mask, tuple(map(int, random.integers(10, 22, 2))), 7, 255, -1)
        picture = random.integers(60, 120, (*SIZE, bands)).astype(np.uint16)
        picture[..., -1] += mask // 2
        name = str(folder / "images" / f"{number:02}")
        if kind == "npy":
            np.save(f"{name}.npy", picture.astype(np.uint8))
        else:
            tifffile.imwrite(f"{name}.tif", picture * 257, photometric="minisblack", planarconfig="contig")
        cv2.imwrite(str(folder / "masks" / f"{number:02}.png"), mask)
    return folder


def plan_of(folder: Path, model: Path, **options: object) -> TrainingPlan:
    settings = {"size": SIZE, "widths": (4, 8), "epochs": 8, "batch_size": 2, "lr": 0.03, "augment": "none"}
    return make_plan(find_dataset(str(folder)), str(model), Options(**{**settings, **options}))  # type: ignore[arg-type]


@pytest.mark.parametrize(("bands", "kind"), [(2, "npy"), (7, "tif")])
def test_a_network_of_other_channels_is_trained_and_used_everywhere(
    tmp_path: Path, bands: int, kind: str
) -> None:
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install "unet-batch[openvino]"')
    folder, model = write_discs(tmp_path / "discs", bands, kind), tmp_path / "discs.safetensors"
    torch.set_num_threads(1)
    plan = plan_of(folder, model)
    assert plan.spec.channels == tuple(range(1, bands + 1))
    train(plan, class_frequencies=(0.8, 0.2))
    pictures = [pair.image for pair in plan.dataset.pairs]
    with unet_batch.load(str(model), backend="torch") as segmenter:
        assert segmenter.spec.training["channels"] == list(range(1, bands + 1))
        judged = evaluate(plan.dataset, plan.dataset.pairs, segmenter)
        assert not judged.failures
        assert judged.photo.mean("dice") > 0.9, "it has found the channel that shows the disc"
        expected = [segmenter(path) for path in pictures]
        stored = images.read(pictures[0], channels=segmenter.channels).pixels
        assert np.array_equal(segmenter(stored), expected[0]), "an array of the same channels"
    folder_of_engines = str(tmp_path)
    built = build_engine(
        BuildOptions(str(model), folder_of_engines, builder="openvino", proof_images=(pictures[0],))
    )
    assert built.engine is not None, built.missing
    assert built.onnx is not None
    for name, backend in ((built.onnx, "onnxruntime"), (str(model), "openvino")):
        with unet_batch.load(name, backend=backend, engines_dir=folder_of_engines) as segmenter:
            for path, mask in zip(pictures, expected, strict=True):
                assert (segmenter(path) != mask).mean() < 0.01


def spec_of(channels: int, **changes: object) -> ModelSpec:
    normal = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    return tiny_spec(1, SIZE, in_channels=channels, widths=(4, 8), **normal, **changes)


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """A model of four channels."""
    spec = spec_of(4, training={"channels": [4, 1, 2, 3]})
    path = tmp_path / "four.safetensors"
    checkpoint.save(str(path), tiny_model(spec), spec)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A TIFF of six bands, and these."""
    bands = np.random.default_rng(0).integers(0, 256, (90, 130, 6), np.uint8)
    bands = cv2.resize(bands[::30, ::30], (130, 90), interpolation=cv2.INTER_NEAREST)
    (tmp_path / "scenes").mkdir()
    path = tmp_path / "scenes" / "scene.tif"
    tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig", tile=(32, 32))
    return path, bands


class TestRunning:
    def test_the_model_says_which_bands_and_the_caller_others(
        self, four: Path, scene: tuple[Path, np.ndarray]
    ) -> None:
        path, bands = scene
        with unet_batch.load(str(four), backend="torch") as segmenter:
            assert segmenter.channels == (4, 1, 2, 3)
            own = segmenter.predict(path)
            assert np.array_equal(own.probability, segmenter.predict(bands).probability)
        with unet_batch.load(str(four), backend="torch", channels=(6, 5, 1, 1)) as segmenter:
            other = segmenter.predict(path).probability
            assert segmenter.describe()["channels"] == [6, 5, 1, 1]
        assert not np.array_equal(own.probability, other)
        with unet_batch.load(str(four), backend="torch") as segmenter:
            order = [6, 5, 1, 1]
            swapped = bands[..., [order[[4, 1, 2, 3].index(band)] - 1 for band in (1, 2, 3, 4)]]
            assert np.array_equal(segmenter.predict(swapped).probability, other)

    @pytest.mark.parametrize("fit", ["letterbox", "tile"])
    def test_processes_of_their_own_give_the_same_masks(
        self, four: Path, scene: tuple[Path, np.ndarray], tmp_path: Path, fit: str
    ) -> None:
        for where, more in (("here", []), ("there", ["--isolate", "--workers", "1"])):
            run(four, scene[0], tmp_path / where, "--fit", fit, "--overlay", "--save", "prob,cutout", *more)
        for kind in ("probs", "overlays", "cutouts"):
            here, there = (list((tmp_path / where / kind).iterdir()) for where in ("here", "there"))
            assert [file.read_bytes() for file in here] == [file.read_bytes() for file in there] != []

    def test_a_picture_read_in_bands_of_rows_gives_the_same_mask(
        self, four: Path, scene: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(four, scene[0], tmp_path / "whole", "--fit", "tile", "--save", "prob")
        monkeypatch.setattr("unet_batch.run.giant.MEMORY", 1)
        run(four, scene[0], tmp_path / "rows", "--fit", "tile", "--save", "prob")
        whole, rows = (
            cv2.imread(str(tmp_path / name / "probs" / "scene.png"), -1) for name in ("whole", "rows")
        )
        assert whole is not None
        assert rows is not None
        assert np.abs(whole.astype(int) - rows).max() <= 1

    def test_channels_are_no_pages(self, tmp_path: Path, four: Path) -> None:
        stack = np.random.default_rng(1).integers(0, 256, (3, 4, 40, 50), np.uint8)
        path = tmp_path / "stack.ome.tif"
        tifffile.imwrite(path, stack, metadata={"axes": "ZCYX"}, photometric="minisblack")
        run(four, path, tmp_path / "out", "--pages", "all", "--save", "prob")
        [made] = (tmp_path / "out" / "probs").iterdir()
        with unet_batch.load(str(four), backend="torch") as segmenter:
            expected = [segmenter.predict(np.moveaxis(page, 0, -1)).probability for page in stack]
        assert np.array_equal(tifffile.imread(made), expected)

    def test_other_channels_are_another_recipe(
        self, four: Path, scene: tuple[Path, np.ndarray], tmp_path: Path
    ) -> None:
        run(four, scene[0], tmp_path / "out")
        run(four, scene[0], tmp_path / "out", "--channels", "4,1,2,3")  # the model's own, again
        refused = run(four, scene[0], tmp_path / "out", "--channels", "1,2,3,4", code=2)
        assert "channels 1,2,3,4" in refused

    def test_a_video_is_refused_in_one_sentence(self, four: Path, tmp_path: Path) -> None:
        (tmp_path / "clip.mp4").write_bytes(b"")
        said = run(four, tmp_path / "clip.mp4", tmp_path / "out", code=1)
        assert "a video is red, green and blue, the network takes channels 4,1,2,3" in " ".join(said.split())

    def test_inspect_says_the_bands(self, four: Path) -> None:
        said = CliRunner().invoke(main, ["inspect", str(four)])
        assert "4 channels: bands 4,1,2,3" in said.output


def run(model: Path, source: Path, out: Path, *more: str, code: int = 0) -> str:
    """`unet-batch run`, and what it prints."""
    words = ["run", str(source), "-m", str(model), "-o", str(out), "--backend", "torch", *more]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == code, done.output
    return done.output


class TestOneChannel:
    def test_a_photo_is_seen_by_its_luminance_and_shown_in_colour(self, tmp_path: Path) -> None:
        spec = spec_of(1)
        checkpoint.save(str(tmp_path / "grey.safetensors"), tiny_model(spec), spec)
        photo = np.random.default_rng(2).integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
        for options in ({}, {"fit": "tile", "scale": 1.0}):
            with unet_batch.load(str(tmp_path / "grey.safetensors"), backend="torch", **options) as segmenter:  # type: ignore[arg-type]
                assert segmenter.channels is None
                found = segmenter.predict(photo)
                assert np.array_equal(found.probability, segmenter.predict(grey).probability)
                cut = found.cutout()
                opaque = cut[..., 3] == 255
                assert opaque.any()
                assert np.array_equal(cut[opaque][:, :3], photo[opaque])


class TestPlan:
    def test_a_start_of_three_channels_is_widened_and_the_plan_says_so(self, tmp_path: Path) -> None:
        from unet_batch.training.ranks import Ranks
        from unet_batch.training.step import build_state

        start = tmp_path / "start.safetensors"
        spec = tiny_spec(1, SIZE, widths=(4, 8))
        checkpoint.save(str(start), tiny_model(spec), spec)
        folder = write_discs(tmp_path / "discs", 5, "npy", 6)
        plan = plan_of(folder, tmp_path / "new.safetensors", init=str(start), widths=None, channels=(5, 1))
        assert any("the first convolution, made for 3 channels" in reason for reason in plan.reasons)
        assert plan.spec.mean == pytest.approx((0.5, 0.5))
        assert plan.spec.training == {"channels": [5, 1]}
        model = build_state(plan, Ranks()).model.eval()
        grey = torch.rand(1, 1, 32, 32)
        old = build_network(spec).eval()
        old.load_state_dict(checkpoint.load(str(start)).model.state_dict())
        with torch.no_grad():
            assert torch.allclose(model(grey.repeat(1, 2, 1, 1)), old(grey.repeat(1, 3, 1, 1)), atol=1e-4)

    def test_channels_of_a_start_are_kept(self, tmp_path: Path, four: Path) -> None:
        folder = write_discs(tmp_path / "discs", 5, "npy", 6)
        plan = plan_of(folder, tmp_path / "new.safetensors", init=str(four), widths=None)
        assert plan.spec.channels == plan.dataset.channels == (4, 1, 2, 3)

    def test_channels_out_of_range_are_refused(self) -> None:
        for channels in ((0,), (1,) * 65, (70_000,)):
            with pytest.raises(UsageError, match="channels"):
                Options(channels=channels)

    def test_pictures_that_have_other_bands_are_named(self, tmp_path: Path) -> None:
        folder = write_discs(tmp_path / "discs", 4, "npy", 6)
        for number, bands in ((0, 2), (1, 6)):
            picture = np.random.default_rng(number).integers(0, 256, (*SIZE, bands), np.uint8)
            np.save(folder / "images" / f"{number:02}.npy", picture)
        assert natural_channels(find_dataset(str(folder)).pairs) == (1, 2, 3, 4)
        said = CliRunner().invoke(main, ["check-data", str(folder)]).output
        assert "has 2 bands, the network takes channels 1,2,3,4" in said
        assert "01: 6 bands" in said
        chosen = CliRunner().invoke(main, ["check-data", str(folder), "--channels", "2,1"])
        assert chosen.exit_code == 0, chosen.output


def test_a_request_for_other_channels_reaches_the_segmenter(four: Path) -> None:
    from unet_batch.engine import source

    request = Request(source.identify(str(four)), "torch", None, None, None, "engines", False)
    with open_segmenter(request, channels=(1, 2, 3, 4)) as segmenter:
        assert segmenter.channels == (1, 2, 3, 4)
