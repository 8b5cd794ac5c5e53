"""Documents that lie outside docs/ become pages of the site, and links between them keep working.

On a forge, a link from docs/run.md to ../ARCHITECTURE.md is right as it stands; in the site that file is
another page. So links are resolved in the repository first, and written anew for the page's own place.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# File of the repository: its place in the site.
OUTSIDE = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "LICENSE": "project/LICENSE.txt",
    "README.md": "index.md",
    **{
        f"unet_batch/model/weights/{name}.md": f"cards/{name}.md"
        for name in ("default", "fast", "fine", "classic")
    },
}
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_files(files: Any, config: Any) -> Any:
    """Add the documents that lie outside docs/."""
    for source, place in OUTSIDE.items():
        if source != "README.md":  # docs/index.md stands in for it
            files.append(File.generated(config, place, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write the links of a page anew, for the place where it lies in the site."""
    place = page.file.src_uri
    sources = {site: source for source, site in OUTSIDE.items() if source != "README.md"}
    source = sources.get(place, f"docs/{place}")

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if not os.path.exists(ROOT / target):
            return match[0]  # MkDocs names it in its warning
        site = OUTSIDE.get(target, target.removeprefix("docs/"))
        return match[1] + posixpath.relpath(site, posixpath.dirname(place) or ".") + match[3]

    return _LINK.sub(moved, markdown)
