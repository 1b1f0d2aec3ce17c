"""Checkpoints hold no code, are whole or not there, and say what is wrong with them."""

import errno
import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from glide_pipelines import files
from glide_pipelines.training import checkpoints
from glide_pipelines.training.averages import Average, moving
from glide_pipelines.training.checkpoints import (
    check_none_later,
    find_checkpoint,
    list_checkpoints,
    locked,
    save_checkpoint,
)
from glide_pipelines.training.run_state import RunState, random_state, set_random_state


def make_state(seed=0, mixed_precision="no"):
    """The state of a run that has done one step."""
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    parameters = dict(model.named_parameters())
    return RunState(accelerator, model, parameters, optimizer, {0.9999: Average(parameters, moving(0.9999))})


def save(folder, step, state=None, total_limit=None):
    state = state or make_state()
    return save_checkpoint(state.accelerator, folder, state, {"step": step}, total_limit)


def values(state):
    parameters = list(state.model.parameters())
    moments = [state.optimizer.state[p][key] for p in parameters for key in ("step", "exp_avg", "exp_avg_sq")]
    return [*parameters, *state.averages[0.9999].tensors().values(), *moments]


def test_a_state_comes_back_to_the_bit(tmp_path):
    state, other = make_state(0), make_state(1)
    path = save(tmp_path, 3, state)
    expected = torch.rand(3)  # after the random state that was saved
    assert other.load(path) == {"step": 3}
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one, two) for one, two in zip(values(state), values(other), strict=True))
    assert other.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_the_average_of_an_earlier_version_comes_back(tmp_path):
    """It counted its steps itself."""
    state, other = make_state(0), make_state(1)
    path = save(tmp_path, 3, state)
    written = json.loads((path / "state.json").read_text())
    written["average"]["optimization_step"] = 3
    (path / "state.json").write_text(json.dumps(written))
    other.load(path)
    assert all(torch.equal(one, two) for one, two in zip(values(state), values(other), strict=True))


