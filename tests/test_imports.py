"""The rule of imports, read from the source: down only, the guests known to nobody, no command line in the library."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1] / "glide_pipelines"
# The layers from the lowest to the highest; a layer may import those below it, and itself.
LAYERS = (
    {
        "arguments",
        "version",
        "files",
        "markdown",
        "images",
        "measuring",
        "datasets",
        "checkpoints",
        "single_file",
        "metadata",
    },
    {"models", "schedulers"},
    {"sampling"},
    {"pipelines"},
    {"training", "evaluation", "conversion"},
)
# Worlds that live in a folder of their own. They may import everything generic, and nothing generic imports them.
GUESTS = {"shapes", "emoji"}
# The package itself gathers the public names, and `python -m glide_pipelines` is the door of the command.
TOP = {"__init__", "__main__"}
MODULES = sorted(ROOT.rglob("*.py"))


def part_of(module: Path) -> str:
    """The first name below the package: `models` for `models/unet.py`, `files` for `files.py`."""
    return module.relative_to(ROOT).with_suffix("").parts[0]


PARTS = {part_of(module) for module in MODULES}


def imported(source: str, package: str) -> Iterator[str]:
    """The full names of all that a module of this package imports, inside its functions too; of `from x import y` both
    x and x.y."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            name = ".".join([*base, *filter(None, [node.module])])
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def imported_by(module: Path) -> set[str]:
    """What a module imports, by full names."""
    package = ".".join(["glide_pipelines", *module.relative_to(ROOT).parent.parts])
    return set(imported(module.read_text(encoding="utf-8"), package))


def parts_among(names: Iterable[str]) -> set[str]:
    """The parts of the package that full names lie in."""
    found = (name.split(".") for name in names)
    return {name[1] for name in found if name[0] == "glide_pipelines" and len(name) > 1 and name[1] in PARTS}


def level(part: str) -> int:
    """The number of the layer that holds a part."""
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def test_every_part_has_its_place():
    assert not PARTS - set.union(*LAYERS) - GUESTS - TOP, "a new part needs a layer"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_down_only(module):
    part = part_of(module)
    if part in TOP:
        allowed = set.union(*LAYERS)
    elif part in GUESTS:
        allowed = set.union(*LAYERS) | {part}
    else:
        allowed = {part}.union(*LAYERS[: max(level(part), 1)])  # the lowest may import one another
    assert parts_among(imported_by(module)) <= allowed


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_library_reads_no_command_line(module):
    tops = {name.split(".")[0] for name in imported_by(module)}
    assert "argparse" not in tops
    assert "glide_cli" not in tops or part_of(module) == "__main__"
    assert "sys.argv" not in module.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("package", "source", "expected"),
    [
        ("models", "from ..images import x", {"images"}),
        ("models", "from .. import images", {"images"}),
        ("models", "import glide_pipelines.shapes", {"shapes"}),
        ("models", "def f():\n    from ..shapes.scene import Scene", {"shapes"}),
        ("models", "from .unet import x", {"models"}),
        ("", "from .shapes import x", {"shapes"}),
        ("models", "from diffusers import models", set()),
    ],
)
def test_every_way_to_import_is_seen(package, source, expected):
    assert parts_among(imported(source, f"glide_pipelines.{package}".rstrip("."))) == expected
