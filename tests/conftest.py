"""Fixtures that all tests share, and the rule that a comparison with the original never skips."""

from __future__ import annotations

from pathlib import Path

import pytest


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
