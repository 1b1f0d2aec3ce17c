"""A file or a folder is whole or as it was, also when the process is killed or the power fails."""

import json
import os
import sys
from pathlib import Path

import pytest

from glide_pipelines.files import atomic_file, atomic_folder, partial_path, updated_folder, write_json, write_text


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_file_takes_its_place_when_it_is_written(tmp_path):
    path = tmp_path / "figure.png"
    for text in ("first", "second"):
        with atomic_file(path) as temporary:
            assert temporary.suffix == ".png" and temporary.parent == tmp_path
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert contents(tmp_path) == {"figure.png": text}


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    write_text("old", tmp_path / "file.txt")
    with pytest.raises(OSError, match="full"), atomic_file(tmp_path / "file.txt") as temporary:
        temporary.write_text("ha")
        raise OSError("the disk is full")
    assert contents(tmp_path) == {"file.txt": "old"}


def test_json_is_read_back(tmp_path):
    write_json({"a": [1, "é"]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, "é"]}


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    for files in ({"a": "1", "deep_b": "2"}, {"a": "3"}):
        with atomic_folder(path) as temporary:
            fill(temporary, **files)
        assert contents(tmp_path / "new") == {f"folder/{name.replace('_', '/')}": text for name, text in files.items()}


def test_an_updated_folder_keeps_its_other_entries(tmp_path):
    path = tmp_path / "pipeline"
    fill(path, unet_old="0", text="0", other_weights="0")
    with updated_folder(path) as temporary:
        fill(temporary, unet_new="1", text="1")
    assert contents(tmp_path) == {"pipeline/unet/new": "1", "pipeline/text": "1", "pipeline/other/weights": "0"}


@pytest.mark.parametrize("write", [atomic_folder, updated_folder])
def test_an_error_leaves_the_folder_as_it_was(tmp_path, write):
    path = tmp_path / "folder"
    fill(path, a="0")
    fill(partial_path(path), b="of a process that was killed")
    with pytest.raises(OSError, match="full"), write(path) as temporary:
        assert not contents(temporary)
        fill(temporary, a="1")
        raise OSError("the disk is full")
    assert contents(tmp_path) == {"folder/a": "0"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("write", [atomic_file, atomic_folder, updated_folder])
def test_what_is_renamed_is_on_the_disk(tmp_path, monkeypatch, write):
    """Else a power failure may leave the new name with nothing in it."""
    events = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: events.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    monkeypatch.setattr(Path, "rename", lambda path, to: events.append("rename") or rename(path, to))
    monkeypatch.setattr(Path, "replace", lambda path, to: events.append("rename") or replace(path, to))
    with write(tmp_path / "target") as temporary:
        if write is not atomic_file:
            fill(temporary, weights="1")
            temporary /= "weights"
        else:
            temporary.write_text("1")
    first = events.index("rename")
    assert str(temporary) in events[:first]
    assert str(tmp_path / "target") in events[first:] or str(tmp_path) in events[first:]