def test_no_pickle_is_executed(tmp_path):
    """Whatever its name is, and whatever format the checkpoint claims to be."""
    witness = tmp_path / "witness"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {witness}",)

    attack = pickle.dumps(Attack())
    names = ["custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "random_states_0.pkl", "optimizer.bin", "scaler.pt"]
    old = tmp_path / "old" / "checkpoint-3"
    old.mkdir(parents=True)
    for name in names:
        (old / name).write_bytes(attack)
    for name in ("latest", str(old)):
        with pytest.raises(ValueError, match=r"earlier version, as pickles.*`--pretrained_model_name_or_path`"):
            make_state().load(find_checkpoint(old.parent, name))
    new = save(tmp_path, 3)
    for name in [*names, *(path.name for path in new.iterdir() if path.name != "state.json")]:
        (new / name).write_bytes(attack)
    with pytest.raises(ValueError, match="is damaged"):
        find_checkpoint(tmp_path, "latest")
    with pytest.raises(Exception, match=r"safetensors|[Hh]eader"):  # not even without that check
        make_state().load(new)
    (new / "state.json").write_bytes(attack)
    with pytest.raises(ValueError, match="damaged"):
        find_checkpoint(tmp_path, str(new))
    assert not witness.exists()


def change(path, name, edit):
    """Change the tensors of a file, as if it had been written so."""
    tensors = load_file(path / name)
    edit(tensors)
    save_file(tensors, path / name)
    state = json.loads((path / "state.json").read_text())
    data = (path / name).read_bytes()
    state["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("name", "key"),
    [("model", "weight"), ("average", "bias"), ("optimizer", "weight/exp_avg_sq")],
)
def test_tensors_that_are_missing_unexpected_or_of_another_shape_are_named(tmp_path, name, key):
    file = f"{name}.safetensors"
    first = save(tmp_path, 1)
    change(first, file, lambda tensors: tensors.pop(key))
    with pytest.raises(ValueError, match=rf"checkpoint-1/{file} lacks '{key}'"):
        make_state().load(find_checkpoint(tmp_path, "latest"))
    second = save(tmp_path, 2)
    change(second, file, lambda tensors: tensors.update(extra=torch.zeros(1)))
    with pytest.raises(ValueError, match=rf"checkpoint-2/{file} holds an unexpected 'extra'"):
        make_state().load(find_checkpoint(tmp_path, "latest"))
    third = save(tmp_path, 3)
    change(third, file, lambda tensors: tensors.update({key: torch.zeros([3] * tensors[key].ndim)}))
    with pytest.raises(ValueError, match=rf"checkpoint-3/{file}: '{key}' must have the shape \[2.*\], got \[3"):
        make_state().load(find_checkpoint(tmp_path, "latest"))


DAMAGES = {
    "flipped": (lambda path: flip(path / "average.safetensors"), "SHA-256"),
    "cut": (lambda path: (path / "model.safetensors").write_bytes(b"half"), "4 bytes of"),
    "no random state": (lambda path: (path / "random_states.json").unlink(), "lacks random_states.json"),
    "cut random state": (lambda path: (path / "random_states.json").write_bytes(b"{"), "1 bytes of"),
    "cut state": (lambda path: (path / "state.json").write_bytes(b'{"format"'), "state.json is damaged"),
    "no state": (lambda path: (path / "state.json").unlink(), "no whole checkpoint"),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_checkpoint_is_found(tmp_path, caplog, damage):
    spoil, words = DAMAGES[damage]
    save(tmp_path, 4)
    spoil(save(tmp_path, 6))
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path, "latest").name == "checkpoint-4"
    [record] = caplog.records
    assert "checkpoint-6" in record.message and words in record.message
    assert record.message.endswith("The run goes on from checkpoint-4.")
    check_none_later(tmp_path, 4)  # a damaged one is not in the way
    with pytest.raises(ValueError, match="checkpoint-6"):  # asked for by name, it is an error
        find_checkpoint(tmp_path, "checkpoint-6")


def test_what_only_looks_like_a_checkpoint_is_passed_over(tmp_path, caplog):
    (tmp_path / "checkpoint-99999999999999999999").mkdir()
    (tmp_path / "checkpoint-8").symlink_to(tmp_path / "nowhere")
    (tmp_path / "checkpoint-9").write_text("")
    with pytest.raises(ValueError, match=r"no whole checkpoint.*checkpoint-99999999999999999999.*checkpoint-8 is no"):
        find_checkpoint(tmp_path, "latest")
    save(tmp_path, 4).rename(tmp_path / "checkpoint-7")
    save(tmp_path, 4)
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-4"
    assert [record.message.split()[0] for record in caplog.records] == [
        "checkpoint-99999999999999999999",
        "checkpoint-9",
        "checkpoint-8",
        "checkpoint-7",  # "is of step 4"
    ]
    # They neither count for the limit nor are in the way of a checkpoint of that step.
    for step in (8, 9):
        save(tmp_path, step, total_limit=2)
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-9"
    assert (tmp_path / "checkpoint-8").is_dir() and not (tmp_path / "checkpoint-8").is_symlink()


def test_latest_is_by_number(tmp_path):
    for step in (9, 10):
        save(tmp_path, step)
    for name in ("checkpoint-11.partial", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-10"
    assert find_checkpoint(tmp_path, "checkpoint-9") == tmp_path / "checkpoint-9"
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-9")) == tmp_path / "checkpoint-9"
    assert find_checkpoint(tmp_path / "nothing", "latest") is None
    with pytest.raises(ValueError, match=r"`resume_from_checkpoint`.*'checkpoint-3'.*checkpoint-9, checkpoint-10"):
        find_checkpoint(tmp_path, "checkpoint-3")


def test_only_so_many_are_kept(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step, total_limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-15"]
    assert len(list(tmp_path.iterdir())) == 2
    # Those of another run are later than its first one.
    for step, kept in ((3, {3, 10, 15}), (4, {4, 10, 15})):
        save(tmp_path, step, total_limit=2)
        assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{number}" for number in kept}


@pytest.mark.parametrize("write", range(12))
def test_a_disk_that_fills_at_any_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch, write):
    """Every file, every flush and the renaming may be the one that fails."""
    old = save(tmp_path, 5)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    count = 0

    def full(wrapped):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count > write:
                raise OSError(errno.ENOSPC, "No space left on device")
            return wrapped(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("glide_pipelines.training.run_state.save_file", full(save_file))
        patch.setattr("glide_pipelines.training.run_state.write_json", full(files.write_json))
        patch.setattr(files, "_flush", full(files._flush))
        with pytest.raises(OSError, match=r"checkpoint-10 could not be saved: .*No space left on device"):
            save(tmp_path, 10, total_limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"] or (tmp_path / "checkpoint-10").is_dir()
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert not list(tmp_path.glob("*.partial"))
    assert save(tmp_path, 10, total_limit=1).name == "checkpoint-10"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


HOLD = """
import sys, time
from glide_pipelines.training.checkpoints import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_LOCK_SECONDS", 0.1)
    (tmp_path / "checkpoint-7.partial").mkdir()
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        holder = rf"belongs to a run that is under way \(process {other.pid} on "
        with pytest.raises(ValueError, match=holder), locked(tmp_path):
            pytest.fail("two runs in one folder")
    finally:
        other.kill()  # kill -9: the lock ends with the process
        other.wait()
    with locked(tmp_path):
        assert not list(tmp_path.glob("*.partial"))
    with locked(tmp_path):
        pass


def test_a_random_state_of_every_generator_comes_back():
    import random

    import numpy as np

    device = torch.device("cpu")
    np.random.standard_normal()  # leaves a second number behind
    state = json.loads(json.dumps(random_state(device)))
    draws = [(random.random(), np.random.standard_normal(), torch.rand(1).item()) for _ in range(2)]
    set_random_state(state, device)
    assert [(random.random(), np.random.standard_normal(), torch.rand(1).item()) for _ in range(2)] == draws
