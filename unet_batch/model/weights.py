"""Find the weights of one network in a file that another project saved.

| in the file                                   | is                                                    |
|-----------------------------------------------|-------------------------------------------------------|
| dictionaries of tensors, under any prefix     | a network where the names of a known layout occur     |
| `_orig_mod.` and the like in names            | what torch.compile and FSDP put there: removed        |
| two copies, one called ema, swa, averaged ... | the averaged one is taken; people are told            |
| an average of the trained values alone        | completed by the running statistics of the other copy |
| `n_averaged`, class weights of a loss         | left out: at most one dimension; people are told      |
| averaged values in a list                     | left out: they have no names; people are told         |
| several copies, other networks, other layers  | refused: a part may not be what was trained           |
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unet_batch.errors import CheckpointError
from unet_batch.model import checkpoint, foreign

_SAFE_TORCH = (2, 10)
_DEEPEST = 8  # dictionaries in dictionaries; a pickle can hold itself
_WRAPPERS = re.compile(r"(?:^|(?<=\.))_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_Place = tuple[object, ...]  # keys of dictionaries and numbers in lists, outermost first
_AVERAGED = {"ema", "swa", "averaged", "average", "avg", "polyak", "shadow"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# Grey values that milesial's training puts beside the weights, and BatchNorm's counters.
_NO_WEIGHTS = ("mask_values", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one network.

    Attributes:
        tensors: float32 on the CPU, under the source's names without prefixes; BatchNorm's counters left out.
        notes: what was chosen and what was left out, for people.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Network:
    """The tensors of one network in a file.

    Attributes:
        place: keys of the dictionaries that lead to them.
        prefix: before all of their names.
        below: prefixes of other networks that begin with this one's, in the same dictionary.
        tensors: by name without the prefix; values that are no tensors are still among them.
    """

    place: _Place
    prefix: str
    below: tuple[str, ...]
    tensors: dict[str, Any]

    @property
    def name(self) -> str:
        """What a person would call it."""
        return _dotted((*self.place, *self.prefix.split("."))).strip(".") or "the tensors at the top"

    @property
    def is_averaged(self) -> bool:
        """Whether it is called an average of weights."""
        return _is_averaged((*self.place, self.prefix))


def read_weights(path: str, marks: Collection[str]) -> Weights:
    """Read the weights of the one network in a file that is meant.

    Args:
        path: a `.pth` of tensors (read without running what a pickle may hold) or a `.safetensors` file.
        marks: names of tensors by which the networks that can be imported are known.

    Returns:
        The network that has one of the marks; where none has, the largest dictionary of tensors.

    Raises:
        CheckpointError: the file is damaged, needs code to be read, holds no tensors with names, or several
            networks of which none is an average of the other; or it is a `.pth` and PyTorch is older than
            2.10.
    """
    found = _read(path)
    tables, lists = list(_tables(found)), list(_lists(found))
    networks, others, notes = _find_networks(path, tables, marks)
    if not networks:
        if not tables:
            raise CheckpointError(
                f"{path}: holds no state dict but "
                + ("tensors without names" if lists else type(found).__name__),
                hint="save one with torch.save(model.state_dict(), 'weights.pth')",
            )
        largest = max((table for _, table in tables), key=len)
        return Weights(_check(path, _without_prefix(largest)))
    network, choice = _choose(path, networks)
    if others:
        raise CheckpointError(
            f"{path}: holds other layers beside the U-Net ({network.name}): {first_names(others)}",
            hint="where the U-Net alone makes your masks, save it alone: " + _line_that_saves(path, network),
        )
    if unnamed := [_dotted(place) for place in lists if _is_averaged(place)]:
        notes.append(
            f"averaged values without names are left out: {first_names(unnamed)}; to take them, copy them "
            f"into the model and save its state_dict()"
        )
    return Weights(_check(path, network.tensors), (*choice, *notes))


def _find_networks(
    path: str, tables: Iterable[tuple[_Place, dict[str, Any]]], marks: Collection[str]
) -> tuple[list[_Network], list[str], list[str]]:
    """Find the networks that have a mark, the layers beside them, and notes on what is left out."""
    networks: list[_Network] = []
    others: list[str] = []
    left_out: list[str] = []
    for place, table in tables:
        found = (_prefix(name, marks) for name in table)
        prefixes = list(dict.fromkeys(prefix for prefix in found if prefix is not None))
        rest = dict(table)
        here: list[_Network] = []
        # Longest first: one network's prefix may begin with the other's, and be empty.
        for prefix in sorted(prefixes, key=len, reverse=True):
            below = tuple(each.prefix for each in here if each.prefix.startswith(prefix))
            names = [name for name in rest if name.startswith(prefix)]
            tensors = {name[len(prefix) :]: rest.pop(name) for name in names}
            here.append(_Network(place, prefix, below, tensors))
        networks += sorted(here, key=lambda network: len(network.prefix))
        for name, value in rest.items():
            if isinstance(value, Tensor) and value.dim() > 1 and name.endswith("weight"):
                others.append(_dotted((*place, name)))
            elif prefixes and not isinstance(value, (Mapping, list, tuple)):
                left_out.append(_describe_left_out(name, value))
    return networks, others, [f"left out: {first_names(left_out)}"] if left_out else []


def _describe_left_out(name: str, value: Any) -> str:
    if name.endswith("n_averaged") and isinstance(value, Tensor) and value.numel() == 1:
        return f"{name}, which says that the weights are averaged over {int(value):,} models"
    return name


def _choose(path: str, networks: Sequence[_Network]) -> tuple[_Network, list[str]]:
    """Choose the network that is meant, with notes: the only one, or the average of the other."""
    distinct: list[_Network] = []
    for network in networks:
        if not any(_are_equal(network.tensors, other.tensors) for other in distinct):
            distinct.append(network)
    averaged = [network for network in distinct if network.is_averaged]
    own = [network for network in distinct if not network.is_averaged]
    if len(distinct) == 1:
        return distinct[0], []
    if len(averaged) == len(own) == 1 and _is_part(averaged[0].tensors, own[0].tensors):
        average, plain = averaged[0], own[0]
        notes = [f"{average.name}, the averaged weights, are taken, not {plain.name}"]
        if missing := [name for name in plain.tensors if name not in average.tensors]:
            notes.append(f"{average.name} lacks {first_names(missing)}: these are taken from {plain.name}")
        return replace(average, tensors={**plain.tensors, **average.tensors}), notes
    raise CheckpointError(
        f"{path}: holds {len(distinct)} networks, and which one is meant is not clear: "
        f"{first_names(network.name for network in distinct)}",
        hint=f"save the one you mean alone, for example {distinct[0].name}: "
        + _line_that_saves(path, distinct[0]),
    )


def _line_that_saves(path: str, network: _Network) -> str:
    """A line of Python that saves one network of a file."""
    name = os.path.basename(path)
    if path.lower().endswith(".safetensors"):
        tensors, how = f"load_file({name!r})", "from safetensors.torch import load_file; "
    else:
        tensors, how = f"torch.load({name!r}, map_location='cpu')", ""
    tensors += "".join(f"[{key!r}]" for key in network.place)
    if network.prefix or network.below:
        mine = [f"k.startswith({network.prefix!r})"] if network.prefix else []
        mine += [f"not k.startswith({network.below!r})"] if network.below else []
        tensors = f"{{k: v for k, v in {tensors}.items() if {' and '.join(mine)}}}"
    return f"import torch; {how}torch.save({tensors}, 'weights.pth')"


def _tables(value: Any, place: _Place = ()) -> Iterator[tuple[_Place, dict[str, Any]]]:
    """All dictionaries that hold tensors, outermost first, with the keys that lead to them."""
    if isinstance(value, Mapping):
        table = {
            _WRAPPERS.sub("", str(name)): each
            for name, each in value.items()
            if not str(name).endswith(_NO_WEIGHTS)
        }
        if any(isinstance(each, Tensor) for each in table.values()):
            yield place, table
    for key, each in _inside(value, place):
        yield from _tables(each, (*place, key))


def _lists(value: Any, place: _Place = ()) -> Iterator[_Place]:
    """Places of all lists of tensors that might be weights."""
    if isinstance(value, (list, tuple)) and any(
        isinstance(each, Tensor) and each.dim() > 1 for each in value
    ):
        yield place
    for key, each in _inside(value, place):
        yield from _lists(each, (*place, key))


def _inside(value: Any, place: _Place) -> Iterator[tuple[object, Any]]:
    if len(place) < _DEEPEST and isinstance(value, (Mapping, list, tuple)):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        yield from ((key, each) for key, each in pairs if isinstance(each, (Mapping, list, tuple)))


def _prefix(name: str, marks: Collection[str]) -> str | None:
    """What stands before a mark; None for names without."""
    return next((name[: -len(m)] for m in marks if name == m or name.endswith(f".{m}")), None)


def _without_prefix(table: dict[str, Any]) -> dict[str, Any]:
    """Names without the steps that all begin with."""
    while all("." in name for name in table) and len({name.partition(".")[0] for name in table}) == 1:
        table = {name.partition(".")[2]: value for name, value in table.items()}
    return table


def _dotted(place: _Place) -> str:
    return ".".join(map(str, place))


def _is_averaged(place: _Place) -> bool:
    return any(word.lower() in _AVERAGED for step in place for word in _WORD.findall(str(step)))


def _are_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
        for a, b in ((one[name], other[name]) for name in one)
    )


def _is_part(one: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Whether all tensors of one network are in the other, by name and shape."""
    return all(
        getattr(whole.get(name), "shape", None) == getattr(value, "shape", None)
        for name, value in one.items()
    )


