"""Published weights: each tensor at its place, proven by the maps of the network they were published for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unet_batch.errors import CheckpointError
from unet_batch.model import pretrained
from unet_batch.model.efficientnet import VARIANTS, EfficientNetLite

# Mean over the channels of the last features of `picture()`, rows 0, 3 and 6, computed by the network of the
# package efficientnet-lite-pytorch 0.1.0 from the same files.
REFERENCE = {
    "efficientnet-lite0": [
        [-0.0858, -0.0642, -0.0496, -0.0079, 0.0256, 0.0312, 0.0632, 0.0297],
        [-0.1130, -0.1952, -0.3637, -0.4006, -0.4253, -0.3318, -0.2390, -0.1063],
        [-0.0822, -0.0503, -0.1032, -0.1497, -0.1424, -0.0683, 0.0687, 0.1080],
    ],
    "efficientnet-lite1": [
        [-0.0830, -0.0629, -0.0441, -0.0710, -0.0891, -0.0643, -0.0364, -0.0358],
        [-0.0307, -0.0298, -0.0592, -0.0768, -0.0081, -0.0063, -0.0762, -0.0943],
        [-0.0488, -0.0446, -0.0416, -0.0470, -0.0509, -0.0483, -0.0477, -0.0565],
    ],
    "efficientnet-lite2": [
        [0.0129, -0.0127, -0.0290, -0.0529, -0.0454, -0.0532, 0.0085, -0.0032],
        [0.0090, 0.0274, 0.0073, 0.0043, 0.0477, -0.0562, 0.0017, -0.0439],
        [0.0041, 0.0193, -0.0213, -0.0642, -0.0698, -0.0767, 0.0223, 0.0032],
    ],
}


def picture(side: int = 225) -> Tensor:
    """Two gradients and a disc, normalised; at sides of 32 k + 1 both conventions of padding agree."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    disc = (x - 0.5) ** 2 + (y - 0.45) ** 2 < 0.09
    rgb = torch.from_numpy(np.stack([x, y, disc]).astype(np.float32))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pretrained.MEAN, pretrained.STD))
    return ((rgb - mean) / std)[None]


def published(encoder: str) -> str:
    try:
        return pretrained.find_weights(encoder)
    except CheckpointError as error:
        pytest.skip(str(error))


def loaded(encoder: str, in_channels: int = 3) -> EfficientNetLite:
    network = EfficientNetLite(encoder, in_channels).eval()
    weights = pretrained.read_encoder(published(encoder), encoder, in_channels)
    network.load_state_dict(weights.tensors)
    return network


class TestReadEncoder:
    @pytest.mark.parametrize("encoder", VARIANTS)
    @torch.inference_mode()
    def test_every_tensor_is_at_its_place(self, encoder: str) -> None:
        features = loaded(encoder)(picture())
        assert [tuple(each.shape[2:]) for each in features] == [(k, k) for k in (113, 57, 29, 15, 8)]
        found = features[-1][0].mean(0)[[0, 3, 6]]
        # Normalised by 0.498 and 0.502 there, where we take 127/255 and 128/255.
        torch.testing.assert_close(found, torch.tensor(REFERENCE[encoder]), rtol=0, atol=0.003)

    def test_the_file_is_the_published_one(self) -> None:
        path = published("efficientnet-lite0")
        weights = pretrained.read_encoder(path, "efficientnet-lite0")
        assert Path(path).stem.endswith(weights.sha256[:8])

    @pytest.mark.parametrize("channels", [1, 2, 4, 7])
    @torch.inference_mode()
    def test_other_channels_make_of_grey_what_colours_make_of_it(self, channels: int) -> None:
        grey = picture(97)[:, :1]
        expected = loaded("efficientnet-lite0")(grey.repeat(1, 3, 1, 1))
        found = loaded("efficientnet-lite0", channels)(grey.repeat(1, channels, 1, 1))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)

    def test_weights_of_another_encoder_are_refused_by_what_differs(self) -> None:
        path = published("efficientnet-lite0")
        with pytest.raises(CheckpointError, match="not the weights of efficientnet-lite2: _blocks") as error:
            pretrained.read_encoder(path, "efficientnet-lite2")
        assert "unet-batch[encoders]" in error.value.hint

    def test_a_file_of_other_layers_is_refused(self, tmp_path: Path) -> None:
        path = str(tmp_path / "other.pth")
        torch.save({"conv.weight": torch.zeros(4, 3, 3, 3)}, path)
        with pytest.raises(CheckpointError, match=r"_conv_stem.weight is missing.*"):
            pretrained.read_encoder(path, "efficientnet-lite0")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"gone\.pth"):
            pretrained.read_encoder(str(tmp_path / "gone.pth"), "efficientnet-lite0")


class TestFindWeights:
    def test_what_is_not_installed_says_how_to_install_it(self) -> None:
        with pytest.raises(CheckpointError, match="efficientnet-lite9 are not installed") as error:
            pretrained.find_weights("efficientnet-lite9")
        assert "--encoder-weights" in error.value.hint


def test_names_are_those_of_the_file() -> None:
    found = pretrained.published_names("efficientnet-lite0")
    assert found["stem.1"] == "_bn0"
    assert found["stages.0.0.layers.0"] == "_blocks.0._depthwise_conv"  # the first block does not expand
    assert found["stages.6.0.layers.7"] == "_blocks.15._bn2"
