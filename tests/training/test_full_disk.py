"""A run on a disk that fills up, at whatever write, ends in one line, and goes on from its last checkpoint to the bit.

`pytest -m slow tests/training/test_full_disk.py -s`, as root on Linux: disks in memory, from one that holds nothing to
one that holds all.
"""

import multiprocessing
import subprocess

import pytest
from disks import disk
from trainings import assert_equal, make_config, read_checkpoint, run

from glide_pipelines import GLIDEDDPMScheduler
from glide_pipelines.training import TimestepWeighting, text_to_image_loss
from glide_pipelines.training.checkpoints import list_checkpoints


STEPS, SIZES = 8, 62


def child(folder, outcome):
    loss = text_to_image_loss(GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2"), TimestepWeighting(1000))
    try:
        run(
            make_config(folder, max_train_steps=STEPS, checkpointing_steps=2, resume_from_checkpoint="latest"),
            "no",
            loss,
        )
        outcome.put("done")
    except OSError as error:
        outcome.put(str(error))


def run_alone(folder):
    context = multiprocessing.get_context("fork")  # importing everything again would take most of the time
    outcome = context.Queue()
    process = context.Process(target=child, args=(folder, outcome))
    process.start()
    process.join(300)
    return outcome.get(timeout=1)


@pytest.mark.slow
def test_a_disk_of_any_size(tmp_path):
    assert run_alone(tmp_path / "unbroken") == "done"
    last = f"checkpoint-{STEPS}"
    expected = read_checkpoint(tmp_path / "unbroken" / last)
    length = sum(path.stat().st_size for path in (tmp_path / "unbroken" / last).iterdir())
    filled = 0
    for number in range(SIZES):
        with disk(tmp_path / "disk", 8192 + number * length * 9 // 2 // SIZES):
            folder = tmp_path / "disk" / "run"
            outcome = run_alone(folder)
            if outcome != "done":
                filled += 1
                assert "No space left on device" in outcome and "\n" not in outcome
                assert not [path for path in folder.iterdir() if path.suffix in (".partial", ".old")]
            for path in list_checkpoints(folder):
                read_checkpoint(path)
            subprocess.run(["mount", "-o", "remount,size=1g", tmp_path / "disk"], check=True)
            assert run_alone(folder) == "done"
            assert_equal(read_checkpoint(folder / last), expected)
    print(f"\n{filled} of {SIZES} disks filled up")
    assert 0 < filled < SIZES
