"""What an installed package holds, and that every place which repeats a fact repeats the same one."""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

import glide_cli
import glide_pipelines
from glide_cli.draw import EXAMPLES


ROOT = Path(__file__).parent.parent
EXTRAS = ("train", "eval", "app", "docs", "test")
IMPORT_NAMES = {"pillow": "PIL", "huggingface-hub": "huggingface_hub", "torch-fidelity": "torch_fidelity"}
INSTALL = ["pip install -c constraints.txt .", 'glide "a red circle above a blue square" -o image.png']
TEST = 'pip install -c constraints.txt -e ".[test]" && pytest'


def requirements(extra: str = "") -> dict[str, Requirement]:
    """What `setup.py` asks for, with an extra or without any, by import name."""
    wanted = [Requirement(line) for line in importlib.metadata.requires("glide-pipelines")]
    if extra:
        wanted = [item for item in wanted if item.marker is not None and item.marker.evaluate({"extra": extra})]
    else:
        wanted = [item for item in wanted if item.marker is None]
    return {IMPORT_NAMES.get(item.name, item.name): item for item in wanted}


def imported(source: Path) -> set[str]:
    """Third-party packages that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"glide_pipelines", "glide_cli"}


def fenced(page: Path, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


REPOSITORY = "https://example.org/glide"
FOLDERS = ("conversion", "docs", "examples", "glide_cli", "glide_pipelines", "tests", "tools")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of this repository with one more checkpoint to ship, and a place on the web."""
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, tree)
    setup = (tree / "setup.py").read_text(encoding="utf-8")
    (tree / "setup.py").write_text(re.sub('REPOSITORY = ".*"', f'REPOSITORY = "{REPOSITORY}"', setup))
    for name in ("model_index.json", "unet/config.json", "unet/deep/weights.fp16.safetensors", "tokenizer/merges.txt"):
        path = tree / "glide_pipelines/checkpoints/stand-in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tree


@pytest.fixture(scope="module")
def wheel(tree) -> zipfile.ZipFile:
    """The wheel that `pip install .` builds, made without the network."""
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    return zipfile.ZipFile(next((tree / "dist").glob("*.whl")))


@pytest.fixture(scope="module")
def sdist(tree) -> set[str]:
    """The files of the source distribution, made without the network."""
    build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    with tarfile.open(next((tree / "dist").glob("*.tar.gz"))) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def test_the_wheel_holds_the_package(wheel):
    held = set(wheel.namelist())
    for source in [*(ROOT / "glide_pipelines").rglob("*.py"), *(ROOT / "glide_cli").rglob("*.py")]:
        assert source.relative_to(ROOT).as_posix() in held, "a folder without __init__.py?"
    assert {"glide_pipelines/py.typed", "glide_cli/model_configs/shapes_base.json"} <= held
    for name in ("NOTICE.md", "words.txt", "wordings.txt"):
        assert f"glide_pipelines/emoji/{name}" in held
    for name in ("model_index.json", "unet/config.json", "unet/deep/weights.fp16.safetensors", "tokenizer/merges.txt"):
        assert f"glide_pipelines/checkpoints/stand-in/{name}" in held
    for source in (ROOT / "glide_pipelines/checkpoints").rglob("*"):
        if source.is_file() and "__pycache__" not in source.parts:
            assert source.relative_to(ROOT).as_posix() in held
    assert not [name for name in held if name.startswith(("tests", "tools", "examples", "conversion"))]


