"""Engines that TensorRT-RTX really builds, on machines without a GPU, too; only running them needs one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.helpers.builds import build_and_die, build_and_die_late, build_and_say
from tests.helpers.engines import confident, harm, overflowing, remember_exports
from tests.helpers.processes import Forked
from tests.helpers.systems import needs_permissions, needs_posix
from tests.helpers.waiting import PATIENCE
from unet_batch import gpu
from unet_batch.build import BuildOptions, Built, build_engine, builders
from unet_batch.cli import main
from unet_batch.engine import compiler, flavours, onnx_model, openvino, store
from unet_batch.engine.compiler import Compiled, Profile, compile_plan
from unet_batch.engine.flavours import Flavour
from unet_batch.engine.pictures import proof_pictures
from unet_batch.engine.sidecar import EngineRecipe
from unet_batch.errors import (
    BackendError,
    BackendUnavailable,
    CheckpointError,
    OutputError,
    SourceError,
    UsageError,
)
from unet_batch.model import checkpoint, zoo
from unet_batch.model.checkpoint import Checkpoint
from unet_batch.scenes import write_samples
from unet_batch.testing import fake_spec
from unet_batch.types import ClassTable

pytest.importorskip(
    "tensorrt_rtx", reason="needs tensorrt-rtx, which builds without a GPU: pip install tensorrt-rtx"
)

SIZE = (64, 96)


def saved(folder: Path, model: Checkpoint, name: str = "net") -> str:
    path = str(folder / f"{name}.safetensors")
    checkpoint.save(path, model.model, replace(model.spec, name=name))
    return path


@pytest.fixture(scope="module", autouse=True)
def exported_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        remember_exports(patch)
        yield


@pytest.fixture(scope="module", autouse=True)
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures to prove engines on: drawn once, not for each build."""
    folder = tmp_path_factory.mktemp("drawn")
    write_samples(str(folder), 4, (128, 192))
    PHOTOS[:] = [str(folder / "photos")]
    return PHOTOS[0]


PHOTOS: list[str] = []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("small"), confident(size=SIZE))


