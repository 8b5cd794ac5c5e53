"""From what the network said of a picture to the bytes of the files that were asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from unet_batch.errors import UsageError
from unet_batch.files.outputs import KINDS, OutputTree
from unet_batch.inference.segmented import check_object
from unet_batch.inference.segmenter import Segmenter
from unet_batch.media import backdrop, images
from unet_batch.types import Item, Prediction


@dataclass(frozen=True, eq=False)
class EncodedOutputs:
    """The outputs of one picture as files to be.

    Attributes:
        item: whose they are.
        files: (kind as the manifest has it, file relative to the output folder, bytes).
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
        UsageError: a kind of output is wanted that the model cannot give, or a package is missing for it.
    """

    def __init__(self, outputs: OutputTree, segmenter: Segmenter) -> None:
        self.outputs, self.segmenter = outputs, segmenter
        self.needs_pixels = outputs.need_pixels
        if "dicomseg" in outputs.kinds:
            images.check_dicomseg()
        if "background" in outputs.kinds:
            backdrop.check(outputs.style.background)
        spec = segmenter.spec
        for kind in outputs.kinds:
            if KINDS[kind].of_object:
                check_object(spec, segmenter.cleanup, kind)
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
        result = self.segmenter.result(prediction, self.outputs.style)
        files = tuple(
            (self.outputs.style.name(kind), self.outputs.file(kind, item.key), data)
            for kind, data in result.encode_all(self.outputs.kinds)
        )
        notes = result.notes_on(self.outputs.kinds)
        return EncodedOutputs(item, files, time.perf_counter() - begun, notes)
