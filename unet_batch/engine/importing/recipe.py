"""What is done before and behind a foreign network, and the same in NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np

from unet_batch.types import Size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unet_batch.types import Pixels

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the grey of a picture, those of ITU-R BT.601."""


@dataclass(frozen=True)
class Recipe:
    """From a picture to what the network takes, and from what it gives to a map.

    Attributes:
        layout: of the network's input: "nchw" or "nhwc".
        colour: order of its channels: "rgb", "bgr", "grey" (one, made of RGB), or "other" (as they come).
        channels: of the pictures: 3, or as many as the network takes where these are no colours.
        mean, std: of the pictures' channels, red first, for pixels scaled to 0..1.
        dtype: of the network's input, NumPy's name.
        size: (height, width) that the model is used at.
        is_free: the graph takes other sizes, too.
        stride: what the network needs heights and widths to be multiples of.
        output: name of the output.
        output_layout: "nchw", "nhwc" or "nhw".
        channels_out: of the output; of ids, how many classes they tell apart.
        activation: what is behind its values: "sigmoid" or "softmax" makes probabilities of them, "none"
            takes them for probabilities, "ids" for class ids.
        channel: whose probability the map holds; None makes a map of ids.
        is_resized: the output is coarser or finer than the input.
        classes: names, one for a map of probability.
    """

    layout: Literal["nchw", "nhwc"]
    colour: Literal["rgb", "bgr", "grey", "other"]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str
    size: Size
    is_free: bool
    stride: int
    output: str
    output_layout: Literal["nchw", "nhwc", "nhw"]
    channels_out: int
    activation: Literal["sigmoid", "softmax", "none", "ids"]
    channel: int | None
    is_resized: bool
    classes: tuple[str, ...]

    def prepare(self, picture: Pixels) -> NDArray[Any]:
        """What the network takes for a picture: uint8 (H, W, C) -> a batch of one, padded to its stride."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        x: NDArray[Any] = (picture.astype(np.float32) / 255 - mean) / std
        if self.colour == "bgr":
            x = x[..., ::-1]
        elif self.colour == "grey":
            x = (x @ np.array(LUMA, np.float32))[..., None]
        bottom, right = -x.shape[0] % self.stride, -x.shape[1] % self.stride
        x = np.pad(x, ((0, bottom), (0, right), (0, 0)), mode="edge")
        x = x.transpose(2, 0, 1) if self.layout == "nchw" else x
        return np.ascontiguousarray(np.rint(x) if self.dtype == "uint8" else x).astype(self.dtype)[None]

    def finish(self, output: NDArray[Any], size: Size) -> Pixels:
        """The map of a picture of that (height, width): what the network gives for it -> uint8 (H, W)."""
        y = output[0]
        if self.output_layout == "nhw":
            y = y[..., None]
        elif self.output_layout == "nchw":
            y = y.transpose(1, 2, 0)
        y = y.astype(np.float32)
        if self.activation == "ids":
            ids = self._fit(y, size, cv2.INTER_NEAREST)[..., 0]
            return (ids if self.channel is None else 255 * (ids == self.channel)).astype(np.uint8)
        if self.channel is None:
            return np.asarray(self._fit(y, size, cv2.INTER_LINEAR).argmax(2), np.uint8)
        if self.activation == "softmax" and self.channels_out == 2:
            y = y[..., self.channel, None] - y[..., 1 - self.channel, None]
        elif self.activation == "softmax":
            y = np.exp(y - y.max(2, keepdims=True))
            y = (y / y.sum(2, keepdims=True))[..., self.channel, None]
        else:
            y = y[..., self.channel, None]
        p = self._fit(y, size, cv2.INTER_LINEAR)[..., 0]
        if self.activation == "sigmoid" or (self.activation == "softmax" and self.channels_out == 2):
            p = np.asarray(1 / (1 + np.exp(-np.clip(p, -80, 80))), np.float32)
        return np.asarray(np.floor(np.clip(p, 0, 1) * 255 + 0.5), np.uint8)

    def _fit(self, y: NDArray[np.float32], size: Size, how: int) -> NDArray[np.float32]:
        """Resize (h, w, C) to the padded size, and cut off the padding."""
        height, width = size
        if self.is_resized:
            padded = (width + -width % self.stride, height + -height % self.stride)
            planes = [cv2.resize(y[..., k], padded, interpolation=how) for k in range(y.shape[2])]
            y = np.stack(planes, axis=2)
        return y[:height, :width]
