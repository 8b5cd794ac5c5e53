"""The models that come with the package."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from unet_batch.errors import CheckpointError


@dataclass(frozen=True)
class Bundled:
    """A bundled model, as lists and messages name it; its card says the rest.

    Attributes:
        purpose: what it is for, in a few words.
        terms: what its file says, see `ModelSpec.terms`; `python -m scripts.set_terms` writes it there.
    """

    purpose: str
    terms: str


_CARVANA = (
    "non-commercial, academic: trained on Kaggle's Carvana photos, under its rules, and on drawn scenes"
)

_ANYWHERE = (
    "non-commercial, academic: trained on photos of Kaggle's Carvana, under its rules, CamVid (CC BY-NC "
    "4.0), Car-Parts (no licence stated, research use) and others, and on drawn scenes"
)

# In the order in which they are listed; the first one is the default.
BUNDLED: Mapping[str, Bundled] = {
    "default": Bundled("cars anywhere, 448x672", _ANYWHERE),
    "fast": Bundled("cars anywhere, in the least time, 256x352", _ANYWHERE),
    "fine": Bundled("cars anywhere, finer edges in studios: default at 544x800", _ANYWHERE),
    "classic": Bundled("cars in a studio, a plain U-Net at 160x240", _CARVANA),
}
DEFAULT = next(iter(BUNDLED))
WEIGHTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights")


def resolve(model: str | None) -> str:
    """Find a checkpoint's file: None is the bundled default, a bundled name its file, all else a path.

    Raises:
        CheckpointError: neither a bundled name nor an existing file.
    """
    name = model or DEFAULT
    if name in BUNDLED:
        return os.path.join(WEIGHTS, f"{name}.safetensors")
    if not os.path.exists(name):
        raise CheckpointError(f"{name}: no such model file", hint=f"bundled models: {', '.join(BUNDLED)}")
    return name


def card_points(model: str, section: str) -> list[str]:
    """The bullet points below a heading of the card beside a checkpoint; none where either is missing."""
    try:
        with open(os.path.splitext(model)[0] + ".md", encoding="utf-8") as file:
            card = file.read()
    except (OSError, ValueError):
        return []
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    points = re.findall(r"^\* (.+?)(?=\n\* |\n\n|\Z)", found[1] if found else "", re.MULTILINE | re.DOTALL)
    # Where a link leads says the card, not a terminal
    return [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(point.split())) for point in points]
