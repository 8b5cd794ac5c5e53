"""Options that say which model runs, on what, and how it sees pictures."""

from __future__ import annotations

import functools
import glob
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import click
from click.shell_completion import CompletionItem

from unet_batch.cli.command import Bundle, Option
from unet_batch.cli.options import CHANNELS, SIZE, Size
from unet_batch.errors import UsageError
from unet_batch.model.zoo import BUNDLED, DEFAULT

if TYPE_CHECKING:
    from unet_batch.inference.backends.select import Request
    from unet_batch.inference.views import Fit, Turns, ViewOptions
    from unet_batch.model.checkpoint import ModelFile

BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "torch", "openvino", "onnxruntime")  # `select.CHOICES`
_OVERLAP = 0.25  # `tiling.OVERLAP`

_model = functools.partial(Option, section="Model")
_scale = functools.partial(Option, section="Scale")
_view = functools.partial(Option, section="View")


def complete_model(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Bundled models, checkpoints and graphs that begin as what is typed, and else folders."""
    return [*complete_checkpoint(context, parameter, typed), *_complete_files(typed, ".onnx")]


def complete_checkpoint(
    context: click.Context, parameter: click.Parameter, typed: str
) -> list[CompletionItem]:
    """Bundled models, checkpoints that begin as what is typed, and else folders."""
    names = [
        CompletionItem(name, help=bundled.purpose)
        for name, bundled in BUNDLED.items()
        if name.startswith(typed)
    ]
    return [CompletionItem(typed, type="dir"), *names, *_complete_files(typed, ".safetensors")]


def _complete_files(typed: str, suffix: str) -> list[CompletionItem]:
    return [CompletionItem(file) for file in sorted(glob.glob(f"{glob.escape(typed)}*{suffix}"))]


@dataclass(frozen=True)
class NetworkOptions:
    """Which model runs, on what, and how; see `unet-batch run --help`."""

    model: tuple[str, ...]
    threshold: float | None
    size: Size | None
    backend: str
    device: str | None
    require_gpu: bool
    engines_dir: str
    batch_size: int | None
    fit: str
    overlap: float
    scale: float | None
    tta: str
    refine: bool
    value_range: str | None
    channels: tuple[int, ...] | None

    @property
    def view(self) -> ViewOptions:
        """How the network sees pictures.

        Raises:
            UsageError: what tells of tiles is given, and there are none.
        """
        from unet_batch.inference.views import ViewOptions

        if self.fit != "tile" and (self.scale is not None or self.overlap != _OVERLAP):
            raise UsageError("--scale and --overlap are for tiles", hint="add --fit tile")
        return ViewOptions(
            cast("Fit", self.fit),
            self.overlap,
            self.scale,
            cast("Turns", self.tta),
            self.refine,
            self.value_range,
        )

    def model_files(self) -> list[ModelFile]:
        """The files of the models, looked at but not loaded.

        Raises:
            CheckpointError: there is none, or it cannot be read.
            BackendUnavailable: it is a graph, and onnx is not installed.
        """
        from unet_batch.engine import source
        from unet_batch.model import zoo

        return [source.identify(zoo.resolve(name)) for name in self.model or (None,)]

    def request(self, file: ModelFile, build: Callable[[str], object] | None = None) -> Request:
        """What `inference.backends.select` is asked for."""
        from unet_batch.inference.backends.select import Request

        return Request(
            file,
            self.backend,
            self.device,
            self.batch_size,
            self.size,
            self.engines_dir,
            self.require_gpu,
            build,
        )


def engines_dir_option(section: str) -> Option:
    """--engines-dir."""
    return Option(
        ["--engines-dir"],
        section=section,
        metavar="DIR",
        envvar="UNET_BATCH_ENGINES",
        show_envvar=True,
        default="engines",
        show_default=True,
        help="Where engines are kept.",
    )


network_options = Bundle(
    "network",
    NetworkOptions,
    _model(
        ["-m", "--model"],
        metavar="FILE",
        multiple=True,
        shell_complete=complete_model,
        brief=f"A model file, or {', '.join(BUNDLED)}.",
        help=f"A checkpoint (.safetensors), a graph (.onnx), or {', '.join(BUNDLED)}, which inspect lists. "
        f"Several, each with -m, are averaged.  [default: {DEFAULT}]",
    ),
    _model(
        ["--threshold"],
        metavar="P",
        type=click.FloatRange(0, 1, min_open=True),
        brief="Probability from which a pixel counts.",
        help="Probability from which a pixel counts.  [default: the model's, mostly 0.5]",
    ),
    _model(
        ["--size"],
        metavar="HxW",
        type=SIZE,
        help="Height and width of the network's input.  [default: the model's]",
    ),
    _view(
        ["--fit"],
        type=click.Choice(("letterbox", "stretch", "tile")),
        default="letterbox",
        show_default=True,
        brief="tile: cut large pictures into tiles, for small things.",
        help="How a picture is shown to it: whole, whole and stretched, or in tiles of its size.",
    ),
    _view(
        ["--overlap"],
        metavar="F",
        type=click.FloatRange(0, 0.9),
        default=_OVERLAP,
        show_default=True,
        help="Share of a tile's side that it has in common with the next.",
    ),
    _view(
        ["--scale"],
        metavar="F",
        type=click.FloatRange(0, 16, min_open=True),
        help="Size at which pictures are cut into tiles: 0.5 is half.  [default: the training's]",
    ),
    _view(
        ["--range", "value_range"],
        metavar="RANGE",
        help="Values that are black and white: auto, dtype (all that their type can hold), percentile (by "
        "what is in the picture), or two numbers A,B. Not for video.  [default: the training's]",
    ),
    _view(
        ["--tta"],
        type=click.Choice(("none", "horizontal", "flips", "d4")),
        default="none",
        show_default=True,
        help="Average over mirror images: 2 views, flips 4, d4 8 with quarter turns; as many times the work.",
    ),
    _view(
        ["--channels"],
        metavar="N,N,...",
        type=CHANNELS,
        help="Bands of each picture that it takes, from 1, in its order: 3,2,1.  [default: the model's]",
    ),
    _view(["--refine"], is_flag=True, help="Move the edges of masks to those of the photo."),
    _model(
        ["--backend"],
        metavar="NAME",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        help=f"What runs the network: {', '.join(BACKENDS)}. auto takes the first that can, in this order, "
        "on a CPU openvino before torch, and says why; the others never fall back.",
    ),
    _model(
        ["--device"],
        metavar="NAME",
        brief="cpu, cuda or mps.  [default: a GPU if there is one]",
        help="cpu, cuda, cuda:1 or mps.  [default: a GPU if there is one]",
    ),
    _model(["--require-gpu"], is_flag=True, help="Refuse to run on the CPU."),
    engines_dir_option("Model"),
    _scale(
        ["--batch-size"],
        metavar="N",
        type=click.IntRange(1, 4096),
        help="Most pictures in one pass of the network.  [default: fits the device]",
    ),
)
