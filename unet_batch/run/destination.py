"""Where the results of a run go."""

from __future__ import annotations

import os

from unet_batch.errors import UsageError
from unet_batch.files import remote
from unet_batch.files.roots import is_below
from unet_batch.files.sources import Sources
from unet_batch.media import images, video
from unet_batch.run.manifest import Manifest
from unet_batch.run.options import RunOptions


def named_output(options: RunOptions) -> str:
    """The output folder that was asked for, absolute.

    Raises:
        UsageError: it cannot be one.
    """
    output = options.output
    if not output:
        raise UsageError("the output folder has an empty name", hint="leave -o out, or name a folder")
    if remote.is_remote(output):
        url = remote.normalize(output)
        if url in [remote.normalize(source) for source in options.sources if remote.is_remote(source)]:
            raise _is_source_too(output, url)
        if not output.endswith("/"):
            _check_folder_name(output, url)
        return url
    folder = os.path.abspath(output)
    if folder in map(os.path.abspath, options.sources):
        raise _is_source_too(output, folder)
    # A folder that exists was called like this on purpose, or by an earlier release.
    if not output.endswith(("/", os.sep)) and not os.path.lexists(folder):
        _check_folder_name(output, folder)
    return folder


def _check_folder_name(output: str, folder: str) -> None:
    if images.is_supported(folder) or video.is_clip(folder):
        stem = os.path.splitext(output)[0]
        raise UsageError(
            f"-o {output}: this is called like a file, and results go into a folder, each under the name of "
            "its source",
            hint=f"name a folder, for example -o {stem}: masks are then in {os.path.join(stem, 'masks')}",
        )


def choose_output(sources: Sources) -> tuple[str, tuple[str, ...]]:
    """Where results go that nobody has named a folder for, and what people should know of it.

    Up to 0.2.0 they lay beside the common folder whatever was named, and a run of that folder itself still
    puts them there. They are gone on with, unless there is something at the new place, too.

    Raises:
        UsageError: there are pictures in that folder.
    """
    folder, before = sources.default_output, f"{sources.root}-segmented"
    if sources.root and before != folder and not os.path.lexists(folder) and Manifest.is_in(before):
        note = f"goes on in {before}, which holds results of this folder; -o {folder} begins anew"
        return before, (note,)
    if any(is_below(item.path, folder) for item in sources.items):
        raise _is_source_too(folder, folder)
    return folder, ()


def _is_source_too(output: str, folder: str) -> UsageError:
    return UsageError(
        f"{output} is a source and cannot be the output folder as well: results would be read as pictures",
        hint=f"choose another folder, for example -o {folder}-segmented",
    )
