"""Fixtures that all tests share, and the rule that a comparison with the original never skips."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import pytest


# The tests run in as many processes as there are cores (pyproject.toml): more threads in each would only wait for one
# another. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder of numbers recorded from the original implementation: see docs/parity.md."""
    return Path(__file__).parent / "recordings"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny text-to-image pipeline of two stages. No test writes into it."""
    from tiny import tiny_pipeline

    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def restored_libraries():
    """The command silences other libraries for its process; here the process goes on."""
    import diffusers.utils.logging
    import huggingface_hub.utils
    import transformers.utils.logging

    libraries = (transformers.utils.logging, diffusers.utils.logging)
    before = [library.get_verbosity() for library in libraries]
    logger = logging.getLogger("glide_pipelines")
    handlers, level = logger.handlers, logger.level
    with warnings.catch_warnings():
        yield
    logger.handlers, logger.level = handlers, level
    for library, verbosity in zip(libraries, before, strict=True):
        library.set_verbosity(verbosity)
        library.enable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()


@pytest.fixture
def glide(capsys, restored_libraries, monkeypatch):
    """Run the command in this process, in float32 on every processor: exit code, stdout, stderr."""
    import torch

    import glide_cli

    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = glide_cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # --help and --version
            code = exit_.code
        return code, *capsys.readouterr()

    return run


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "parity: compares with the recordings; every test that reads them has it")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that reads the recordings is a parity test: `pytest -m parity` selects them."""
    for item in items:
        if "recordings" in getattr(item, "fixturenames", ()):
            item.add_marker("parity")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """A parity test that skips has not compared anything, so it fails."""
    report = yield
    if report.skipped and item.get_closest_marker("parity"):
        report.outcome = "failed"
        report.longrepr = f"a parity test must not skip: {report.longrepr}"
    return report