def test_the_commands_of_the_wheel_explain_themselves(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import glide_cli
assert glide_cli.__file__.startswith({str(tmp_path)!r})
for command in glide_cli.COMMANDS:
    try:
        glide_cli.main([command, "--help"])
    except SystemExit as exit_:
        assert exit_.code == 0
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage: glide") == len(glide_cli.COMMANDS)


def test_the_source_distribution_holds_the_repository(sdist, tree):
    for folder in FOLDERS:
        for source in (tree / folder).rglob("*"):
            if source.is_file() and source.suffix != ".pyc":
                assert source.relative_to(tree).as_posix() in sdist
    for name in (
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "constraints.txt",
        "mkdocs.yml",
        "pyproject.toml",
    ):
        assert name in sdist


def test_the_wheel_s_facts(wheel):
    folder = f"glide_pipelines-{glide_pipelines.__version__}.dist-info"
    assert wheel.read(f"{folder}/entry_points.txt").decode().split("\n")[:2] == [
        "[console_scripts]",
        "glide = glide_cli:main",
    ]
    assert wheel.read(f"{folder}/licenses/LICENSE").decode() == (ROOT / "LICENSE").read_text()
    facts = wheel.read(f"{folder}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in facts
    assert "Requires-Python: >=3.11" in facts
    assert f"Project-URL: Source, {REPOSITORY}\n" in facts


def test_the_readme_s_links_lead_somewhere_from_an_index_page(wheel):
    facts = wheel.read(f"glide_pipelines-{glide_pipelines.__version__}.dist-info/METADATA").decode()
    links = re.findall(r"\]\(([^)]*)\)", facts)
    assert f"{REPOSITORY}/raw/main/docs/images/first.png" in links
    assert f"{REPOSITORY}/blob/main/docs/quickstart.md#6-in-a-browser" in links
    assert all("://" in link for link in links)


def test_the_version_stands_in_one_place():
    version = glide_pipelines.__version__
    assert importlib.metadata.version("glide-pipelines") == version, "installed anew since the version changed?"
    packages = [*(ROOT / "glide_pipelines").rglob("*.py"), *(ROOT / "glide_cli").rglob("*.py")]
    sources = [*packages, ROOT / "setup.py", ROOT / "pyproject.toml"]
    stated = [source.name for source in sources if f'"{version}"' in source.read_text(encoding="utf-8")]
    assert stated == ["version.py"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_what_is_imported_is_required():
    packages = (source for name in ("glide_pipelines", "glide_cli") for source in (ROOT / name).rglob("*.py"))
    library = set.union(*map(imported, packages))
    required = set(requirements())
    optional = set.union(*(set(requirements(extra)) for extra in ("train", "eval", "app")))
    brought = {"triton"}  # by PyTorch for CUDA
    assert library <= required | optional | brought
    # diffusers loads large models and offloads them with accelerate.
    assert required - library <= {"accelerate"}


def test_what_scripts_and_tests_import_is_required():
    known = {*requirements(), *(name for extra in EXTRAS for name in requirements(extra))}
    known |= {"glide_text2im", "guided_diffusion"}  # clones of the original: docs/parity.md
    known |= {"gradio_client", "httpx"}  # gradio brings them
    known |= {"griffe", "mkdocs", "nbformat"}  # the extra `docs` brings them
    known |= {"selenium"}  # the test in a browser asks for it
    known |= {"triton"}  # PyTorch for CUDA brings it
    scripts = [source for folder in ("conversion", "examples", "tools") for source in (ROOT / folder).rglob("*.py")]
    for source in [*scripts, *(ROOT / "tests").rglob("*.py")]:
        folders = (source.parent, *(ROOT / name for name in ("tests", "examples", "tools", ".")))
        own = {path.stem for folder in folders for path in folder.iterdir()}
        assert imported(source) - own <= known, source


def test_the_checkpoints_say_nothing_of_where_they_were_trained():
    files = list((ROOT / "glide_pipelines" / "checkpoints").rglob("*.json"))
    assert files
    for file in files:
        assert "_name_or_path" not in json.loads(file.read_text()), file


def test_constraints_pin_what_is_required():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    wanted = [requirements(extra) for extra in ("", "train", "test", "app", "docs")]
    for requirement in [each for extra in wanted for each in extra.values()]:
        names = {requirement.name, requirement.name.replace("-", "_")} & set(pins)
        assert len(names) == 1, requirement
        assert requirement.specifier.contains(pins[names.pop()]), requirement


def test_the_readme_s_commands_are_the_ones_that_ci_runs():
    commands = [line for block in fenced(ROOT / "README.md", "bash") for line in block.splitlines()]
    assert [line for line in commands if line in INSTALL] == INSTALL
    assert commands.count(TEST) == 1
    script = (ROOT / ".ci/run").read_text()
    assert TEST not in script, "it takes the line from the README"
    pattern = re.search(r"grep -m 1 -E '(.+)' README.md", script).group(1)
    assert [line for line in commands if re.search(pattern, line)] == [TEST]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/quickstart.md"], ids=lambda page: page.name)
def test_the_build_of_torch_that_is_named_is_the_one_that_is_pinned(page):
    """Else the line after it would replace it with another."""
    pin = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert f"\npip install {pin} --index-url " in page.read_text(encoding="utf-8")


@pytest.fixture
def accept(tmp_path, monkeypatch):
    """Whether `glide` takes a command, in a folder that has the pictures which the command names."""
    monkeypatch.chdir(tmp_path)

    def accept(command: str) -> None:
        words = shlex.split(command, comments=True)
        for option, value in itertools.pairwise(words):
            if option in ("--image", "--mask", "--like"):
                Path(value).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(value)
            elif option == "--prompts":
                Path(value).write_text("a red circle")
            elif option in ("-o", "--animate"):
                Path(value).parent.mkdir(parents=True, exist_ok=True)
        command, given = glide_cli.find_command(words[1:])
        glide_cli.read_arguments(command, given)

    return accept


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_glide_command_of_the_docs_is_accepted(page, accept):
    for block in fenced(page, "bash"):
        for line in block.replace("\\\n", "").splitlines():
            for command in line.split(" && "):
                if command.startswith("glide ") and "--help" not in command:
                    accept(command)


def test_the_examples_in_the_help_are_accepted(accept):
    commands = re.findall(r"^    (glide .*)$", EXAMPLES.replace("\\\n", ""), re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        accept(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_the_docs_lead_somewhere(page):
    for target, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]*))?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def anchors(page):
    """As GitHub makes them of headings."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_the_docs_uses_names_that_exist(page):
    for block in fenced(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "glide_pipelines":
                for alias in node.names:
                    assert hasattr(glide_pipelines, alias.name), alias.name
