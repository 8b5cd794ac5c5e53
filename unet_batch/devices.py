"""Which devices of this machine share a job, as `--devices` names them."""

from __future__ import annotations

import re

from unet_batch.errors import UsageError

_MOST = 1024  # a typing error is not to start 100,000 processes


def parse_devices(text: str) -> tuple[str, ...]:
    """The devices that `--devices` names, one for each process: `0,1` -> ("cuda:0", "cuda:1").

    `cuda:0,cuda:1` means the same. `cpu:2` -> ("cpu", "cpu"), `cpu` -> ("cpu",), and `auto` stays ("auto",):
    what it stands for is for the command to find out.

    Raises:
        UsageError: it is none of these, names a GPU twice, or mixes GPUs with the CPU.
    """
    words = [word.strip() for word in text.lower().split(",")]
    if words == ["auto"]:
        return ("auto",)
    if match := re.fullmatch(r"cpu(?::(\d{1,9}))?", ",".join(words), re.ASCII):
        count = int(match[1] or 1)
        if not 1 <= count <= _MOST:
            raise UsageError(
                f"devices {text!r}: {count:,} processes, from 1 to {_MOST:,} are possible", hint="e.g. cpu:2"
            )
        return ("cpu",) * count
    numbers = [int(m[1]) for word in words if (m := re.fullmatch(r"(?:cuda:)?(\d{1,4})", word, re.ASCII))]
    if len(numbers) < len(words):
        mixed = numbers and any(word.startswith("cpu") for word in words)
        raise UsageError(
            f"devices {text!r}: "
            + ("GPUs and the CPU do not share a job" if mixed else "auto, numbers of GPUs or cpu:N expected"),
            hint="e.g. --devices 0,1 for two GPUs, or --devices cpu:2 for two processes on the CPU",
        )
    if repeated := [number for number in numbers if numbers.count(number) > 1]:
        raise UsageError(f"devices {text!r}: GPU {repeated[0]} is there twice", hint="name each GPU once")
    return tuple(f"cuda:{number}" for number in numbers)
