"""Licence and attribution of the images."""

from pathlib import Path


NOTICE = (Path(__file__).parent / "NOTICE.md").read_text(encoding="utf-8")
