"""Model repositories for Triton: what they say, checked against its schema, and how they are written."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.helpers import triton_config
from tests.helpers.disk import fail_with, names
from tests.helpers.graphs import openvino_engine, saved_graph
from unet_batch.engine import onnx_model, store, triton
from unet_batch.engine.compiler import Profile
from unet_batch.engine.onnx_model import OnnxModel, OnnxRunner
from unet_batch.engine.proof import Reference
from unet_batch.engine.sidecar import EngineRecipe, Sidecar
from unet_batch.engine.store import Engine
from unet_batch.engine.triton import Servable, check, from_engine, from_graph, publish
from unet_batch.errors import OutputError, UsageError
from unet_batch.inference import postprocess
from unet_batch.media import geometry
from unet_batch.testing import fake_spec
from unet_batch.types import ClassTable, ModelSpec, Size

ONE = ((160, 240),) * 3


@pytest.fixture
def graph() -> OnnxModel:
    return onnx_model.read(saved_graph())


def plan(
    folder: Path,
    spec: ModelSpec | None = None,
    batch: tuple[int, int, int] = (1, 8, 32),
    size: tuple[Size, Size, Size] = ONE,
) -> Engine:
    """An engine of TensorRT, which no test can build: the bytes are none, the sidecar is one."""
    recipe = EngineRecipe("5" * 64, "fp16", Profile(batch, size), "tensorrt", "10.9.0", "sm_90", {})
    data = b"a plan"
    sidecar = Sidecar(
        spec or fake_spec(), recipe, onnx_model.sha256(data), len(data), (), (), {}, True, {"at": 0.0}
    )
    pictures = np.zeros((1, 4, 4, 3), np.uint8)
    return store.install(str(folder), sidecar, data, Reference(pictures, pictures[..., 0], "PyTorch"))


def config(servable: Servable) -> Any:
    return triton_config.parse(servable.interface + servable.tuning)


def facts(servable: Servable) -> Any:
    return json.loads(config(servable).parameters["unet_batch"].string_value)


class TestConfiguration:
    def test_of_a_plan(self, tmp_path: Path) -> None:
        found = config(from_engine(plan(tmp_path)))
        assert (found.name, found.backend, found.max_batch_size) == ("fake", "tensorrt", 32)
        (taken,), (given) = found.input, found.output[0]
        assert (taken.name, list(taken.dims), taken.data_type) == ("pictures", [160, 240, 3], 2)  # TYPE_UINT8
        assert (given.name, list(given.dims), given.data_type) == ("maps", [160, 240], 2)
        assert found.HasField("dynamic_batching")
        assert [(group.count, group.kind) for group in found.instance_group] == [(1, 1)]  # KIND_GPU

    @pytest.mark.parametrize(("batch", "first"), [((1, 1, 1), [1]), ((4, 4, 4), [4]), ((2, 4, 8), [-1])])
    def test_of_a_plan_that_takes_no_batch_of_one_and_more(
        self, tmp_path: Path, batch: tuple[int, int, int], first: list[int]
    ) -> None:
        found = config(from_engine(plan(tmp_path, batch=batch)))
        assert found.max_batch_size == 0
        assert list(found.input[0].dims) == [*first, 160, 240, 3]
        assert list(found.output[0].dims) == [*first, 160, 240]
        assert not found.HasField("dynamic_batching")

    def test_of_a_range_of_sizes(self, tmp_path: Path) -> None:
        found = config(from_engine(plan(tmp_path, size=((160, 240), (160, 480), (160, 640)))))
        assert list(found.input[0].dims) == [160, -1, 3]
        assert list(found.output[0].dims) == [160, -1]

    def test_of_a_graph_is_what_onnx_runtime_reads(self, graph: OnnxModel) -> None:
        import onnxruntime

        servable = from_graph(graph, 16)
        found = config(servable)
        session = onnxruntime.InferenceSession(servable.files["model.onnx"])
        for said, real in ((found.input, session.get_inputs()), (found.output, session.get_outputs())):
            assert [each.name for each in said] == [each.name for each in real]
            assert [each.type for each in real] == ["tensor(uint8)"]
            assert [list(each.dims) for each in said] == [each.shape[1:] for each in real]
            assert isinstance(real[0].shape[0], str)  # free
        assert (found.backend, found.max_batch_size, found.instance_group[0].kind) == ("onnxruntime", 16, 0)

    def test_of_a_graph_with_a_batch_and_any_size(self, graph: OnnxModel) -> None:
        found = config(from_graph(replace(graph, batch=2, size=None), 16))
        assert (found.max_batch_size, list(found.input[0].dims)) == (0, [2, -1, -1, 3])

    def test_of_openvino_is_what_openvino_reads(self, tmp_path: Path) -> None:
        engine = openvino_engine()
        servable = from_engine(engine)
        version = publish(str(tmp_path), servable)
        import openvino

        model = openvino.Core().read_model(os.path.join(version, "model.xml"))
        found = config(servable)
        assert (found.backend, found.max_batch_size, found.instance_group[0].kind) == ("openvino", 0, 2)
        for said, real in ((found.input, model.inputs), (found.output, model.outputs)):
            assert [{each.name} for each in said] == [each.get_names() for each in real]
            assert [list(each.dims) for each in said] == [list(each.get_shape()) for each in real]
            assert [each.get_element_type().get_type_name() for each in real] == ["u8"]
        bf16 = replace(engine.sidecar.recipe, precision="bf16")
        hinted = config(from_engine(replace(engine, sidecar=replace(engine.sidecar, recipe=bf16))))
        assert hinted.parameters["HINT_BF16"].string_value == "YES"
        assert ("HINT_BF16" in found.parameters) == (engine.sidecar.recipe.precision == "bf16")

    def test_tells_a_client_what_maps_mean(self, tmp_path: Path) -> None:
        one = replace(fake_spec(), threshold=0.3)
        assert facts(from_engine(plan(tmp_path, one))) == {
            "output": "probability",
            "classes": list(one.classes.names),
            "colours": [list(colour) for colour in one.classes.colours],
            "threshold": 0.3,
        }
        several = replace(
            one,
            classes=ClassTable(("a", "b", "c"), ((0, 0, 0), (1, 2, 3), (4, 5, 6))),
            output="class_ids",
            in_channels=4,
            training={"range": "percentile"},
        )
        said = facts(from_engine(plan(tmp_path, several)))
        assert (said["output"], said["classes"]) == ("class_ids", ["a", "b", "c"])
        assert (said["channels"], said["range"]) == ([1, 2, 3, 4], "percentile")
        assert "threshold" not in said

    @given(st.text(st.characters(codec="utf-8")))
    def test_any_text_is_read_as_it_was(self, text: str) -> None:
        found = triton_config.parse(f"name: {triton._quoted(text)}")
        assert found.name == text

    def test_the_schema_refuses_what_is_not_in_it(self) -> None:
        for wrong in ("batch: 1", "max_batch_size: 'x'", "input [ { data_type: TYPE_U8 } ]", 'name: "a'):
            with pytest.raises(Exception, match=r"\d+:\d+"):
                triton_config.parse(wrong)


class TestCheck:
    def test_what_triton_does_not_load(self) -> None:
        with pytest.raises(UsageError, match="Triton loads plans of TensorRT, and none of tensorrt-rtx"):
            check("models", "tensorrt-rtx", Profile((1, 8, 32), ONE))
        with pytest.raises(UsageError, match="one size, not a range"):
            check("models", "openvino", Profile((1, 1, 1), (ONE[0], ONE[0], (320, 480))))
        with pytest.raises(UsageError, match="a folder expected"):
            check("s3://bucket/models", None, Profile((1, 8, 32), ONE))

    def test_what_it_does(self) -> None:
        check("models", "tensorrt", Profile((1, 8, 32), (ONE[0], ONE[0], (320, 480))))
        check("models", "openvino", Profile((1, 1, 1), ONE))
        check("models", None, Profile((1, 8, 32), ONE))


def files(servable: Servable, data: bytes) -> Servable:
    return replace(servable, files={"model.plan": data})


class TestPublish:
    @pytest.fixture
    def servable(self, tmp_path: Path) -> Servable:
        return from_engine(plan(tmp_path / "engines"))

    @pytest.fixture
    def models(self, tmp_path: Path) -> Path:
        return tmp_path / "models"

    def test_the_first_version(self, servable: Servable, models: Path) -> None:
        assert publish(str(models), servable) == str(models / "fake" / "1")
        assert names(models) == ["fake"]
        assert names(models / "fake") == ["1", "config.pbtxt"]
        assert (models / "fake" / "1" / "model.plan").read_bytes() == b"a plan"
        written = (models / "fake" / "config.pbtxt").read_text(encoding="utf-8")
        assert triton_config.parse(written) == config(servable)

    def test_the_same_is_there_already(self, servable: Servable, models: Path) -> None:
        assert publish(str(models), servable) == publish(str(models), servable)
        assert names(models / "fake") == ["1", "config.pbtxt"]

    def test_another_is_the_next_version_and_what_a_person_changed_stays(
        self, servable: Servable, models: Path
    ) -> None:
        publish(str(models), servable)
        path = models / "fake" / "config.pbtxt"
        path.write_text(path.read_text().replace("count: 1", "count: 2"))
        (models / "fake" / "9").mkdir()
        (models / "fake" / "notes").mkdir()
        assert publish(str(models), files(servable, b"better")) == str(models / "fake" / "10")
        assert triton_config.parse(path.read_text()).instance_group[0].count == 2

    def test_another_model_is_not_written_over(
        self, servable: Servable, models: Path, tmp_path: Path
    ) -> None:
        publish(str(models), servable)
        before = (models / "fake" / "config.pbtxt").read_bytes()
        other = from_engine(plan(tmp_path / "engines", batch=(1, 8, 64)))
        with pytest.raises(UsageError, match="is of a model with another backend, other inputs") as caught:
            publish(str(models), other)
        assert "--triton" in caught.value.hint
        assert (models / "fake" / "config.pbtxt").read_bytes() == before
        assert names(models / "fake") == ["1", "config.pbtxt"]

    def test_a_folder_that_is_no_model(self, servable: Servable, models: Path) -> None:
        (models / "fake").mkdir(parents=True)
        with pytest.raises(UsageError, match=r"config\.pbtxt cannot be read: No such file"):
            publish(str(models), servable)

    @pytest.mark.parametrize("there", [False, True])
    def test_a_full_disk_leaves_no_half(
        self, servable: Servable, models: Path, there: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if there:
            publish(str(models), servable)
        monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
        with pytest.raises(OutputError, match="the disk is full") as caught:
            publish(str(models), files(servable, b"better"))
        assert "--triton" in caught.value.hint
        assert names(models) == (["fake"] if there else [])
        assert not there or names(models / "fake") == ["1", "config.pbtxt"]

    def test_several_at_once_get_a_version_each(self, servable: Servable, models: Path) -> None:
        begin = threading.Barrier(4)
        versions: list[str] = []

        def work(number: int) -> None:
            begin.wait()
            versions.append(publish(str(models), files(servable, b"%d" % number)))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(os.path.basename, versions)) == ["1", "2", "3", "4"]
        found = {(models / "fake" / name / "model.plan").read_bytes() for name in "1234"}
        assert found == {b"0", b"1", b"2", b"3"}


class TestTheClientInTheDocuments:
    """It is run as it stands there; the maps come from ONNX Runtime, from the file in the repository."""

    @pytest.mark.parametrize("classes", [1, 3])
    def test_makes_the_masks_of_run(
        self, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        graph = onnx_model.read(saved_graph(classes=classes))
        graph = replace(graph, spec=replace(graph.spec, name="cars"))
        version = publish(str(tmp_path), from_graph(graph, 16))
        runner = OnnxRunner((Path(version) / "model.onnx").read_bytes())
        segment = load_client(tmp_path / "cars" / "config.pbtxt", runner, monkeypatch)
        random = np.random.default_rng(5)
        for height, width in ((90, 110), (64, 96), (40, 20)):
            coarse = random.integers(0, 255, (4, 4, 3), np.uint8)
            picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
            placement = geometry.place(picture.shape[:2], graph.size or (0, 0))
            map = runner(geometry.to_network(picture, placement)[None])[0]
            if classes == 1:
                mask = postprocess.mask_from_map(map, placement, graph.spec.threshold)
            else:
                mask = postprocess.class_ids(map, placement, classes)
            found = segment(picture)
            assert found.shape == mask.shape
            assert found.dtype == mask.dtype
            assert len(np.unique(mask)) > 1  # or it would prove nothing
            assert (found == mask).mean() >= (0.99 if classes == 1 else 0.97)  # see the page


def load_client(
    path: Path, runner: OnnxRunner, monkeypatch: pytest.MonkeyPatch
) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """The function of the client in the page on serving, with something in place of the server."""
    from google.protobuf import json_format

    text = path.read_text(encoding="utf-8")

    class InferInput:
        def __init__(self, name: str, shape: list[int], kind: str) -> None:
            assert (name, kind) == ("pictures", "UINT8")
            self.shape = shape

        def set_data_from_numpy(self, data: np.ndarray[Any, Any]) -> None:
            assert (data.dtype, list(data.shape)) == (np.uint8, self.shape)
            self.data = data

    class InferenceServerClient:
        def __init__(self, address: str) -> None:
            pass

        def get_model_config(self, name: str) -> Any:
            return json_format.MessageToDict(triton_config.parse(text), preserving_proto_field_name=True)

        def infer(self, name: str, inputs: list[InferInput]) -> Any:
            maps = runner(inputs[0].data)
            return types.SimpleNamespace(as_numpy={"maps": maps}.__getitem__)

    stand_in = types.ModuleType("tritonclient.http")
    vars(stand_in).update(InferInput=InferInput, InferenceServerClient=InferenceServerClient)
    monkeypatch.setitem(sys.modules, "tritonclient", types.ModuleType("tritonclient"))
    monkeypatch.setitem(sys.modules, "tritonclient.http", stand_in)
    vars(sys.modules["tritonclient"])["http"] = stand_in
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    scope: dict[str, Any] = {}
    exec(compile(snippet.partition("\npicture = ")[0], "docs/serving.md", "exec"), scope)
    segment: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = scope["segment"]
    return segment
