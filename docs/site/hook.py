"""Pages of the site that lie elsewhere in the repository, and links between them."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "contents.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "patches/README.md": "patches.md",
    "examples": "examples.md",
}
PLACES = {page: place for place, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")


def examples() -> str:
    text = "# Examples\n\nScripts of the folder `examples`, to run with a model of yours.\n"
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        text += f"\n## {path.name}\n\n```python\n{source}```\n"
    return text


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    for place, page in PAGES.items():
        path = ROOT / place
        text = examples() if path.is_dir() else path.read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links of the repository into links of the site; mkdocs refuses those that lead nowhere."""
    here = page.file.src_uri
    place = PLACES.get(here, f"docs/{here}")

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), found[1]))
        there = PAGES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(there, posixpath.dirname(here) or ".")

    return LINK.sub(link, markdown)
