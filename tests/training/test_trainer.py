import json
import signal
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from trainings import assert_equal, make_config, read_checkpoint, read_log, run

from glide_pipelines import GLIDEDDPMScheduler
from glide_pipelines.training import (
    LearningRate,
    TimestepWeighting,
    text_to_image_loss,
    train,
    trainer,
)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(tmp_path, accumulation):
    """With dropout, whose masks come from the random state that a checkpoint holds."""
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    changes = {"gradient_accumulation_steps": accumulation}
    model, _ = run(make_config(unbroken, **changes))
    run(make_config(resumed, max_train_steps=2, **changes))
    again, done = run(make_config(resumed, resume_from_checkpoint="latest", **changes))
    assert done == 4
    assert_equal(read_checkpoint(unbroken / "checkpoint-4"), read_checkpoint(resumed / "checkpoint-4"))
    assert_equal(model.state_dict(), again.state_dict())
    progress = read_checkpoint(resumed / "checkpoint-4")["progress"]
    position = {"seed": 0, "step": 4, "examples": 8 * accumulation, "bad_rows": {}}
    assert progress == {**position, "dataset": None, "settings": None}


def test_a_run_may_be_resumed_with_another_accumulation(tmp_path):
    changes = {"adam_epsilon": 1e-3, "max_train_steps": 2}  # as in `test_accumulation_equals_a_larger_batch`
    run(make_config(tmp_path, train_batch_size=4, **changes | {"max_train_steps": 1}), dropout=0.0)
    changes["resume_from_checkpoint"] = str(tmp_path / "checkpoint-1")
    large, _ = run(make_config(tmp_path / "large", train_batch_size=4, **changes), dropout=0.0)
    small, _ = run(make_config(tmp_path / "small", gradient_accumulation_steps=2, **changes), dropout=0.0)
    for name, value in large.state_dict().items():
        torch.testing.assert_close(value, small.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_a_run_goes_on_from_its_last_checkpoint_only(tmp_path):
    run(make_config(tmp_path, max_train_steps=3, checkpointing_steps=1))
    before = (tmp_path / "log.jsonl").read_text()
    message = "`output_dir` .* holds {}: go on with `--resume_from_checkpoint latest`, move these away"
    with pytest.raises(ValueError, match=message.format("checkpoint-2, checkpoint-3 later than step 1")):
        run(make_config(tmp_path, resume_from_checkpoint="checkpoint-1"))
    with pytest.raises(ValueError, match=message.format("checkpoint-1, checkpoint-2, checkpoint-3")):
        run(make_config(tmp_path))
    assert (tmp_path / "log.jsonl").read_text() == before
    # Nothing is trained where the checkpoint is only to be exported, and nothing is in the way in another folder.
    assert run(make_config(tmp_path, resume_from_checkpoint="checkpoint-1", max_train_steps=1))[1] == 1
    assert run(make_config(tmp_path / "other", resume_from_checkpoint=str(tmp_path / "checkpoint-1")))[1] == 4


def test_a_finished_run_resumed_does_nothing(tmp_path):
    model, _ = run(make_config(tmp_path))
    again, done = run(make_config(tmp_path, resume_from_checkpoint="latest"))
    assert done == 4
    assert_equal(model.state_dict(), again.state_dict())


def test_accumulation_equals_a_larger_batch(tmp_path):
    # Where the gradient is zero in exact arithmetic (the biases of keys), AdamW would blow rounding up to full steps.
    changes = {"adam_epsilon": 1e-3, "max_train_steps": 2}
    large, _ = run(make_config(tmp_path / "large", train_batch_size=4, **changes), dropout=0.0)
    small, _ = run(make_config(tmp_path / "small", gradient_accumulation_steps=2, **changes), dropout=0.0)
    for name, value in large.state_dict().items():
        torch.testing.assert_close(value, small.state_dict()[name], atol=1e-6, rtol=1e-5)


def test_weights_and_average_stay_float32_under_bfloat16(tmp_path):
    model, _ = run(make_config(tmp_path, ema_decay=0.9999), mixed_precision="bf16")
    held = read_checkpoint(tmp_path / "checkpoint-4")
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    assert all(value.dtype == torch.float32 for value in held["model"].values())
    assert all(value.dtype == torch.float32 for value in (*held["average"].values(), *held["optimizer"].values()))
    # The average is left in the model, and it moves.
    assert_equal({name: value.detach() for name, value in model.named_parameters()}, held["average"])
    assert not torch.equal(held["average"]["unet.conv_in.weight"], held["model"]["unet.conv_in.weight"])


def test_averages_of_several_decays_are_kept_and_one_is_chosen_when_all_is_done(tmp_path):
    seen = []
    run(make_config(tmp_path / "both", max_train_steps=2, ema_decay=(0.9, 0.3)))
    again = make_config(tmp_path / "both", ema_decay=(0.3, 0.9), resume_from_checkpoint="latest")
    both, _ = run(again, on_checkpoint=lambda step: seen.append(step) or {"sampled": len(seen)})
    assert seen == [4, 4]
    assert read_log(tmp_path / "both")[-1].items() >= {"step": 4, "sampled": 1, "sampled_ema_0.9": 2}.items()
    for decay in (0.9, 0.3):
        alone, _ = run(make_config(tmp_path / str(decay), ema_decay=decay))
        chosen, done = run(make_config(tmp_path / "both", ema_decay=decay, resume_from_checkpoint="latest"))
        assert done == 4
        assert_equal(alone.state_dict(), chosen.state_dict())
        equal = [torch.equal(one, two) for one, two in zip(alone.parameters(), both.parameters(), strict=True)]
        assert all(equal) if decay == 0.3 else not any(equal)
    with pytest.raises(
        ValueError, match=r"`ema_decay`: the run to resume keeps averages of 0\.3, 0\.9, and none of 0\.5"
    ):
        run(make_config(tmp_path / "both", ema_decay=0.5, resume_from_checkpoint="latest"))
    # A checkpoint of an earlier version has one average, and does not say of which decay.
    path = tmp_path / "0.3" / "checkpoint-4" / "state.json"
    state = json.loads(path.read_text())
    del state["average"]["decays"]
    path.write_text(json.dumps(state))
    assert run(make_config(tmp_path / "0.3", ema_decay=0.5, resume_from_checkpoint="latest"))[1] == 4
    with pytest.raises(ValueError, match=r"keeps averages of a decay that it did not note, and none of 0\.5"):
        run(make_config(tmp_path / "0.3", ema_decay=(0.5, 0.3), resume_from_checkpoint="latest"))


def test_a_signal_saves_and_ends(tmp_path):
    plain = text_to_image_loss(GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2"), TimestepWeighting(1000))
    steps = 0

    def stopped_in_the_second_step(model, batch):
        nonlocal steps
        steps += 1
        if steps == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(model, batch)

    before = signal.getsignal(signal.SIGTERM)
    _, done = run(make_config(tmp_path), compute_loss=stopped_in_the_second_step)
    assert done == 2 and (tmp_path / "checkpoint-2").is_dir()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_does_not_break_off_the_last_checkpoint(tmp_path, monkeypatch):
    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return save_checkpoint(*arguments)

    save_checkpoint = trainer.save_checkpoint
    monkeypatch.setattr(trainer, "save_checkpoint", interrupted)
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("SIGTERM"))
    try:
        _, done = run(make_config(tmp_path, max_train_steps=1))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done == 1 and (tmp_path / "checkpoint-1").is_dir()
    assert not received


def test_checkpoints_come_by_steps_and_by_minutes(tmp_path):
    run(make_config(tmp_path / "steps", checkpointing_steps=2, max_train_steps=5))
    assert sorted(path.name for path in (tmp_path / "steps").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
    ]
    run(make_config(tmp_path / "minutes", checkpointing_minutes=1e-9, checkpoints_total_limit=2))
    assert sorted(path.name for path in (tmp_path / "minutes").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, broken):
    def compute_loss(model, batch):
        output = model.unet.conv_in.bias.sum() * torch.zeros(2)
        loss = output * float("nan") if broken == "loss" else (output * 0).sqrt()
        return loss, {}

    with pytest.raises(FloatingPointError, match="not finite between steps 0 and 1"):
        run(make_config(tmp_path, logging_steps=100, checkpointing_steps=1), compute_loss=compute_loss)
    assert not list(tmp_path.glob("checkpoint-*"))
    [line] = read_log(tmp_path)
    assert line["loss"] == (None if broken == "loss" else 0) and line["grad_norm"] is None


def test_the_log_leaves_out_the_gradients_that_a_scaler_skips(tmp_path):
    steps = 0

    def compute_loss(model, batch):
        nonlocal steps
        steps += 1
        if steps == 2:  # of a parameter whose value stays finite, with the gradient 2
            return 2 * model.text_encoder.position_embedding.flatten()[:1].expand(2), {}
        return (model.unet.conv_in.bias.sum() * torch.zeros(2)).sqrt().nan_to_num(), {}

    run(make_config(tmp_path), mixed_precision="fp16", compute_loss=compute_loss)
    assert [line["grad_norm"] for line in read_log(tmp_path)] == [2, None]


def test_the_log_tells_the_quarters_apart(tmp_path):
    def compute_loss(model, batch):
        loss = (batch["timesteps"] // 250).float() + 0 * model.unet.conv_in.bias.sum()
        return loss, {"mse": loss}

    run(make_config(tmp_path, train_batch_size=16), compute_loss=compute_loss)
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["mse_by_quarter"] == [0, 1, 2, 3]
    # (0 + 1) * 0.8 and (2 + 3) * 1.2, over 4.
    assert lines[0]["loss"] == pytest.approx(1.7, abs=0.1)
    assert lines[0]["learning_rate"] == pytest.approx(1e-3) and lines[0]["seconds_per_step"] > 0


def test_the_loss_falls(tmp_path):
    config = make_config(tmp_path, max_train_steps=24, train_batch_size=8, logging_steps=4)
    run(replace(config, learning_rate=LearningRate(1e-2, 24)), dropout=0.0)
    lines = read_log(tmp_path)
    assert lines[-1]["mse"] < 0.6 * lines[0]["mse"]


def test_another_seed_is_another_run(tmp_path):
    run(make_config(tmp_path, max_train_steps=1))
    with pytest.raises(ValueError, match="`seed` of the run to resume is 0, got 1"):
        run(make_config(tmp_path, seed=1, resume_from_checkpoint="latest"))


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused_where_it_would_be_left_out_in_silence(tmp_path, monkeypatch, kind):
    """What `accelerate launch` sets; on a CPU accelerate does nothing about FSDP."""
    monkeypatch.setattr("accelerate.Accelerator.__init__", lambda self, **_: None)
    monkeypatch.setattr("accelerate.Accelerator.distributed_type", DistributedType.MULTI_CPU)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(ValueError, match=r"accelerate is configured for .*, which shards the weights"):
        train(Accelerator(), make_config(tmp_path), torch.nn.Linear(1, 1), [], None, 1000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"train_batch_size": 0},
        {"gradient_accumulation_steps": 0},
        {"checkpoints_total_limit": 0},
        {"checkpointing_minutes": 0.0},
        {"ema_decay": 1.0},
        {"ema_decay": (0.9, 0.9)},
        {"ema_decay": ()},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": float("nan")},
        {"checkpointing_minutes": float("nan")},
        {"max_train_steps": 99, "learning_rate": LearningRate(1e-3, 1)},
    ],
)
def test_values_out_of_range_are_named(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}`"):
        make_config("unused", **change)
