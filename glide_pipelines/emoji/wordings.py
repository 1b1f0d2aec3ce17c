"""Wordings for the emoji whose Unicode name is not what a person would call the picture: see `wordings.txt`."""

from __future__ import annotations

from pathlib import Path


FILE = Path(__file__).parent / "wordings.txt"
_ENTRIES = (line.split(": ") for line in FILE.read_text(encoding="utf-8").splitlines() if line and line[0] != "#")

# Noun phrases by code point; they replace the names of the emoji data.
WORDINGS: dict[str, tuple[str, ...]] = {codepoint: tuple(said.split("; ")) for codepoint, said in _ENTRIES}
