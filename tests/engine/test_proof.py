"""The numbers of a proof, against counts by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_batch.engine import proof
from unet_batch.engine.onnx_model import Convolution
from unet_batch.engine.proof import Reference
from unet_batch.errors import BackendError
from unet_batch.testing import fake_spec

ONE, THREE = fake_spec((4, 4)), fake_spec((4, 4), classes=3)


def maps(*rows: list[int]) -> np.ndarray:
    return np.array([rows], np.uint8)


class TestParity:
    def test_equal_maps(self) -> None:
        some = maps([0, 200, 255], [0, 100, 130])
        parity = proof.compare(some, some, ONE)
        assert (parity.dice, parity.worst, parity.pixels, parity.largest) == (1, 1, 0, 0)
        assert parity.foreground == pytest.approx(3 / 6)

    def test_one_pixel_on_the_other_side(self) -> None:
        parity = proof.compare(maps([0, 200, 255], [0, 127, 130]), maps([0, 200, 255], [0, 128, 130]), ONE)
        assert parity.dice == pytest.approx(2 * 3 / (3 + 4))
        assert parity.pixels == pytest.approx(1 / 6)
        assert parity.largest == pytest.approx(1 / 255)

    def test_pictures_are_pooled_and_the_worst_is_named(self) -> None:
        truth = np.zeros((2, 4, 4), np.uint8)
        truth[0] = 255
        truth[1, 0, 0] = 255
        found = truth.copy()
        found[1, 0, 0] = 0
        parity = proof.compare(found, truth, ONE)
        assert parity.dice == pytest.approx(2 * 16 / (16 + 17))
        assert parity.worst == 0

    def test_pictures_without_the_class_count_neither_way(self) -> None:
        empty = np.zeros((3, 4, 4), np.uint8)
        assert proof.compare(empty, empty, ONE).dice == 1
        assert proof.compare(empty, empty, ONE).foreground == 0

    def test_class_ids_are_averaged_over_the_classes_that_occur(self) -> None:
        truth, found = maps([0, 0, 1, 1]), maps([0, 0, 1, 0])
        parity = proof.compare(found, truth, THREE)
        assert parity.dice == pytest.approx((2 * 2 / 5 + 2 * 1 / 3) / 2)
        assert parity.largest is None
        assert parity.pixels == pytest.approx(1 / 4)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 3))
    def test_is_what_a_loop_counts(self, seed: int, classes: int) -> None:
        random = np.random.default_rng(seed)
        spec = fake_spec((4, 4), classes)
        top = 256 if classes == 1 else classes
        found, truth = random.integers(0, top, (2, 3, 4, 4)).astype(np.uint8)
        parity = proof.compare(found, truth, spec)
        scores = []
        for k in range(classes):
            a, b = (found >= 127.5, truth >= 127.5) if classes == 1 else (found == k, truth == k)
            if a.sum() + b.sum():
                scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert parity.dice == pytest.approx(np.mean(scores) if scores else 1)

    def test_maps_of_another_kind_are_refused(self) -> None:
        with pytest.raises(BackendError, match=r"float32 \(1, 1, 3\) came out"):
            proof.compare(np.zeros((1, 1, 3), np.float32), maps([0, 0, 0]), ONE)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("precision", "dice", "passes"),
        [("fp16", 0.9991, True), ("fp16", 0.9989, False), ("fp32", 0.9991, False)],
    )
    def test_the_limit(self, precision: str, dice: float, passes: bool) -> None:
        parity = proof.Parity(16, dice, dice, 0.001, 0.1, 0.2)
        if passes:
            parity.check(precision, "it")
            return
        with pytest.raises(BackendError, match=f"Dice {dice:.5f} over 16 pictures"):
            parity.check(precision, "it")

    def test_where_masks_are_empty_the_probability_decides(self) -> None:
        """What overflows to nothing where nothing is expected has a Dice of 1."""
        weak = proof.Parity(16, 1.0, 1.0, 0.0, 0.27, 0.0)
        assert weak.is_weak
        with pytest.raises(BackendError, match=r"the probability is off by 0\.27"):
            weak.check("fp16", "it")
        proof.Parity(16, 1.0, 1.0, 0.0, 0.05, 0.0).check("fp16", "it")
        proof.Parity(16, 0.9999, 0.99, 0.0, 0.27, 0.3).check("fp16", "it")

    def test_a_proof_of_nothing_does_not_pass(self) -> None:
        with pytest.raises(BackendError):
            proof.Parity(16, float("nan"), 0, 0, 0, 0).check("fp16", "it")


def test_batches_are_full_and_ragged() -> None:
    pictures = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    reference = Reference(pictures, pictures[..., 0])
    seen: list[tuple[int, int]] = []

    def infer_at(batch: int) -> proof.Infer:
        def infer(batch_of: np.ndarray) -> np.ndarray:
            seen.append((batch, len(batch_of)))
            return batch_of[..., 0].copy()

        return infer

    proven = proof.prove(infer_at, reference, ONE, (1, 8, 8, 3))
    assert list(proven) == ["batch 1", "batch 8 and 4", "batch 3 and 1"]
    assert seen == [(1, 1)] * 5 + [(8, 8), (8, 4), (3, 3), (3, 1)]
    assert all(
        parity.dice == 1 and parity.pictures == count
        for parity, count in zip(proven.values(), (5, 12, 4), strict=True)
    )


def test_a_batch_that_mixes_up_its_pictures_is_caught() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    reference = Reference(pictures, pictures[..., 0])
    proven = proof.prove(lambda batch: lambda batch_of: batch_of[::-1, ..., 0].copy(), reference, ONE, (1, 4))
    assert proven["batch 1"].dice == 1
    assert proven["batch 4 and 2"].dice < 0.9


CONVOLUTIONS = {
    "conv_a": Convolution(900, "fp16", False, "down.0.0"),
    "conv_b": Convolution(90, "fp16", False, "down.0.3"),
    "conv_c": Convolution(10, "fp32", True, ""),
}


TRUTH = {"conv_a": "fp16", "conv_b": "fp16", "conv_c": "fp32"}


def tensorrt_layer(
    name: str, kind: str, formats: str, *, weights: str = "", metadata: str = ""
) -> dict[str, Any]:
    """A layer as TensorRT's inspector describes it, shortened: https://github.com/NVIDIA/TensorRT/issues/4020"""
    tensor = {"Name": "x", "Location": "Device", "Dimensions": [-1, 16, 32, 48], "Format/Datatype": formats}
    layer: dict[str, Any] = {"Name": name, "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor]}
    if weights:
        layer |= {"ParameterType": "Convolution", "Weights": {"Type": weights, "Count": 2304}}
    return layer | {"TacticValue": "0x00000000000003e8", "StreamId": 0, "Metadata": metadata}


class TestShare:
    def test_counts_work_and_not_layers(self) -> None:
        share = proof.share(
            CONVOLUTIONS, "fp16", (), {"conv_a": "fp16", "conv_b": "fp32", "conv_c": "fp32"}, "network"
        )
        assert share.body == pytest.approx(900 / 990)
        assert share.overall == pytest.approx(900 / 1000)
        assert (share.in_precision, share.convolutions) == (1, 3)
        with pytest.raises(
            BackendError,
            match=r"asked for fp16, but only 90\.9% of the convolutions' arithmetic is fp16 in the network",
        ):
            share.check()

    def test_the_head_and_what_was_kept_on_purpose_do_not_count_against_it(self) -> None:
        precisions = {"conv_a": "fp16", "conv_b": "fp32", "conv_c": "fp32"}
        share = proof.share(CONVOLUTIONS, "fp16", ("down.0.3",), precisions, "network")
        assert share.body == 1
        assert share.overall == pytest.approx(0.9)
        share.check()

    def test_of_nothing_nothing_is_proven(self) -> None:
        with pytest.raises(BackendError):
            proof.share({}, "fp16", (), {}, "engine").check()
        proof.share({}, "fp32", (), {}, "onnx").check()  # of a foreign graph without convolutions

    def test_what_nobody_names_is_not_in_the_precision(self) -> None:
        assert proof.share(CONVOLUTIONS, "fp16", (), {}, "engine").body == 0

    def test_the_inspector(self) -> None:
        """Names and formats as TensorRT's inspector writes them, with detailed verbosity."""
        half, single = "Row major linear FP16 format", "Row major linear FP32"
        layers = [
            {
                "Name": "conv_a + relu",
                "Inputs": [{"Format/Datatype": half}],
                "Metadata": "[ONNX Layer: conv_a]\x1e[ONNX Layer: relu]",
            },
            {
                "Name": "fused",
                "Inputs": [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
                "Metadata": "[ONNX Layer: conv_b]",
            },
            {"Name": "conv_c", "Inputs": [{"Format/Datatype": single}]},
            {"Name": "conv_x", "Inputs": [{"Format/Datatype": half}]},
        ]
        assert proof.inspected_precisions(json.dumps({"Layers": layers}), CONVOLUTIONS) == {
            "conv_a": "fp16",
            "conv_b": "fp16",
            "conv_c": "fp32",
        }

    def test_a_layer_that_converts_the_input_says_nothing_of_the_convolution(self) -> None:
        """8.6 names the convolution in the copies that it puts around it; those of its input come first."""
        eight = "Channel major FP16 format where channel % 8 == 0"
        layers = [
            tensorrt_layer(
                "Reformatting CopyNode for Input Tensor 0 to conv_a + relu",
                "Reformat",
                "Row major linear FP32",
            ),
            tensorrt_layer("conv_a + relu", "CaskConvolution", eight, weights="Half"),
            tensorrt_layer("conv_b", "CaskDeconvolutionV2", eight, weights="Half"),
            tensorrt_layer(
                "Reformatting CopyNode for Input Tensor 0 to conv_b", "NoOp", "Row major linear FP32"
            ),
            tensorrt_layer("Reformatting CopyNode for Input Tensor 0 to conv_c", "Reformat", eight),
            tensorrt_layer("conv_c", "CudnnConvolution", "Row major linear FP32", weights="Float"),
            tensorrt_layer(
                "Reformatting CopyNode for Output Tensor 0 to conv_c",
                "Reformat",
                "Row major linear FP16 format",
            ),
        ]
        assert proof.inspected_precisions(json.dumps({"Layers": layers}), CONVOLUTIONS) == TRUTH

    def test_an_engine_for_several_batch_sizes(self) -> None:
        """The inspector tells no formats then, but types of weights."""
        unknown = "N/A due to dynamic shapes"
        layers = [
            tensorrt_layer("Reformatting CopyNode for Input Tensor 0 to conv_a", "Reformat", unknown),
            tensorrt_layer("conv_a", "CaskConvolution", unknown, weights="Half"),
            tensorrt_layer("conv_b", "CaskDeconvolutionV2", unknown, weights="Half"),
            tensorrt_layer("PWN(relu)", "PointWiseV2", unknown),
            tensorrt_layer("conv_c", "CaskConvolution", unknown, weights="Float"),
        ]
        assert proof.inspected_precisions(json.dumps({"Layers": layers}), CONVOLUTIONS) == TRUTH

    def test_fused_regions_of_later_releases(self) -> None:
        """They spell types in one word, and what only moves data may carry a convolution's name, too."""
        layers = [
            tensorrt_layer("__myl_Move_myl0_0", "kgen", "Float", metadata="[ONNX Layer: conv_a]"),
            tensorrt_layer(
                "conv_a_myl0_1",
                "gemm",
                "Half",
                weights="Half",
                metadata="[ONNX Layer: conv_a]\x1e[ONNX Layer: relu]",
            ),
            tensorrt_layer(
                "__myl_ConvRelu_myl0_2", "kgen", "Half", metadata="[ONNX Layer: conv_b][ONNX Layer: r]"
            ),
            tensorrt_layer("__myl_Cast_myl0_3", "kgen", "Float", metadata="[ONNX Layer: conv_b]"),
            tensorrt_layer("__myl_Conv_myl0_4", "kgen", "Float", metadata="[ONNX Layer: conv_c]"),
            tensorrt_layer("{ForeignNode[conv_a...conv_c]}", "Myelin", "BFloat16"),
        ]
        assert proof.inspected_precisions(json.dumps({"Layers": layers}), CONVOLUTIONS) == TRUTH

    @pytest.mark.parametrize(
        ("formats", "precision"),
        [
            ("BFloat16", "bf16"),
            ("Row major linear BFloat16 format", "bf16"),
            ("Float", "fp32"),
            ("Half", "fp16"),
        ],
    )
    def test_spellings(self, formats: str, precision: str) -> None:
        layers = [tensorrt_layer("conv_a", "kgen", formats)]
        found = proof.inspected_precisions(json.dumps({"Layers": layers}), CONVOLUTIONS)
        assert found == {"conv_a": precision}

    @pytest.mark.parametrize("answer", ["", "None", "[]", "3", "{"])
    def test_an_inspector_that_tells_nothing(self, answer: str) -> None:
        assert proof.inspected_precisions(answer, CONVOLUTIONS) == {}

    def test_an_inspector_that_tells_names_only(self) -> None:
        assert proof.inspected_precisions(json.dumps({"Layers": ["conv_a", "conv_b"]}), CONVOLUTIONS) == {}
