"""What `mkdocs` does besides what mkdocs.yml says: links to files of the repository and to classes named in docstrings,
and arguments that docstrings describe together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig


SETUP = Path(__file__).resolve().parents[1] / "setup.py"
# Names of arguments, or their type, that go on in the next line.
CONTINUED = re.compile(r"^( {4}(?:[\w*]+, )*[\w*]+,| {4}[\w*, ]+ \([^)\n]*)\n +", re.MULTILINE)
TYPE = re.compile(r"^( {4}[\w*, ]+ )\((.*?)\):", re.MULTILINE)


def repository() -> str:
    """The address that setup.py names; empty where it names none."""
    found = re.search(r'^REPOSITORY = "(.*)"', SETUP.read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else ""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the repository on each page."""
    config.repo_url = repository() or None
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links that leave docs/ to the repository; without an address they are text."""
    target = rf"[\1]({repository()}/blob/main/\2)" if repository() else r"\1"
    return re.sub(r"\[([^\]]*)\]\(\.\./(?!\w+\.md)([\w./-]+)\)", target, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name classes as [`GLIDEPipeline`]: a link where the name is documented."""

    def link(match: re.Match[str]) -> str:
        name = match.group(1)
        return f'<autoref identifier="glide_pipelines.{name}" optional><code>{name}</code></autoref>'

    return re.sub(r"\[<code>([\w.]+)</code>\](?!\()", link, html)


class Docstrings(griffe.Extension):
    """Arguments as griffe reads them: named in one line, where ours of one meaning are named together over several,
    with a type of plain text; the default stands beside it anyway."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Rewrite the docstring."""
        if obj.is_alias or obj.docstring is None:
            return
        text, count = obj.docstring.value, 1
        while count:
            text, count = CONTINUED.subn(r"\1 ", text)
        obj.docstring.value = TYPE.sub(lambda match: f"{match[1]}({plain(match[2])}):", text)


def plain(text: str) -> str:
    """A type without markup and default."""
    text = re.sub(r",? defaults to .*", "", text).replace("*optional*", "optional")
    return text.replace("[`", "").replace("`]", "").replace("`", "")
