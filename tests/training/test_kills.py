"""A run that is killed again and again equals one that never was, to the bit.

`GLIDE_KILLS=150 pytest -m slow tests/training/test_kills.py -s` kills more often, and prints where.
"""

import collections
import multiprocessing
import os
import random
import signal
import time

import pytest
from trainings import assert_equal, make_config, read_checkpoint, run

from glide_pipelines import GLIDEDDPMScheduler
from glide_pipelines.training import TimestepWeighting, text_to_image_loss, trainer
from glide_pipelines.training.checkpoints import list_checkpoints


PHASES = ("step", "save", "validation")
STEPS = 12


def child(folder, phase):
    """A run in a process of its own, which tells where it is."""
    plain = text_to_image_loss(GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2"), TimestepWeighting(1000))
    save_checkpoint = trainer.save_checkpoint

    def compute_loss(model, batch):
        phase.value = 0
        return plain(model, batch)

    def save(*arguments):
        phase.value = 1
        return save_checkpoint(*arguments)

    def validate(step):
        phase.value = 2
        time.sleep(0.05)

    trainer.save_checkpoint = save
    config = make_config(folder, max_train_steps=STEPS, checkpointing_steps=2, resume_from_checkpoint="latest")
    run(config, compute_loss=compute_loss, on_checkpoint=validate)


def start(folder):
    context = multiprocessing.get_context("fork")  # importing everything again would take most of the time
    phase = context.Value("i", -1, lock=False)
    process = context.Process(target=child, args=(folder, phase))
    process.start()
    return process, phase


@pytest.mark.slow
def test_runs_that_are_killed_equal_an_unbroken_one(tmp_path):
    kills = int(os.environ.get("GLIDE_KILLS", "12"))
    process, _ = start(tmp_path / "unbroken")
    process.join()
    assert process.exitcode == 0
    expected = read_checkpoint(tmp_path / f"unbroken/checkpoint-{STEPS}")
    rng, counts, runs = random.Random(0), collections.Counter(), 0
    while counts.total() < kills:
        runs += 1
        folder = tmp_path / str(runs)
        while True:
            process, phase = start(folder)
            number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            target = rng.randrange(len(PHASES))
            while phase.value != target and process.is_alive():
                time.sleep(0.0005)
            # Anywhere in the phase, and now and then some steps later.
            time.sleep(rng.choice((0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.1), rng.uniform(0, 0.6))))
            where = PHASES[phase.value]
            if process.is_alive() and counts.total() < kills:
                os.kill(process.pid, number)
                counts[f"{number.name} in {where}"] += 1
            process.join(300)
            assert process.exitcode in (0, -signal.SIGKILL), (number, where)
            if list_checkpoints(folder) and list_checkpoints(folder)[-1].name == f"checkpoint-{STEPS}":
                break
        process, _ = start(folder)  # clears what the last kill may have left, and does nothing else
        process.join()
        assert process.exitcode == 0
        assert_equal(read_checkpoint(folder / f"checkpoint-{STEPS}"), expected)
        assert not [path for path in folder.iterdir() if path.suffix in (".partial", ".old")]
    print(f"\n{kills} kills of {runs} runs: {dict(sorted(counts.items()))}")
