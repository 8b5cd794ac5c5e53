"""The proof of an engine on the device that meets it first, before it writes a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from unet_batch.engine import proof
from unet_batch.engine.store import Engine
from unet_batch.errors import BackendError, BackendUnavailable, OutputError

if TYPE_CHECKING:
    from unet_batch.engine.proof import Parity, Reference
    from unet_batch.types import Size


def complete_proof(
    engine: Engine,
    device: str,
    size: Size,
    batch: int,
    run: Callable[[Reference, tuple[int, ...]], Mapping[str, Parity]],
    notes: list[str],
) -> Engine:
    """Prove an engine on a device that has not run it at this batch, record that, and refuse wrong masks.

    TensorRT-RTX and OpenVINO compile for each device, so that a proof on another says nothing.

    Args:
        engine: loaded.
        device: name of the GPU or CPU.
        size: (height, width) that it will run at.
        batch: most pictures in one pass.
        run: computes its maps of a reference at several batches, and compares them.
        notes: collects what people should know.

    Returns:
        The engine, with what its sidecar says now.

    Raises:
        BackendUnavailable: its masks are wrong, or the pictures to prove it on are missing.
        BackendError: it failed while running.
    """
    sidecar = engine.sidecar
    recipe = sidecar.recipe
    if size != recipe.profile.size[1]:
        best, here = ("{}x{}".format(*each) for each in (recipe.profile.size[1], size))
        notes.append(f"the engine is proven at {best}; at {here} its masks were not compared")
    proven = {each.split()[1] for each in sidecar.proofs.get(device, ())}
    if str(batch) in proven:
        return engine
    # Later only what this run needs: the profile's largest batch may not fit beside other programs, today or
    # ever.
    batches = (batch,) if proven else (*recipe.profile.batch, batch)
    reference = engine.read_reference()
    parities = run(reference, batches)
    try:
        for each, parity in parities.items():
            parity.check(recipe.precision, f"{basename(engine.path)} on {device}, {each}")
    except BackendError as error:
        with suppress(OutputError):  # that it is wrong matters more than where that is written down
            engine.refuse(device, error.message)
        raise BackendUnavailable(error.message, hint=engine.rebuild) from error
    dice = min(parity.dice for parity in parities.values())
    is_weak = any(parity.is_weak for parity in parities.values())
    weak = ", but its pictures show next to nothing" if is_weak else ""
    where = "CPU" if recipe.on_cpu else "GPU"
    notes.append(
        f"the engine's first run on this {where}: its masks are {reference.made_by}'s, Dice {dice:.5f}{weak}"
    )
    try:
        return engine.record_proof(device, {each: proof.as_dict(parity) for each, parity in parities.items()})
    except OutputError as error:  # proven all the same, and proven again next time
        notes.append(f"the proof could not be recorded: {error.message}")
        return engine


def basename(path: str) -> str:
    """The name of a file, whichever system wrote its path."""
    return path.replace("\\", "/").rpartition("/")[2]
