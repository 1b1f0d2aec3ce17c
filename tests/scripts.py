"""The scripts of examples/ and conversion/, opened as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


ROOT = Path(__file__).parents[1]


def load_script(name: str, folder: str = "examples") -> ModuleType:
    """The script freshly loaded, with its folder on the path, as Python does for a script that it runs."""
    home = str(ROOT / folder)
    if home not in sys.path:
        sys.path.append(home)
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
