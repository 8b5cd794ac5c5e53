"""From what the network said of a picture to the bytes of the files that were asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from unet_batch.errors import UnetBatchError, UsageError
from unet_batch.files.outputs import KINDS, OutputTree
from unet_batch.inference.segmenter import Segmenter
from unet_batch.types import Item, Prediction


@dataclass(frozen=True, eq=False)
class EncodedOutputs:
    """The outputs of one picture as files to be.

    Attributes:
        item: whose they are.
        files: (kind, file relative to the output folder, bytes).
        seconds: that it took.
        notes: what people should know of them, and of how the picture was read.
    """

    item: Item
    files: tuple[tuple[str, str, bytes], ...]
    seconds: float
    notes: tuple[str, ...] = ()


class OutputRenderer:
    """The stage that turns a prediction into the bytes of its outputs.

    Args:
        outputs: what is wanted, and where it goes.
        segmenter: knows the classes and the threshold.

    Raises:
        UsageError: a kind of output is wanted that the model cannot give.
    """

    def __init__(self, outputs: OutputTree, segmenter: Segmenter) -> None:
        self.outputs, self.segmenter = outputs, segmenter
        self.needs_pixels = any(KINDS[kind].needs_pixels for kind in outputs.kinds)
        spec = segmenter.spec
        wrong = sorted(kind for kind in outputs.kinds if KINDS[kind].needs_probability)
        if wrong and spec.output == "class_ids":
            raise UsageError(
                f"--save {','.join(wrong)}: {spec.name} has {len(spec.classes.names)} classes: ids, not one "
                f"probability",
                hint="save mask and overlay",
            )

    def render(self, prediction: Prediction) -> EncodedOutputs:
        """Draw and encode all outputs of a picture.

        Raises:
            EncodeError: one cannot be encoded; the message names the picture and the kind.
        """
        begun, item = time.perf_counter(), prediction.item
        result, files = self.segmenter.result(prediction), []
        for kind in self.outputs.kinds:
            try:
                data = result.encode(kind)
            except UnetBatchError as error:
                raise error.with_context(f"{item.path}: {kind}") from error
            files.append((kind, self.outputs.file(kind, item.key), data))
        notes = result.notes_on(self.outputs.kinds)
        return EncodedOutputs(item, tuple(files), time.perf_counter() - begun, notes)