@pytest.fixture(scope="module")
def built(small: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An engine that tests only look at, or copy."""
    return build_engine(options(small, tmp_path_factory.mktemp("engines")))


def options(model: str, folder: Path, **changes: object) -> BuildOptions:
    photos = () if model.endswith(".onnx") else tuple(PHOTOS)  # a graph brings its own
    return BuildOptions(
        model,
        str(folder),
        **{"batch": (1, 2, 4), "builder": "tensorrt-rtx", "proof_images": photos, **changes},  # type: ignore[arg-type]
    )


def stages(seen: list[str]) -> object:
    return lambda stage, share: seen.append(stage) if stage not in seen else None


class TestNetworks:
    """Everything a user may bring builds as FP16, by count of its arithmetic, and agrees with PyTorch."""

    def check(self, built: Built) -> None:
        assert built.engine is not None
        sidecar = built.engine.sidecar
        assert [share["source"] for share in sidecar.shares] == ["onnx", "network"]
        assert all(share["asked"] == "fp16" and share["body"] >= 0.99 for share in sidecar.shares)
        (proof,) = sidecar.proofs.values()
        assert all(parity["dice"] >= 0.999 for parity in proof.values())
        assert any(0.001 < parity["foreground"] < 0.999 for parity in proof.values()), (
            "the test needs masks that are not flat"
        )
        plan = Path(built.engine.path).read_bytes()
        assert plan == built.engine.read_plan()
        assert plan[:4] == PLAN_START, "a pure plan: nothing before it"
        assert b"unet_batch" not in plan[-4096:], "nor behind"
        if gpu.missing():
            assert not sidecar.verified_on_gpu
            assert any("the plan was not run here (no NVIDIA driver)" in note for note in built.notes)

    def test_the_bundled_model(self, tmp_path: Path) -> None:
        built = build_engine(options(zoo.resolve("classic"), tmp_path))
        self.check(built)
        (proof,) = built.proofs.values()
        assert proof["batch 1"]["dice"] >= 0.9995
        assert list(proof) == ["batch 1", "batch 2 and 1", "batch 4 and 2"]
        assert built.onnx is not None
        assert built.engine is not None
        graph, photos = onnx_model.read(built.onnx), built.engine.read_reference().pictures[:2]
        maps = onnx_model.OnnxRunner(graph.data)(photos)
        other = onnx_model.OnnxRunner(onnx_model.replace_transposed(graph).data)(photos)
        assert np.abs(maps.astype(np.int16) - other).max() <= 1, "without transposed convolutions"
        assert 0.02 < (maps > 127).mean() < 0.98

    @pytest.mark.slow
    def test_a_hundred_real_photos(self, data: Path, tmp_path: Path) -> None:
        """ONNX Runtime against PyTorch in float32; the numbers are in the sidecar.

        At 0.16 of the network's own area, where a pixel that differs weighs more, in less time;
        at its own size it is held to the same on drawn scenes, above.
        """
        changes = {"batch": (1, 1, 1), "proof_images": (str(data / "carvana" / "images"),)}
        changes |= {"size": ((64, 96),) * 3}
        built = build_engine(options(zoo.resolve("classic"), tmp_path, **changes))
        assert built.engine is not None
        (proof,) = store.load(built.engine.path).sidecar.proofs.values()
        assert proof["batch 1"]["pictures"] == 100
        assert proof["batch 1"]["dice"] >= 0.9995
        assert proof["batch 1"]["worst"] >= 0.999
        assert 0.1 < proof["batch 1"]["foreground"] < 0.4

    @pytest.mark.slow
    def test_31_million_parameters(self, tmp_path: Path) -> None:
        model = confident(1, (64, 128, 256, 512, 1024), SIZE)
        assert sum(parameter.numel() for parameter in model.model.parameters()) == pytest.approx(
            31.04e6, rel=0.001
        )
        built = build_engine(options(saved(tmp_path, model), tmp_path))
        self.check(built)
        assert built.engine is not None
        assert built.engine.sidecar.plan_bytes > 62e6

    @pytest.mark.parametrize("classes", [1, 2, 4])
    def test_one_class_and_several(self, classes: int, tmp_path: Path) -> None:
        # So that no class has only a few pixels
        model = confident(classes, size=SIZE if classes == 1 else (128, 192))
        self.check(build_engine(options(saved(tmp_path, model), tmp_path)))

    def test_a_range_of_sizes(self, small: str, tmp_path: Path) -> None:
        built = build_engine(options(small, tmp_path, size=((32, 48), SIZE, (128, 192)), batch=(2, 2, 2)))
        self.check(built)
        assert built.engine is not None
        profile = built.engine.sidecar.recipe.profile
        assert profile.holds((96, 96))
        assert not profile.holds((128, 208))
        assert str(profile) == "batch 2, 32x48..128x192 (best 64x96)"

    def test_another_profile_is_another_engine(self, small: str, built: Built, tmp_path: Path) -> None:
        other = build_engine(options(small, tmp_path, batch=(8, 8, 8)))
        assert other.engine is not None
        assert built.engine is not None
        assert other.engine.sidecar.recipe.key != built.engine.sidecar.recipe.key
        assert other.engine.sidecar.plan_sha256 != built.engine.sidecar.plan_sha256

    def test_layers_that_float16_breaks_stay_float32(self, tmp_path: Path) -> None:
        built = build_engine(options(saved(tmp_path, overflowing(confident(size=SIZE))), tmp_path))
        assert built.engine is not None
        assert built.engine.sidecar.float32 == ("down.1.0", "down.1.3")
        assert built.engine.sidecar.shares[-1]["kept"] == ("down.1.0", "down.1.3")
        assert built.engine.sidecar.shares[-1]["body"] == 1
        assert built.engine.sidecar.shares[-1]["overall"] < 0.99
        assert any("fp16 breaks down.1.0, down.1.3: kept in float32" in note for note in built.notes)
        self.check(built)


ENCODER_SIZE = (128, 192)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(
        tmp_path_factory.mktemp("encoder"), confident(size=ENCODER_SIZE, encoder="efficientnet-lite0")
    )


@pytest.fixture(scope="module")
def engine(model: str, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_engine(options(model, tmp_path_factory.mktemp("engines")))


class TestEncoder:
    """A U-Net on an encoder goes the way that a classic one goes."""

    def test_is_built_and_proven(self, engine: Built) -> None:
        TestNetworks().check(engine)
        assert engine.engine is not None
        sidecar = store.load(engine.engine.path).sidecar
        assert (sidecar.spec.architecture, sidecar.spec.encoder) == ("encoder-unet", "efficientnet-lite0")
        assert sidecar.shares[-1]["convolutions"] == 57
        assert "transposed" not in sidecar.built

    def test_the_same_recipe_finds_it(self, model: str, engine: Built) -> None:
        assert engine.engine is not None
        again = build_engine(options(model, Path(engine.engine.path).parent))
        assert again.was_there

    def test_from_its_graph_without_the_checkpoint(self, engine: Built, tmp_path: Path) -> None:
        assert engine.onnx is not None
        TestNetworks().check(build_engine(options(engine.onnx, tmp_path)))

    def test_the_graph_alone(self, model: str, tmp_path: Path) -> None:
        built = build_engine(options(model, tmp_path, onnx_only=True))
        assert built.onnx is not None
        assert built.engine is None
        assert onnx_model.read(built.onnx).spec.encoder == "efficientnet-lite0"

    def test_each_file_says_what_it_is(self, model: str, engine: Built) -> None:
        assert engine.onnx is not None
        assert engine.engine is not None
        for file in (model, engine.onnx, engine.engine.path):
            shown = CliRunner().invoke(main, ["inspect", file]).output
            assert "U-Net on efficientnet-lite0, decoder widths 8, 8, 8, 8" in shown
            data = json.loads(CliRunner().invoke(main, ["inspect", file, "--json"]).stdout)
            network = data.get("spec", data)
            assert (network["architecture"], network["encoder"]) == ("encoder-unet", "efficientnet-lite0")
            assert network["widths"] == [8, 8, 8, 8]

    def test_a_size_that_its_stride_does_not_divide(self, model: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="heights and widths that 32 divides") as caught:
            build_engine(options(model, tmp_path, size=((160, 240),) * 3))
        assert caught.value.hint == "use --size 160x256"


PLAN_START = b"vtrt"  # how plans of TensorRT-RTX begin


class TestRequests:
    def test_stages_are_reported(self, small: str, tmp_path: Path) -> None:
        shares: dict[str, list[float]] = {}
        build_engine(
            options(small, tmp_path), lambda stage, share: shares.setdefault(stage, []).append(share)
        )
        assert list(shares)[:3] == ["export to ONNX", "PyTorch in float32", "compare ONNX with PyTorch"]
        (build,) = [stage for stage in shares if stage.startswith("build with tensorrt-rtx ")]
        assert len(shares[build]) > 20
        assert shares[build] == sorted(shares[build])
        assert 0 <= shares[build][0] <= shares[build][-1] <= 1

    def test_float32_that_claims_to_be_half_is_refused(self, small: str, tmp_path: Path) -> None:
        graph = build_engine(options(small, tmp_path, precision="fp32", onnx_only=True)).onnx
        assert graph is not None
        with pytest.raises(
            BackendError, match=r"asked for fp16, but only 0\.0% of the convolutions' arithmetic is fp16"
        ):
            build_engine(options(graph, tmp_path, precision="fp16"))
        assert not list(tmp_path.glob("*.plan"))

    def test_a_graph_is_built_in_its_own_precision(self, small: str, tmp_path: Path) -> None:
        graph = build_engine(options(small, tmp_path, precision="fp32", onnx_only=True)).onnx
        assert graph is not None
        built = build_engine(options(graph, tmp_path))
        assert built.engine is not None
        assert built.engine.sidecar.recipe.precision == "fp32"

    def test_a_graph_that_came_alone_is_proven_against_onnx_runtime(self, small: str, tmp_path: Path) -> None:
        """Of a graph in float32 other pictures, too, need neither PyTorch nor the checkpoint."""
        graph = build_engine(options(small, tmp_path, precision="fp32", onnx_only=True)).onnx
        assert graph is not None
        Path(graph).with_suffix(".npz").unlink()
        built = build_engine(options(graph, tmp_path, proof_images=tuple(PHOTOS)))
        assert built.engine is not None
        reference = built.engine.read_reference()
        assert reference.made_by == "ONNX Runtime"
        exact = onnx_model.OnnxRunner(onnx_model.read(graph).data)(reference.pictures)
        assert np.array_equal(exact, reference.maps)

    def test_a_graph_that_float16_breaks_is_mended_without_a_builder_too(self, tmp_path: Path) -> None:
        built = build_engine(
            options(saved(tmp_path, overflowing(confident(size=SIZE))), tmp_path, onnx_only=True)
        )
        assert built.onnx is not None
        assert onnx_model.read(built.onnx).float32 == ("down.1.0", "down.1.3")

    @pytest.mark.parametrize("name", ["../../evil", "/etc/x", "..", "a b/ü\n\x1b[31m", "C:\\x", "n" * 300])
    def test_a_models_name_leads_nowhere(self, name: str, built: Built) -> None:
        assert built.engine is not None
        stem = built.engine.sidecar.recipe.stem(replace(built.engine.sidecar.spec, name=name))
        assert re.fullmatch(r"[\w-][\w.-]{0,100}", stem, re.ASCII)

    def test_from_onnx_without_the_checkpoint(self, small: str, built: Built, tmp_path: Path) -> None:
        graph = build_engine(options(small, tmp_path / "here", onnx_only=True)).onnx
        assert graph is not None
        again = build_engine(options(graph, tmp_path / "there"))
        assert again.engine is not None
        assert built.engine is not None
        assert again.engine.sidecar.recipe == built.engine.sidecar.recipe

    def test_onnx_and_pictures_of_ones_own(self, small: str, tmp_path: Path) -> None:
        graph = build_engine(options(small, tmp_path, onnx_only=True)).onnx
        assert graph is not None
        with pytest.raises(UsageError, match="a graph in fp16 cannot tell what its masks are in float32"):
            build_engine(options(graph, tmp_path, proof_images=tuple(PHOTOS)))

    def test_onnx_of_another_size(self, small: str, tmp_path: Path) -> None:
        graph = build_engine(options(small, tmp_path, onnx_only=True)).onnx
        assert graph is not None
        with pytest.raises(UsageError, match="takes 64x96 only"):
            build_engine(options(graph, tmp_path, size=((32, 48),) * 3))

    def test_onnx_whose_pictures_are_missing(self, small: str, tmp_path: Path) -> None:
        graph = build_engine(options(small, tmp_path, onnx_only=True)).onnx
        assert graph is not None
        Path(graph).with_suffix(".npz").unlink()
        with pytest.raises(BackendUnavailable, match="pictures to prove the engine on"):
            build_engine(options(graph, tmp_path))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"batch": (0, 1, 1)}, "batch 0,1,1"),
            ({"precision": "int4"}, "precision 'int4' is not known"),
            ({"builder": "trtexec"}, "builder 'trtexec' is not known"),
            ({"hardware_compat": "all"}, "hardware_compat 'all' is not known"),
            ({"batch": (4, 2, 8)}, "batch 4,2,8"),
            ({"size": ((64, 96), (32, 48), (64, 96))}, "size 64x96,32x48,64x96"),
            ({"size": ((64, 90),) * 3}, "4 divides"),
            ({"hardware_compat": "ampere+"}, "not in tensorrt-rtx"),
        ],
    )
    def test_what_makes_no_sense(
        self, small: str, tmp_path: Path, changes: dict[str, object], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            build_engine(options(small, tmp_path, **changes))
        assert not list(tmp_path.glob("*.plan"))

    def test_what_the_builder_cannot_do_is_its_own_sentence(
        self, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TensorRT-RTX 1.7 has no transposed convolution in bfloat16; what replaces it is taken away here."""
        monkeypatch.setattr(onnx_model, "replace_transposed", lambda graph: graph)
        with pytest.raises(BackendError, match=r"cannot build the engine: .*deconv") as caught:
            build_engine(options(small, tmp_path, precision="bf16"))
        assert "--precision fp16" in caught.value.hint

    def test_a_stop_during_the_build(self, small: str, tmp_path: Path) -> None:
        """Ctrl-C arrives in Python code that TensorRT calls: it must come out as what it is."""

        def interrupt(stage: str, share: float) -> None:
            if stage.startswith("build with") and share > 0.1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_engine(options(small, tmp_path), interrupt)
        assert not list(tmp_path.glob("*.plan"))
        assert not list(tmp_path.glob("*.json"))

    def test_ctrl_c_is_not_lost_in_callbacks(self, small: str, tmp_path: Path) -> None:
        """The handler runs in whichever line of Python comes next, mostly in TensorRT's log: raised there it
        would vanish.
        """
        for moment in (0.02, 0.3, 0.7):
            pressed = []

            def interrupt(
                stage: str, share: float, moment: float = moment, pressed: list[int] = pressed
            ) -> None:
                if stage.startswith("build with") and share > moment and not pressed:
                    pressed.append(1)
                    signal.raise_signal(signal.SIGINT)

            before = signal.getsignal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                build_engine(options(small, tmp_path), interrupt)
            assert signal.getsignal(signal.SIGINT) is before
            assert not list(tmp_path.glob("*.plan"))

    def test_a_timing_cache_that_cannot_be_kept_costs_nothing_else(
        self, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def compiled(*arguments: object, **options: object) -> Compiled:
            options["keep_timings"](b"timings")  # type: ignore[operator]
            return compile_plan(*arguments, **options)  # type: ignore[arg-type]

        (tmp_path / "file").write_text("")
        monkeypatch.setattr(builders, "compile_plan", compiled)
        built = build_engine(options(small, tmp_path, timing_cache=str(tmp_path / "file" / "x.cache")))
        assert built.engine is not None
        assert any("the timing cache was not kept" in note for note in built.notes)

    def test_without_pytorch_a_checkpoint_is_a_sentence(
        self, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(path: str) -> None:
            raise ModuleNotFoundError("No module named 'torch'")

        monkeypatch.setattr(checkpoint, "load", missing)
        with pytest.raises(BackendUnavailable, match="needs PyTorch: No module named 'torch'") as caught:
            build_engine(options(small, tmp_path))
        assert "--onnx-only" in caught.value.hint

    @needs_permissions
    def test_a_folder_that_cannot_be_written(self, small: str, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError):
            build_engine(options(small, tmp_path / "engines"))

    def test_a_file_in_the_place_of_the_folder(self, small: str, tmp_path: Path) -> None:
        (tmp_path / "engines").write_text("")
        with pytest.raises(OutputError, match="engines") as caught:
            build_engine(options(small, tmp_path / "engines"))
        assert caught.value.hint == "choose another folder with --engines-dir"


class TestProofPictures:
    def test_scenes_by_default(self) -> None:
        pictures, note = proof_pictures((), fake_spec(SIZE), SIZE)
        assert pictures.shape == (16, *SIZE, 3)
        assert pictures.std() > 20
        assert note == ""

    def test_a_bad_file_is_named_and_the_others_are_used(self, tmp_path: Path) -> None:
        for number in range(3):
            Image.fromarray(np.full((40, 60, 3), 80 * number, np.uint8)).save(tmp_path / f"{number}.png")
        (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
        pictures, note = proof_pictures((str(tmp_path),), fake_spec(SIZE), SIZE)
        assert len(pictures) == 3
        assert note.startswith("1 of 4 proof pictures cannot be read")
        assert "bad.png" in note

    def test_are_seen_in_the_range_of_the_training(self, tmp_path: Path) -> None:
        levels = np.linspace(900, 1100, 2400).reshape(40, 60).astype(np.uint16)
        Image.fromarray(levels).save(tmp_path / "x.png")
        spec = replace(fake_spec(SIZE), training={"range": "900,1100"})
        assert np.ptp(proof_pictures((str(tmp_path),), fake_spec(SIZE), SIZE)[0]) < 128
        assert np.ptp(proof_pictures((str(tmp_path),), spec, SIZE)[0]) > 240

    def test_none_that_can_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
        with pytest.raises(UsageError, match=r"none of the 1 proof pictures.*bad\.png"):
            proof_pictures((str(tmp_path),), fake_spec(SIZE), SIZE)
        with pytest.raises(SourceError):
            proof_pictures((str(tmp_path / "no-such"),), fake_spec(SIZE), SIZE)

    def test_at_most_a_hundred_spread_evenly(self, tmp_path: Path) -> None:
        for number in range(205):
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"{number:03}.png")
        pictures, _ = proof_pictures((str(tmp_path),), fake_spec((16, 16)), (16, 16))
        assert len(pictures) == 100
        assert (pictures[0].mean(), pictures[-1].mean()) == (0, 204)

    def test_pictures_that_show_nothing_are_said_to_prove_little(self, small: str, tmp_path: Path) -> None:
        Image.fromarray(np.full((64, 96, 3), 255, np.uint8)).save(tmp_path / "white.png")
        model = confident(size=SIZE)
        model.model.head.bias -= 1e4  # sees its class nowhere
        built = build_engine(
            options(saved(tmp_path, model), tmp_path, proof_images=(str(tmp_path / "white.png"),))
        )
        assert any("the proof is weak: 0.0% of its pictures' pixels" in note for note in built.notes)


class TestCache:
    def test_the_second_build_finds_the_first(self, small: str, tmp_path: Path) -> None:
        first = build_engine(options(small, tmp_path))
        seen: list[str] = []
        second = build_engine(options(small, tmp_path), stages(seen))
        assert second.was_there
        assert seen == []
        assert second.engine is not None
        assert first.engine is not None
        assert second.engine.sidecar.plan_sha256 == first.engine.sidecar.plan_sha256
        assert not build_engine(options(small, tmp_path, force=True)).was_there

    @pytest.mark.parametrize(
        "damage", ["byte", "cut", "no plan", "no sidecar", "no pictures", "half a sidecar", "another key"]
    )
    def test_what_is_damaged_is_built_again(
        self, small: str, built: Built, tmp_path: Path, damage: str
    ) -> None:
        harm(copied(built, tmp_path), damage)
        again = build_engine(options(small, tmp_path))
        assert not again.was_there
        assert again.engine is not None
        assert again.engine.read_plan()[:4] == PLAN_START

    def test_another_version_builds_again(
        self, small: str, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = copied(built, tmp_path)
        monkeypatch.setattr(sys.modules["tensorrt_rtx"], "__version__", "1.99.0")
        second = build_engine(options(small, tmp_path)).engine
        assert second is not None
        assert second.path != path
        assert second.sidecar.recipe.version == "1.99.0"

    def test_what_decides_is_in_the_key(self, built: Built) -> None:
        assert built.engine is not None
        recipe = built.engine.sidecar.recipe
        others = [
            replace(recipe, source_sha256="0" * 64),
            replace(recipe, precision="fp32"),
            replace(recipe, profile=Profile((1, 2, 8), (SIZE,) * 3)),
            replace(recipe, profile=Profile((1, 2, 4), ((64, 64), SIZE, SIZE))),
            replace(recipe, flavour="tensorrt"),
            replace(recipe, version="1.6"),
            replace(recipe, target="sm_90"),
            replace(recipe, options={"opt_level": 5}),
            replace(recipe, system="win32-amd64"),
            replace(recipe, graph=99),
        ]
        assert len({other.key for other in [recipe, *others]}) == len(others) + 1

    def test_ids_of_a_background_and_one_class_are_built_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As earlier releases built them, from the same checkpoint and under the same key."""
        model = confident(2, size=(128, 192))
        table = ClassTable(("background", "car"), model.spec.classes.colours)
        path = saved(tmp_path, replace(model, spec=replace(model.spec, classes=table)))
        with monkeypatch.context() as earlier:
            earlier.setattr(ClassTable, "foreground", None)
            old = build_engine(options(path, tmp_path))
        assert old.engine is not None
        assert old.engine.sidecar.spec.output == "class_ids"
        assert old.onnx is not None
        with pytest.raises(CheckpointError, match="computes ids of a background and one class") as caught:
            build_engine(options(old.onnx, tmp_path))
        assert "--onnx-only" in caught.value.hint
        new = build_engine(options(path, tmp_path))
        assert new.engine is not None
        assert (new.was_there, new.engine.path) == (False, old.engine.path)
        assert new.engine.sidecar.spec.output == "probability"
        assert build_engine(options(path, tmp_path)).was_there

    def test_a_recipe_keeps_its_key(self) -> None:
        """Else every engine built by an earlier version would be built again."""
        recipe = EngineRecipe(
            source_sha256="ab" * 32,
            precision="fp16",
            profile=Profile((1, 8, 32), (SIZE,) * 3),
            flavour="tensorrt-rtx",
            version="1.7.1",
            target="any",
            system="linux-x86_64",
            options={"opt_level": 3},
            graph=1,
        )
        assert recipe.key == "f211602d2150c094"

    def test_the_sidecar_survives_the_round_trip(self, built: Built) -> None:
        assert built.engine is not None
        loaded = store.load(built.engine.path)
        assert loaded.sidecar.as_dict() == json.loads(json.dumps(built.engine.sidecar.as_dict()))
        assert store.load(os.path.splitext(built.engine.path)[0] + ".json") == loaded

    def test_two_processes(self, small: str, tmp_path: Path) -> None:
        """One builds, the other waits and finds it."""
        said, go_on = [tmp_path / f"{number}.txt" for number in range(2)], tmp_path / "go on"
        processes = [start(small, tmp_path, build_and_say, str(go_on), output=file) for file in said]
        try:
            while not any(file.exists() and "waiting" in file.read_text() for file in said):
                assert [process.poll() for process in processes] == [None, None]
                time.sleep(0.005)
        finally:
            go_on.touch()
        assert [process.wait(PATIENCE) for process in processes] == [0, 0], (
            tmp_path / "errors.txt"
        ).read_text()
        lines = [file.read_text().split() for file in said]
        assert sorted(words[-1] for words in lines) == ["built", "found"]
        assert sum("waiting" in words for words in lines) == 1

    @needs_posix
    def test_killed_while_building(self, small: str, tmp_path: Path) -> None:
        tmp_path.joinpath(".ub-00000000-1-00000000.part").write_bytes(b"half a plan")
        os.utime(tmp_path / ".ub-00000000-1-00000000.part", (0, 0))
        assert start(small, tmp_path, build_and_die).wait(PATIENCE) == -signal.SIGKILL
        assert not list(tmp_path.glob("*.json")), "nothing that a later run trusts"
        assert list(tmp_path.glob("*.onnx")), "it was killed after the export"
        assert not build_engine(options(small, tmp_path)).was_there
        assert not list(tmp_path.glob("*.part")), "halves of files are cleared away"

    @needs_posix
    def test_killed_between_the_plan_and_its_sidecar(self, small: str, built: Built, tmp_path: Path) -> None:
        path = copied(built, tmp_path)
        assert start(small, tmp_path, build_and_die_late).wait(PATIENCE) == -signal.SIGKILL
        with pytest.raises(BackendUnavailable, match="not the plan that was built"):
            store.load(path).read_plan()


class RefusingBuilder:
    """TensorRT-RTX's builder without kernels for transposed convolutions, as 8.6 is without cuDNN."""

    words = "Could not find any implementation for node {}."
    builder = getattr(sys.modules["tensorrt_rtx"], "Builder", None)

    def __init__(self, logger: Any) -> None:
        assert self.builder is not None
        self._builder, self._logger = self.builder(logger), logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        trt = sys.modules["tensorrt_rtx"]
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        names = [layer.name for layer in layers if layer.type == trt.LayerType.DECONVOLUTION]
        if not names:
            return self._builder.build_serialized_network(network, config)
        self._logger.log(trt.ILogger.ERROR, "10: " + self.words.format(names[0]))
        return None


class TestWithoutKernels:
    """Transposed convolutions that TensorRT cannot compute are built as the equal convolutions."""

    def check(self, built: Built) -> None:
        assert built.engine is not None
        sidecar = store.load(built.engine.path).sidecar
        assert sidecar.built["transposed"] == "the equal 1x1 convolutions and DepthToSpace"
        (note,) = [note for note in built.notes if "transposed" in note]
        assert note.startswith(
            "transposed convolutions are built as the equal 1x1 convolutions and DepthToSpace: "
        )
        assert [share["source"] for share in sidecar.shares] == ["onnx", "network"]
        assert all(share["body"] == 1 for share in sidecar.shares)

    def test_from_a_checkpoint(self, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["tensorrt_rtx"], "Builder", RefusingBuilder)
        built = build_engine(options(small, tmp_path))
        self.check(built)
        shown = CliRunner().invoke(main, ["inspect", built.engine.path]).output  # type: ignore[union-attr]
        assert "convolutions are the equal 1x1 convolutions and DepthToSpace" in shown
        again = build_engine(options(small, tmp_path))
        assert again.was_there, "it is found under the recipe that was asked for"
        assert built.onnx is not None
        graph = onnx_model.read(built.onnx)
        assert b"ConvTranspose" in graph.data, (
            "what is written down is the graph that any TensorRT can be given"
        )

    def test_from_a_graph(self, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """And without PyTorch, as on the machine that TensorRT 8.6 runs on."""
        exported = build_engine(options(small, tmp_path / "a", onnx_only=True))
        assert exported.onnx is not None
        monkeypatch.setattr(sys.modules["tensorrt_rtx"], "Builder", RefusingBuilder)
        self.check(build_engine(options(exported.onnx, tmp_path / "b")))

    def test_bfloat16(self, small: str, tmp_path: Path) -> None:
        """TensorRT-RTX 1.7 refuses its transposed convolutions by itself."""
        self.check(build_engine(options(small, tmp_path, precision="bf16")))

    def test_another_layer_without_a_kernel_is_an_error(
        self, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And what was timed until then is kept."""
        words = "Could not find any implementation for node node_conv2d_1."
        monkeypatch.setattr(sys.modules["tensorrt_rtx"], "Builder", RefusingBuilder)
        monkeypatch.setattr(RefusingBuilder, "words", words)
        timed = SimpleNamespace(serialize=lambda: b"timings")
        monkeypatch.setattr(compiler, "_set_timing_cache", lambda *arguments: timed)
        with pytest.raises(BackendError, match="any implementation for node node_conv2d_1"):
            build_engine(options(small, tmp_path, timing_cache=str(tmp_path / "x.cache")))
        assert not list(tmp_path.glob("*.plan"))
        assert (tmp_path / "x.cache").read_bytes() == b"timings"
        timed.serialize = lambda: None
        with pytest.raises(BackendError, match="any implementation for node node_conv2d_1"):
            build_engine(options(small, tmp_path, timing_cache=str(tmp_path / "y.cache")))
        assert not (tmp_path / "y.cache").exists()


def copied(built: Built, folder: Path) -> str:
    """The path of a copy of the engine."""
    assert built.engine is not None
    source = Path(built.engine.path)
    shutil.copytree(source.parent, folder, dirs_exist_ok=True)
    return str(folder / source.name)


def start(
    model: str, folder: Path, program: Callable[..., None], *more: str, output: Path | None = None
) -> Forked:
    return Forked(program, options(model, folder), *more, output=output, errors=folder / "errors.txt")


class TestWithoutBuilders:
    @pytest.fixture(autouse=True)
    def none_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flavours, "MODULES", dict.fromkeys(flavours.NAMES, "no_such_module"))
        monkeypatch.setattr(openvino, "installed_version", lambda name: None)

    def test_the_graph_is_written_and_the_fix_is_named(self, small: str, tmp_path: Path) -> None:
        built = build_engine(options(small, tmp_path, builder="auto"))
        assert built.engine is None
        assert built.onnx is not None
        assert onnx_model.read(built.onnx).precision == "fp16"
        assert built.missing == (
            "no engine was built: tensorrt is not installed; tensorrt-rtx is not installed; "
            "openvino is not installed"
        )
        assert built.fix.startswith('pip install "unet-batch[')
        assert built.proofs

    def test_the_one_that_was_asked_for_is_an_error(self, small: str, tmp_path: Path) -> None:
        with pytest.raises(BackendUnavailable, match="tensorrt-rtx is not installed") as caught:
            build_engine(options(small, tmp_path))
        assert caught.value.hint == 'pip install "unet-batch[tensorrt-rtx]"'


class TestFlavours:
    def test_the_real_one(self) -> None:
        flavour = Flavour("tensorrt-rtx")
        assert flavour.version == flavours.installed_version("tensorrt-rtx")
        assert flavour.strongly_typed
        assert not flavour.needs_gpu_to_build

    def test_an_unknown_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["tensorrt_rtx"], "__version__", "2.0.1")
        with pytest.raises(
            BackendUnavailable, match=r"tensorrt-rtx 2\.0\.1 is installed, this program knows 1\.x"
        ):
            Flavour("tensorrt-rtx")

    def test_one_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "broken_trt.py").write_text(
            "raise OSError('libnvinfer.so.10: cannot open shared object file')"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(flavours, "MODULES", {"tensorrt": "broken_trt"})
        with pytest.raises(BackendUnavailable, match=r"tensorrt does not load: libnvinfer\.so\.10"):
            Flavour("tensorrt")

    def test_a_runtime_is_not_even_tried_without_a_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "driver", lambda: None)
        with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
            Flavour("tensorrt-rtx").runtime()


def test_reading_what_is_no_engine(tmp_path: Path, built: Built) -> None:
    with pytest.raises(CheckpointError, match="needs its sidecar, and there is none"):
        store.load(str(tmp_path / "x.plan"))
    for text in ("", "[]", "{}", '{"format": "unet-batch engine"}', "[" * 100_000):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(CheckpointError, match="not the sidecar of an engine"):
            store.load(str(tmp_path / "x.plan"))
    assert built.engine is not None
    newer = built.engine.sidecar.as_dict() | {"format_version": 99}
    (tmp_path / "x.json").write_text(json.dumps(newer))
    with pytest.raises(CheckpointError, match="version 99, this program reads up to 1"):
        store.load(str(tmp_path / "x.plan"))
