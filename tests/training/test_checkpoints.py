import pytest
import torch
from accelerate import Accelerator

from glide_pipelines.training.checkpoints import find_checkpoint, list_checkpoints, save_checkpoint


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 2))
    return accelerator


def test_latest_is_by_number(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11.partial", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-10"
    assert find_checkpoint(tmp_path, "checkpoint-9") == tmp_path / "checkpoint-9"
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-9")) == tmp_path / "checkpoint-9"
    assert find_checkpoint(tmp_path / "nothing", "latest") is None
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint`.*'checkpoint-3'.*checkpoint-9, checkpoint-10"):
        find_checkpoint(tmp_path, "checkpoint-3")


def test_only_so_many_are_kept(accelerator, tmp_path):
    for step in (5, 10, 15):
        save_checkpoint(accelerator, tmp_path, step, total_limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-15"]
    assert len(list(tmp_path.iterdir())) == 2
    # Those of another run are later than its first one.
    for step, kept in ((3, {3, 10, 15}), (4, {4, 10, 15})):
        save_checkpoint(accelerator, tmp_path, step, total_limit=2)
        assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{number}" for number in kept}


def test_an_interrupted_write_leaves_the_old_ones(accelerator, tmp_path, monkeypatch):
    old = save_checkpoint(accelerator, tmp_path, 5, total_limit=1)
    before = {path.name: path.read_bytes() for path in old.iterdir()}

    def full_disk(folder):
        (tmp_path / "checkpoint-10.partial").mkdir()
        (tmp_path / "checkpoint-10.partial" / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(accelerator, "save_state", full_disk)
        with pytest.raises(OSError, match="no space"):
            save_checkpoint(accelerator, tmp_path, 10, total_limit=1)
    assert find_checkpoint(tmp_path, "latest") == old
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before

    # What the interrupted write left behind is not in the way of the next one.
    assert save_checkpoint(accelerator, tmp_path, 10, total_limit=1) == tmp_path / "checkpoint-10"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
