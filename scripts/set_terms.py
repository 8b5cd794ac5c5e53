"""Write the terms of the bundled models into their files; the bytes of the weights stay as they are.

    python -m scripts.set_terms

They are those of `unet_batch.model.zoo.BUNDLED`. A file that says so already is left alone; any other gets
another sha256, so runs with it begin anew and its engines are built again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from unet_batch.files.atomic import write_atomic
from unet_batch.model import zoo


def with_terms(data: bytes, terms: str) -> bytes:
    """A checkpoint's bytes with other terms."""
    return with_values(data, terms=terms)


def with_values(data: bytes, **values: Any) -> bytes:
    """A checkpoint's bytes with other values in its spec: of them only the header changes.

    Tensors are counted from its end.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    spec = json.loads(header["__metadata__"]["spec"])
    header["__metadata__"]["spec"] = json.dumps({**spec, **values}, sort_keys=True)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for name, bundled in zoo.BUNDLED.items():
        path = Path(zoo.resolve(name))
        before = path.read_bytes()
        after = with_terms(before, bundled.terms)
        if after != before:
            write_atomic(str(path), after)
        shas = (hashlib.sha256(data).hexdigest()[:12] for data in (before, after))
        print(f"{name}: sha256 {' -> '.join(shas)}")


if __name__ == "__main__":
    main()
