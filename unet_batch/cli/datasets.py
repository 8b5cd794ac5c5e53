"""The options that say what a dataset is: the same for every command that takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from unet_batch.cli.screen import Lines
    from unet_batch.datasets.dataset import Dataset

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--images", metavar="DIR", help="Folder of images, if not DATASET/images or the like."),
    click.option("--masks", metavar="DIR", help="Folder of masks, if not DATASET/masks or the like."),
    click.option(
        "--coco",
        metavar="FILE.json",
        help="COCO annotations in place of a folder of masks; DATASET holds the images.",
    ),
    click.option(
        "--group-by",
        metavar="REGEX",
        help="What in a name tells which images belong together: '^(.+)_' for <car>_<view>.",
    ),
)


def dataset_options(command: Command) -> Command:
    """Add --images, --masks, --coco and --group-by; the command hands them to `opened` as they are."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def opened(
    folder: str, *, images: str | None, masks: str | None, coco: str | None, group_by: str | None
) -> Dataset:
    """Find the dataset that the options name.

    Raises:
        UnetBatchError: see `find_dataset`.
    """
    from unet_batch.cli.screen import console
    from unet_batch.datasets.find import find_dataset

    with console(stderr=True).status("looking at the masks ..."):  # on terminals only
        return find_dataset(folder, images=images, masks=masks, coco=coco, group_by=group_by)


def understood(out: Lines, dataset: Dataset) -> None:
    """Print where the dataset is, and every guess."""
    from unet_batch.cli.screen import shown

    out.line("dataset", shown(dataset.root))
    for reason in dataset.reasons:
        out.line("", reason)