def _check(path: str, found: Mapping[str, Any]) -> dict[str, Tensor]:
    """Refuse what is no ordinary tensor of finite values; the others in float32."""
    tensors = {}
    for name, value in found.items():
        if (
            not isinstance(value, Tensor)
            or value.layout != torch.strided
            or not value.is_floating_point()
            or value.device.type != "cpu"
        ):
            kind = f"{value.dtype} {value.layout}" if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"{path}: {name} is no ordinary tensor but {kind}")
        tensors[name] = value.float()
        if not bool(torch.isfinite(tensors[name]).all()):
            raise CheckpointError(
                f"{path}: {name} holds values that are not finite", hint="use an earlier file of the training"
            )
    return tensors


def _read(path: str) -> Any:
    """Read a file; of a pickle only tensors and plain containers."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if start[8:] == b"{":
        try:
            with safe_open(path, framework="pt") as tensors:
                metadata = tensors.metadata() or {}
                if metadata.get("format") != checkpoint.FORMAT:
                    return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise _damage_error(path, error) from error
        raise CheckpointError(
            f"{path}: a checkpoint of unet-batch already, nothing to import",
            hint=f"unet-batch run ./photos -m {path}",
        )
    if tuple(map(int, torch.__version__.split(".")[:2])) < _SAFE_TORCH:
        raise CheckpointError(
            f"{path}: not read with PyTorch {torch.__version__}: before {_SAFE_TORCH[0]}.{_SAFE_TORCH[1]}, "
            f"a .pth can corrupt "
            "the memory even where its code is not run (CVE-2026-24747)",
            hint="update PyTorch, or import a .safetensors file of the same weights",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols and TorchScript: what matters comes as an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged pickle, torch lets out whatever its reader runs into
        text = " ".join(str(error).split())
        code = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", text)
        if code or "TorchScript" in text:
            what = f"Python code ({code[1]})" if code else "a TorchScript program"
            raise CheckpointError(
                f"{path}: holds {what}, not only weights; reading it could run code hidden in it",
                hint="where you trust it, load it and save the weights alone: "
                "torch.save(model.state_dict(), 'weights.pth')",
            ) from error
        found = foreign.recognise(path)
        if found is not None and not found.is_pickle:
            raise CheckpointError(f"{path}: {found.what}", hint=found.fix) from error
        raise _damage_error(path, error) from error


def _damage_error(path: str, error: Exception) -> CheckpointError:
    reason = (
        " ".join(str(error).split())
        .rpartition("WeightsUnpickler error: ")[2]
        .partition(" Check the doc")[0][:100]
    )
    size, kind = os.path.getsize(path), type(error).__name__
    return CheckpointError(
        f"{path}: damaged, or not written by torch.save ({size:,} bytes): {kind} {reason}".rstrip(),
        hint="copy or download it again",
    )


def first_names(names: Iterable[str]) -> str:
    """At most four of some names, and whether there are more."""
    names = list(names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
