"""Which items belong to one of several runs that share a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from unet_batch.errors import UsageError
from unet_batch.files.branches import Branches
from unet_batch.files.naming import folder_key

FOLDERS = 32
"""For each shard: so many folders side by side are dealt whole. With a hash, the shard that gets most of a
hundred then has less than twice its share; of more shards than machines, the short ones even that out."""


@dataclass(frozen=True)
class Shard:
    """One of several runs that share the work by a hash of the key: each item belongs to just one.

    Attributes:
        number: 1..count.
        count: how many there are.

    Raises:
        UsageError: the number is not one of 1..count.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= 99999:
            raise UsageError(
                f"shard {self.number}/{self.count}: I/N with I from 1 to N expected", hint="e.g. --shard 2/8"
            )

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> Shard:
        """Read `2/8`, or `slurm`: the place of this task in its Slurm job array.

        Raises:
            UsageError: it is neither, or the variables of Slurm are missing or leave gaps.
        """
        if text != "slurm":
            number, slash, count = text.partition("/")
            if not (slash and number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
                raise UsageError(f"shard {text!r}: I/N or slurm expected", hint="e.g. --shard 2/8")
            return cls(int(number[:9]), int(count[:9]))
        try:
            task, least, most, count_ = (
                int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT")
            )
            step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"--shard slurm: this is no task of a Slurm job array ({error} is missing or not a number)",
                hint="start it with sbatch --array=1-8, or say --shard I/N",
            ) from error
        if step < 1 or (task - least) % step or least + (count_ - 1) * step != most:
            raise UsageError(
                f"--shard slurm: {count_} tasks from {least} to {most} by {step} are not one evenly spaced "
                f"range",
                hint="submit the array whole, as in --array=1-8, or say --shard I/N",
            )
        return cls((task - least) // step + 1, count_)

    @property
    def part(self) -> str:
        """`2-of-8`, for the names of files."""
        return f"{self.number}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def takes(self, key: str, depth: int = 0) -> bool:
        """Whether an item of this key belongs to this shard.

        Args:
            key: of the item.
            depth: whole folders are dealt, of so many components of the key; an item above them, and every
                item if it is 0, by itself.
        """
        folders = key.split("/", depth)
        if depth and len(folders) > depth:
            return self.takes_folder(folder_key("/".join(folders[:depth])))
        return self.takes_folder(key)

    def takes_folder(self, name: str) -> bool:
        """Whether a folder of this `naming.folder_key` belongs to this shard, with all below."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def branches(self, depth: int | None = None) -> Branches:
        """What this shard looks into of a tree.

        Args:
            depth: at which folders are dealt; None finds that out.
        """
        return Branches(self.takes_folder, FOLDERS * self.count, depth)
