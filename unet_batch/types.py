"""What flows through the program: frozen records without logic.

Conventions, everywhere: pictures are RGB uint8 arrays (height, width, 3), or (height, width, n) where n of
their bands were chosen (`Channels`); maps are uint8 arrays (height, width); sizes are always `(height,
width)` in pixels. The arrays inside a record are never written to after it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # the command line imports this module before it may afford numpy
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]


class HasItem(Protocol):
    """An item, or what a stage made of it."""

    @property
    def item(self) -> Item: ...


Size = tuple[int, int]
Channels = tuple[int, ...]
"""Bands of a picture's file, from 1 as GDAL counts, in the order that a network takes them."""
Colour = tuple[int, int, int]

BACKGROUND = ("background", "bg", "void", "none", "unlabeled", "unlabelled", "0")
"""What people call the rest of the picture, without the marks around it, the surest name first."""


@dataclass(frozen=True, slots=True)
class Item:
    """One picture or clip to segment.

    Attributes:
        path: the file to read, absolute.
        key: where its outputs go, relative to each output folder, `/`-separated and without the output's
            suffix: `lot/a` becomes `masks/lot/a.png`. Unique in a run, also on file systems that ignore case.
            Empty where nobody asks for outputs.
        is_clip: it is a video, a camera or an address.
    """

    path: str
    key: str = ""
    is_clip: bool = False

    @property
    def item(self) -> Item:
        """Itself, so that an item and what a stage made of it both have an `item`."""
        return self


@dataclass(frozen=True)
class Failure:
    """An item that failed.

    Attributes:
        path: of the item, without a password that it may hold.
        stage: where it failed: "source", "decode", "infer", "render", "write" or "clip".
        error: name of the error's type.
        message, hint: the error's own.
    """

    path: str
    stage: str
    error: str
    message: str
    hint: str


@dataclass(frozen=True)
class Placement:
    """Where a picture lies inside the network's input.

    Attributes:
        source: size of the picture as a person sees it.
        network: size of the network's input.
        top, left: first row and column of the picture in the network's input.
        content: size of the picture in the network's input; the rest is padding.
        covered: size of what `content` shows, in pixels of the source: the source's own, or a little more at
            its bottom and right.
    """

    source: Size
    network: Size
    top: int
    left: int
    content: Size
    covered: Size


@dataclass(frozen=True)
class Metadata:
    """What the outputs of a picture take over from its file.

    Attributes:
        exif: TIFF-structured EXIF data without orientation and thumbnail, as a JPEG's APP1 segment holds them
            after "Exif\\0\\0"; b"" where there are none.
        dpi: pixels per inch, (across, down); None where the file does not say.
        geo: the TIFF tags that place it on Earth, number and value; () where none do.
    """

    exif: bytes = b""
    dpi: tuple[float, float] | None = None
    geo: tuple[tuple[int, Any], ...] = ()


@dataclass(frozen=True, eq=False)
class Frame:
    """A decoded picture, ready for the network.

    Attributes:
        item: what it was decoded from.
        placement: how what the network is shown was made, and how to undo it: of several, how in the one
            whose input shows most.
        tensors: uint8 (H, W, channels) at the network's size, one for each size of an ensemble; () once the
            network has seen it, as the memory that a GPU copies from is scarce.
        pixels: RGB uint8 (height, width, 3) at the source's size, or the bands that were chosen; None where
            no output needs it.
        missing: bool (height, width) at the source's size, True where the file says that it has no value;
            None where there is a value everywhere.
        alpha: uint8 (height, width) at the source's size, the picture's own opacity; None where it is opaque,
            or no output needs the pixels.
        metadata: of the file, for outputs.
        notes: what people should know of how it was read, e.g. that it is the first of several pages.
        unlike: how far it is from what the model learned from, 1 being the limit of what is like that; None
            where the model does not know.
    """

    item: Item
    placement: Placement
    tensors: tuple[Pixels, ...]
    pixels: Pixels | None
    missing: NDArray[np.bool_] | None = None
    alpha: Pixels | None = None
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    unlike: float | None = None

    @property
    def network_input(self) -> Pixels:
        """What the network of `placement` is shown, before it has seen it.

        Raises:
            ValueError: it has: a bug.
        """
        for tensor in self.tensors:
            if tensor.shape[:2] == self.placement.network:
                return tensor
        raise ValueError(f"{self.item.path}: the network has seen it already")

    @property
    def source_pixels(self) -> Pixels:
        """`pixels`, where an output needs them.

        Raises:
            ValueError: it was decoded without them: a bug.
        """
        if self.pixels is None:
            raise ValueError(f"{self.item.path}: decoded without its pixels")
        return self.pixels


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network said about one frame.

    Attributes:
        frame: the frame.
        map: uint8 (H, W) at the network's size: round(255 p) for one class, class ids for several.
    """

    frame: Frame
    map: Pixels

    @property
    def item(self) -> Item:
        """What it was decoded from."""
        return self.frame.item


@dataclass(frozen=True)
class ClassTable:
    """Names and RGB colours of the classes.

    A model of one class predicts the probability of that class against background; a model of several
    predicts ids 0, 1, ... in the order given here.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]

    @property
    def background(self) -> int | None:
        """Id of the background among several classes, by its name; None where no class is called so."""
        plain = [name.strip(" _-").lower() for name in self.names]
        if len(plain) == 1:
            return None
        return next((plain.index(name) for name in BACKGROUND if name in plain), None)

    @property
    def foreground(self) -> int | None:
        """Id of the one class beside a background: together they are one probability; None for all else."""
        return 1 - self.background if len(self.names) == 2 and self.background is not None else None

    def only(self, id: int) -> ClassTable:
        """The table of one class of these against background."""
        return ClassTable((self.names[id],), (self.colours[id],))


