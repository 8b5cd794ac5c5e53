"""The options that say how `unet-batch train` trains."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from unet_batch.cli.command import Bundle, Option, Parsed
from unet_batch.cli.network_options import complete_checkpoint
from unet_batch.cli.options import CHANNELS, SIZE

if TYPE_CHECKING:
    from unet_batch.training.options import Options


def parse_widths(text: str) -> tuple[int, ...]:
    """`16,32,64` -> (16, 32, 64).

    Raises:
        ValueError: a part is no number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r}: numbers with commas expected, such as 32,64,128,256,512") from None


def parse_weights(text: str) -> tuple[float, ...]:
    """`1,0.5` -> (1.0, 0.5).

    Raises:
        ValueError: a part is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r}: numbers with commas expected, such as 2,1") from None


def require_extra() -> None:
    from importlib.util import find_spec

    from unet_batch.errors import UsageError

    if missing := [name for name in ("kornia", "matplotlib") if find_spec(name) is None]:
        raise UsageError(f"training needs {' and '.join(missing)}", hint='pip install "unet-batch[train]"')


def make_training_options(**settings: Any) -> Options:
    """How to train; the command's options have the names of the fields.

    Raises:
        UsageError: what training needs is not installed.
    """
    require_extra()
    from unet_batch.training.options import Options

    return Options(**settings)


_data = functools.partial(Option, section="Data")
_model = functools.partial(Option, section="Model")
_schedule = functools.partial(Option, section="Schedule")
_loss = functools.partial(Option, section="Loss")
_augmentation = functools.partial(Option, section="Augmentation")

training_options = Bundle(
    "options",
    make_training_options,
    _data(
        ["--train-list"],
        metavar="FILE",
        help="Train on the images that this file names, one a line.  [default: all others]",
    ),
    _data(
        ["--val-list"],
        metavar="FILE",
        help="Validate on the images that this file names, one a line.  [default: whole groups, by "
        "--val-fraction]",
    ),
    _data(
        ["--val-fraction"],
        metavar="P",
        type=float,
        default=0.2,
        show_default=True,
        help="Share of the images to validate on, above 0 and below 1.",
    ),
    _data(
        ["--range", "value_range"],
        metavar="RANGE",
        help="Values that are black and white: auto, dtype (all that their type can hold), percentile (by "
        "what is in the image), or two numbers A,B; run does the same.  [default: that of --init, or auto]",
    ),
    _data(
        ["--weights"],
        metavar="N,N,...",
        type=Parsed(parse_weights),
        help="How often an epoch sees each picture, for each DATASET.  [default: once]",
    ),
    _model(
        ["--size"],
        metavar="HxW",
        brief="Height and width of the network's input.",
        type=SIZE,
        help="Height and width of the network's input.  [default: the images' shape]",
    ),
    _model(
        ["--channels"],
        metavar="N,N,...",
        type=CHANNELS,
        help="Bands of each image that the network takes, from 1, in order.  [default: red, green, blue; "
        "all of images that have others]",
    ),
    _model(
        ["--widths"],
        metavar="N,N,...",
        type=Parsed(parse_widths),
        help="Channels of each level.  [default: 32,64,128,256,512; of a decoder 32,48,64,96]",
    ),
    _model(
        ["--encoder"],
        metavar="NAME",
        type=click.Choice(("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")),
        brief="Begin with an encoder of ImageNet: efficientnet-lite0.",
        help="Build the U-Net on an encoder that knows ImageNet's photos: efficientnet-lite0, -lite1 or "
        "-lite2.  [default: none]",
    ),
    _model(
        ["--encoder-weights"],
        metavar="FILE",
        help="Start the encoder from this file, or from random weights: none.  [default: the published ones]",
    ),
    _model(
        ["--init"],
        shell_complete=complete_checkpoint,
        metavar="MODEL",
        brief="Start from a checkpoint, or from a bundled model.",
        help="Start from a checkpoint, or from a bundled model by its name.",
    ),
    _model(
        ["--terms"],
        metavar="TEXT",
        default="",
        help="The terms of your data, on one line: written into the model, and shown by run and inspect. "
        "Those of --init are kept beside them.",
    ),
    _model(["--device"], metavar="NAME", help="cpu, cuda, cuda:1 or mps.  [default: a GPU if there is one]"),
    _model(
        ["--precision"],
        type=click.Choice(("fp32", "bf16", "fp16")),
        help="Compute precision.  [default: what the device does best]",
    ),
    _schedule(
        ["--epochs"],
        metavar="N",
        type=click.IntRange(1),
        default=40,
        show_default=True,
        brief="Passes over the training images.  [default: 40]",
        help="Passes over the training images.",
    ),
    _schedule(
        ["--batch-size"],
        metavar="N",
        type=click.IntRange(1),
        default=16,
        show_default=True,
        brief="Images in a step.  [default: 16]",
        help="Images in a step, over all processes.",
    ),
    _schedule(
        ["--lr"],
        metavar="RATE",
        type=float,
        default=1e-3,
        show_default=True,
        help="Peak learning rate, reached after a warm-up; it falls along a cosine.",
    ),
    _schedule(
        ["--encoder-lr"],
        metavar="X",
        type=float,
        default=0.3,
        show_default=True,
        help="Learning rate of the encoder, as a factor of --lr.",
    ),
    _schedule(
        ["--weight-decay"],
        metavar="X",
        type=float,
        default=0.01,
        show_default=True,
        help="AdamW weight decay.",
    ),
    _schedule(
        ["--clip"],
        metavar="NORM",
        type=float,
        default=1.0,
        show_default=True,
        help="Clip gradients to this norm.",
    ),
    _schedule(
        ["--patience"],
        metavar="N",
        type=click.IntRange(0),
        default=0,
        help="Stop after so many epochs without improvement.  [default: never]",
    ),
    _schedule(
        ["--keep"],
        type=click.Choice(("best", "last")),
        default="best",
        show_default=True,
        help="Keep the weights of the best epoch, judged on the validation images, or of the last one.",
    ),
    _schedule(
        ["--seed"], metavar="N", type=click.IntRange(0), default=0, show_default=True, help="Random seed."
    ),
    _schedule(
        ["--deterministic"],
        is_flag=True,
        help="Make the same seed give the same weights on a GPU too, which is slower; a CPU always does.",
    ),
    _loss(
        ["--dice"],
        type=click.Choice(("batch", "picture")),
        default="batch",
        show_default=True,
        help="Compute the Dice term over the whole batch, or per image so that small objects count equally.",
    ),
    _loss(
        ["--class-weights"],
        type=click.Choice(("auto", "none")),
        default="auto",
        show_default=True,
        help="Weights of the classes in the loss; auto gives rare ones more, where there are several.",
    ),
    _augmentation(
        ["--augment"],
        type=click.Choice(("none", "light", "strong", "elastic")),
        default="light",
        show_default=True,
        brief="Random changes: none, light, strong or elastic.",
        help="Augmentation: random zoom, rotation, shift, colour, blur and noise; elastic also deforms, for "
        "microscope slides.",
    ),
    _augmentation(
        ["--flip"],
        type=click.Choice(("none", "horizontal", "any")),
        default="horizontal",
        show_default=True,
        brief="Random flips: none, horizontal or any.",
        help="Random flips; any adds quarter turns, for slides and aerial photos.",
    ),
    _augmentation(
        ["--paste"],
        metavar="P",
        type=float,
        default=0.0,
        help="Share of the samples that get the object of another one, at another size and place.  [default: "
        "0]",
    ),
    _augmentation(
        ["--plain-epochs"],
        metavar="N",
        type=click.IntRange(0),
        default=0,
        help="Train the last epochs without augmentation, but for flips.  [default: 0]",
    ),
    _augmentation(
        ["--crop"],
        metavar="HxW",
        type=SIZE,
        help="Train on random crops of the input, this large, as many as cover each image: more steps in the "
        "same time.",
    ),
)
