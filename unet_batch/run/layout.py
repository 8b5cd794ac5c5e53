"""Where the outputs of clips go, and what encodes them."""

from __future__ import annotations

from collections.abc import Sequence

from unet_batch import gpu
from unet_batch.errors import UsageError
from unet_batch.files.outputs import CLIP_KINDS, KINDS, PLAIN, ClipTree, Style
from unet_batch.media import video


class ClipLayout(ClipTree):
    """Where the outputs of clips go, and how each is encoded.

    Args:
        folder: the output folder.
        kinds: what is wanted; those that no clip has are left out.
        codec: of overlays; masks are always lossless.
        style: how they are drawn.
    """

    def __init__(self, folder: str, kinds: Sequence[str], codec: video.Codec, style: Style = PLAIN) -> None:
        self.codec, self.style = codec, style
        suffixes = {kind: self.codec_of(kind).suffix for kind in CLIP_KINDS if KINDS[kind].suffix}
        super().__init__(folder, kinds, suffixes)

    def codec_of(self, kind: str) -> video.Codec:
        """How an output is encoded."""
        if kind == "cutout":
            return video.alpha_codec(self.codec)
        return self.codec if KINDS[kind].for_viewing else video.MASKS

    def quality_of(self, kind: str, quality: int | None) -> int | None:
        """The quality that was asked for, of what is coded in its measure."""
        return quality if self.codec_of(kind).quality == self.codec.quality else None


def choose_encoder(name: str, kinds: Sequence[str] = ()) -> tuple[video.Codec, str]:
    """The encoder for a codec of `--codec`, and why; tried, so that a run need not find out in the morning.

    Args:
        name: of the codec.
        kinds: what is wanted; of a cutout the codec that knows opacity is tried, too.

    Raises:
        UsageError: it does not work here.
        RunError: PyAV does not load.
    """
    codec = video.CODECS[name]
    if "cutout" in kinds and (problem := video.encoder_problem(video.alpha_codec(codec))):
        raise UsageError(
            f"--save cutout: {video.alpha_codec(codec).encoder} does not work here: {problem}",
            hint="take --codec ffv1, or leave cutout out",
        )
    if name == "h264":
        graphics = video.CODECS["h264_nvenc"]
        why_not = gpu.missing() or video.encoder_problem(graphics)
        if not why_not:
            return graphics, "the GPU has NVENC"
    if problem := video.encoder_problem(codec):
        other = "vp9 or prores" if name == "h264" else "h264"
        raise UsageError(
            f"--codec {name}: {codec.encoder} does not work here: {problem}", hint=f"take --codec {other}"
        )
    return codec, f"no NVENC: {why_not}" if name == "h264" else "as asked"