@dataclass(frozen=True)
class Domain:
    """What a model has seen: the figures of its training pictures as a Gaussian, see `media.domain`.

    Attributes:
        mean: of each figure.
        whitening: lower triangle, row by row, of the matrix that gives all of them one spread.
        limit: the distance from the mean, in the root mean square of the spreads, that most pictures keep.
        pictures, validated: that it was learned from, and that the limit was taken from.
    """

    mean: tuple[float, ...]
    whitening: tuple[tuple[float, ...], ...]
    limit: float
    pictures: int
    validated: int


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to run a model, apart from its weights.

    Attributes:
        name: what the model calls itself.
        widths: channels of each level of the U-Net, finest first; behind an encoder, of each level of the
            decoder; () where the architecture is "onnx".
        in_channels: channels of the input: 3 are RGB, 1 is its luminance, unless `channels` says otherwise.
        input_size: (height, width) the model was trained for.
        mean, std: normalisation per channel, for pixel values scaled to 0..1.
        classes: names and colours; one name means a probability map, several mean class ids.
        threshold: probability from which a pixel counts as the class (one class only).
        output: what the network's map means.
        training: facts and metrics of its training, for people and reports.
        architecture: "unet", the classic one; "encoder-unet", whose contracting path is `encoder`; or "onnx",
            a graph that came from elsewhere, of which there is no PyTorch network.
        encoder: a key of `model.efficientnet.VARIANTS`; "" for all but an "encoder-unet".
        terms: under which it may be used, and the data they come from, on one line; "" where nobody said.
        domain: what it has seen; None where nobody knows. It decides no mask: models are equal without it.
    """

    name: str
    widths: tuple[int, ...]
    in_channels: int
    input_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: ClassTable
    threshold: float = 0.5
    output: Literal["probability", "class_ids"] = "probability"
    training: Mapping[str, Any] = field(default_factory=dict)
    architecture: Literal["unet", "encoder-unet", "onnx"] = "unet"
    encoder: str = ""
    terms: str = ""
    domain: Domain | None = field(default=None, compare=False, repr=False)

    @property
    def network(self) -> str:
        """What a person calls it: "U-Net, widths 32, 64, 128"."""
        if self.architecture == "onnx":
            return "imported ONNX graph"
        kind = f"U-Net on {self.encoder}, decoder" if self.encoder else "U-Net,"
        return f"{kind} widths {', '.join(map(str, self.widths))}"

    @property
    def channels(self) -> Channels | None:
        """Bands that it takes of a picture's file; None of RGB, or its luminance, as a person sees it."""
        if chosen := self.training.get("channels"):
            return tuple(chosen)
        return None if self.in_channels in (1, 3) else tuple(range(1, self.in_channels + 1))

    @property
    def stride(self) -> int:
        """Network pixels whose multiples heights and widths are padded to; an imported graph pads inside."""
        if self.architecture == "onnx":
            return 1
        return 32 if self.encoder else int(2 ** (len(self.widths) - 1))
