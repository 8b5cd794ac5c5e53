"""A dataset: pairs of pictures and masks, and how the masks are read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unet_batch.datasets.encoding import VOID, Mask, Masks
from unet_batch.errors import ImageError, UnetBatchError
from unet_batch.media import images

if TYPE_CHECKING:
    from unet_batch.media.images import Picture
    from unet_batch.types import Channels, ClassTable, Pixels, Size

_LOOKED_AT = 64  # pictures whose bands are counted


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and its mask, with absolute paths, the picture's key and its group.

    A mask in a file of annotations is named by both: `/data/annotations.json: car_01.jpg`.
    """

    image: str
    mask: str
    key: str
    group: str


@dataclass(frozen=True)
class Dataset:
    """Pairs of pictures and masks, in the order of their keys.

    Attributes:
        root: the folder that was named, absolute; of several that were joined the one that holds them.
        pairs: what belongs together.
        classes: one name: ids are 0 (background) and 1; several: ids 0, 1, ... in this order.
        masks: reads them; `read_mask` also says no to those that cannot be used.
        reasons: a sentence for everything that was guessed.
        unmatched_images, unmatched_masks: files without a partner, and annotations of no image.
        ambiguous: pictures with several masks, and masks that several pictures claim; not among the pairs.
        parts: names of the datasets that were joined, in the order of the pairs, each the first part of its
            keys; empty for a single one.
        channels: bands of the pictures that a network is to take; None for what a person sees.
        fault: why nobody knows what the masks hold: then not one of them can be used; else None.
    """

    root: str
    pairs: tuple[Pair, ...]
    classes: ClassTable
    masks: Masks
    reasons: tuple[str, ...]
    unmatched_images: tuple[str, ...] = ()
    unmatched_masks: tuple[str, ...] = ()
    ambiguous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    channels: Channels | None = None
    fault: UnetBatchError | None = None

    @property
    def name(self) -> str:
        """What a person calls it: the folder's name, or all names."""
        return " + ".join(self.parts) or os.path.basename(self.root)

    @property
    def void(self) -> int | None:
        """255 if masks may hold pixels of no class, else None."""
        return VOID if self.masks.void else None

    def read_picture(
        self, pair: Pair, at_least: Size | None = None, value_range: images.Range = images.AUTO
    ) -> Picture:
        """Read a picture, or the channels of it; see `images.read`, also for what is raised."""
        return images.read(pair.image, at_least=at_least, channels=self.channels, value_range=value_range)

    def read_mask(self, pair: Pair, size: Size | None = None) -> Pixels:
        """Read ids, uint8 (H, W), 255 where void.

        Args:
            pair: one of `pairs`.
            size: of the upright picture, as `images.read` gives it; None skips the comparison. A mask is
                never turned to fit.

        Raises:
            ImageError: the mask cannot be read, is of another size, or holds values without a meaning.
        """
        return self.decode_mask(pair, size).ids

    def decode_mask(self, pair: Pair, size: Size | None = None) -> Mask:
        """Read a mask that can be used, as `read_mask` does: ids, and levels where it is a probability."""
        mask = self.masks.decode(pair.mask)
        if mask.unexpected:
            raise ImageError(f"{pair.mask}: {mask.unexpected}", hint="name every value in classes.toml")
        if size is not None and mask.ids.shape != size:
            why = misfit(size, mask.ids.shape, pair.image)
            raise ImageError(f"{pair.mask}: {why}", hint="export the mask from the upright picture")
        return mask


def misfit(image: Size, mask: tuple[int, ...], path: str) -> str:
    """Say how a mask's size differs from that of the upright picture `path`, and whether EXIF explains it."""
    text = f"the image is {image[0]}x{image[1]}, the mask {mask[0]}x{mask[1]} (height x width)"
    if mask != image[::-1]:
        return text
    turned = images.orientation(path)
    return text + (
        f": the image is turned by its EXIF orientation {turned}, the mask is not"
        if turned > 4
        else ": transposed"
    )


def natural_channels(pairs: Sequence[Pair]) -> Channels | None:
    """What a network is to take of pictures where nobody says: all bands that most of some of them have.

    None for what a person sees, see `images.natural_channels`; and where not one can be read.
    """
    found: Counter[Channels | None] = Counter()
    for pair in pairs[:: -(-len(pairs) // _LOOKED_AT) or 1]:
        with suppress(ImageError):  # the check of the dataset names it
            found[images.natural_channels(pair.image)] += 1
    return found.most_common(1)[0][0] if found else None
