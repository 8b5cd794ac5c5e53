"""Where the outputs of clips go, and what encodes them."""

from __future__ import annotations

from collections.abc import Sequence

from unet_batch import gpu
from unet_batch.errors import UsageError
from unet_batch.files.outputs import CLIP_KINDS, KINDS, ClipTree
from unet_batch.media import video


class ClipLayout(ClipTree):
    """Where the outputs of clips go, and how each is encoded.

    Args:
        folder: the output folder.
        kinds: what is wanted; those that no clip has are left out.
        codec: of overlays; masks are always lossless.
    """

    def __init__(self, folder: str, kinds: Sequence[str], codec: video.Codec) -> None:
        self.codec = codec
        suffixes = {kind: self.codec_of(kind).suffix for kind in CLIP_KINDS if KINDS[kind].suffix}
        super().__init__(folder, kinds, suffixes)

    def codec_of(self, kind: str) -> video.Codec:
        """How an output is encoded."""
        return self.codec if KINDS[kind].for_viewing else video.MASKS


def choose_encoder(name: str) -> tuple[video.Codec, str]:
    """The encoder for a codec of `--codec`, and why; tried, so that a run need not find out in the morning.

    Raises:
        UsageError: it does not work here.
        RunError: PyAV does not load.
    """
    codec = video.CODECS[name]
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
