"""Disks in memory that can be filled up: root on Linux may mount them."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def disk(folder, size):
    """A disk of so many bytes, mounted at a folder."""
    folder.mkdir(exist_ok=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root, and disks in memory")
    try:
        yield
    finally:
        # Lazily: a server that still runs may hold a file open for a moment.
        subprocess.run(["umount", "--lazy", folder], check=True)
