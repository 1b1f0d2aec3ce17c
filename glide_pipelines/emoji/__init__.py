"""The Fluent emoji: a set of captioned images, made from two npm packages."""

from .build import NOTICE, Summary, build, choose, place
from .captions import Emoji, captions, phrases
from .held_out import HELD_OUT
from .sources import Package, fetch_package, open_package
from .vocabulary import prompt_warning


__all__ = [
    "HELD_OUT",
    "NOTICE",
    "Emoji",
    "Package",
    "Summary",
    "build",
    "captions",
    "choose",
    "fetch_package",
    "open_package",
    "phrases",
    "place",
    "prompt_warning",
]
