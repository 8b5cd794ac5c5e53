"""Every error that unet-batch raises on purpose.

UnetBatchError                 base: a message with the numbers, and a hint with the fix
├── UsageError                 the request cannot be carried out as given
│   ├── SourceError            a source does not exist, or holds nothing to segment
│   └── SplitError             a dataset cannot be parted into training and validation
├── RunError                   ends a run: the next item would meet it, too
│   └── OutputError            the output folder cannot be used (missing rights, disk full)
│       ├── FolderInUse        another run is writing there
│       └── ManifestError      what is in it cannot be continued: of another model, or of a newer version
├── CheckpointError            a model file is damaged, foreign, or newer than this program
├── TrainingError              a training cannot go on: it diverged, or its saved state does not fit
├── BackendError               an inference backend failed while running
│   ├── BackendUnavailable     the backend asked for cannot run on this machine
│   └── DeviceOutOfMemory      the GPU's memory does not hold the batch
└── ItemError                  belongs to one item; the run reports it and goes on (exit code 1)
    ├── SourceVanished         a file was there when the run began, and is gone
    ├── ImageError             a picture cannot be decoded
    │   ├── ImageTooLarge      its header asks for more pixels than the limit
    │   └── DecoderCrashed     decoding it ended the decoder's process, or took too long
    ├── VideoError             a clip cannot be opened, decoded or encoded
    └── EncodeError            a result cannot be encoded

Where an error ends a command, the exit code is 2.

Foreign exceptions (cv2.error, OSError, safetensors' own) are translated where they enter the program, so that
a caller who catches `UnetBatchError` catches everything a user can cause. A bug stays what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class UnetBatchError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what happened, naming the file and the numbers.
        hint: what the user can do about it; may be empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def with_hint(self, hint: str) -> Self:
        """The same error with another hint, to be raised `from` this one."""
        return type(self)(self.message, hint=hint)

    def with_context(self, context: str) -> Self:
        """The same error, its message behind `context` (a file, an output), to be raised `from` this one."""
        return type(self)(f"{context}: {self.message}", hint=self.hint)


class UsageError(UnetBatchError):
    """The request cannot be carried out as given."""


class SourceError(UsageError):
    """A source does not exist, cannot be listed, or holds nothing to segment."""


class SplitError(UsageError):
    """A dataset cannot be parted into what trains and what validates."""


class RunError(UnetBatchError):
    """Ends a run: not one item is at fault, and the next would meet the same."""


class OutputError(RunError):
    """The output folder cannot be created or written: rights, a full disk, a file in the way."""


class FolderInUse(OutputError):
    """Another run is writing to the output folder; the message names its owner."""


class ManifestError(OutputError):
    """An output folder cannot be continued: made by another model, a newer version, or nobody knows who."""


class CheckpointError(UnetBatchError):
    """A model file is damaged, foreign, or newer than this program."""


class TrainingError(UnetBatchError):
    """A training cannot go on: the loss is not finite, or the saved state belongs to another training."""


class BackendError(UnetBatchError):
    """An inference backend failed while running."""


class BackendUnavailable(BackendError):
    """The backend that was asked for cannot run on this machine; the hint says what would help."""


class DeviceOutOfMemory(BackendError):
    """The GPU's memory does not hold what is needed; a smaller batch may fit."""


class ItemError(UnetBatchError):
    """Belongs to one item: the run records it and goes on."""


class SourceVanished(ItemError):
    """A source was there when the run began, and was gone when its turn came."""


class ImageError(ItemError):
    """A picture cannot be decoded: unreadable, truncated, corrupt, or of an unknown format."""


class ImageTooLarge(ImageError):
    """The header of a picture asks for more pixels than the limit allows."""


class DecoderCrashed(ImageError):
    """A picture crashed the process that decoded it, or took too long; another try would do the same."""


class VideoError(ItemError):
    """A clip cannot be opened, holds no frame that decodes, or cannot be encoded."""


class EncodeError(ItemError):
    """A result cannot be encoded."""
