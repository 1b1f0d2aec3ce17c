import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_pipeline
from trainings import launch, run_training
from transformers import AutoTokenizer

from glide_cli import UserError
from glide_cli.train_options import MODEL_CONFIGS
from glide_pipelines import NoisedCLIPModel, training
from glide_pipelines.models.noised_clip import contrastive_loss


SIZES = {
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
    },
    "vision_config": {
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "projection_dim": 8,
}
SCRIPT = Path(__file__).parents[2] / "examples" / "train_noised_clip.py"
BASE = MODEL_CONFIGS / "shapes_base.json"


@pytest.fixture
def arguments(tmp_path):
    """Arguments of a tiny run."""
    tiny_pipeline(upsampler=False).save_pretrained(tmp_path / "guided")
    (tmp_path / "sizes.json").write_text(json.dumps(SIZES))

    def make(name, *more, steps=2, dataset_name="shapes"):
        fixed = {"dataset_name": dataset_name} if dataset_name else {}
        fixed |= {"model_config": tmp_path / "sizes.json", "guided_model": tmp_path / "guided"}
        fixed |= {"output_dir": tmp_path / name, "max_train_steps": steps, "train_batch_size": 4}
        fixed |= {"learning_rate": 1e-2, "ema_decay": 0.5, "adam_epsilon": 1e-3}
        return [part for name, value in fixed.items() for part in (f"--{name}", str(value))] + list(more)

    return make


def test_a_trained_model_opens_with_its_tokenizer_and_can_be_trained_on(arguments, tmp_path):
    run_training("noised-clip", arguments("first", "--save_dtype", "fp16", "--logging_steps", "1"))
    folder = tmp_path / "first" / "model"
    model, tokenizer = NoisedCLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.text_config.vocab_size == len(tokenizer)
    assert tokenizer.model_max_length == 24
    lines = [json.loads(line) for line in (tmp_path / "first" / "log.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 <= line["accuracy"] <= 1 and line["loss"] > 0 for line in lines)

    run_training("noised-clip", arguments("more", "--pretrained_model_name_or_path", str(folder)))
    more = NoisedCLIPModel.from_pretrained(tmp_path / "more" / "model")
    assert not torch.equal(more.visual_projection.weight, model.visual_projection.weight)


def test_cleaner_timesteps_may_be_sampled_more_often(arguments, monkeypatch):
    def clean_share(*more):
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(training, "train", lambda *arguments: seen.append(arguments[3]) or 0)
            run_training("noised-clip", arguments("run", *more))
        drawn = [int(seen[0][index]["timesteps"]) for index in range(200)]
        return sum(timestep < 500 for timestep in drawn) / len(drawn)

    assert clean_share() == pytest.approx(0.5, abs=0.02)
    bias = ["--timestep_bias_strategy", "earlier", "--timestep_bias_multiplier", "19", "--timestep_bias_portion", "0.5"]
    assert clean_share(*bias) == pytest.approx(0.95, abs=0.02)
    with pytest.warns(FutureWarning, match="`--noisy_share` is deprecated: pass `--timestep_bias_strategy`"):
        assert clean_share("--noisy_share", "-0.9") == pytest.approx(0.95, abs=0.02)


def test_two_processes_equal_one_with_twice_the_batch(arguments, tmp_path):
    """Each sees the other's captions as negatives, and gradients flow back through them; also across a resumption."""
    run_training("noised-clip", arguments("one", "--train_batch_size", "8", steps=3))
    result = launch(2, arguments("two", "--checkpointing_steps", "2"), SCRIPT)
    assert result.returncode == 0, result.stderr
    run_training(
        "noised-clip", arguments("two", "--train_batch_size", "8", "--resume_from_checkpoint", "latest", steps=3)
    )
    one, two = (NoisedCLIPModel.from_pretrained(tmp_path / name / "model") for name in ("one", "two"))
    for (name, expected), got in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0, msg=name)
    first, second = ([json.loads(line) for line in (tmp_path / n / "log.jsonl").open()] for n in ("one", "two"))
    assert first[-1]["step"] == second[-1]["step"] == 3


def test_the_loss_is_that_of_the_global_batch(arguments, tmp_path):
    """Not of each process's half: with twice as many captions to choose from it starts at log 8, not log 4."""
    still = ["--learning_rate", "1e-9", "--logging_steps", "1"]
    assert launch(2, arguments("two", *still, steps=1), SCRIPT).returncode == 0
    run_training("noised-clip", arguments("one", *still, "--train_batch_size", "8", steps=1))
    two, one = (json.loads((tmp_path / name / "log.jsonl").read_text()) for name in ("two", "one"))
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert two["accuracy"] == one["accuracy"]


def test_captions_that_repeat_are_right_for_each_others_images(arguments, tmp_path, monkeypatch):
    seen = []

    def spy(images, texts, scale, positives):
        seen.append(positives)
        return contrastive_loss(images, texts, scale, positives)

    monkeypatch.setattr("glide_pipelines.training.contrastive.contrastive_loss", spy)
    data = tmp_path / "data"
    data.mkdir()
    from PIL import Image

    rows = []
    for index, caption in enumerate(["red", "red", "blue", "green"]):
        Image.new("RGB", (8, 8), (60 * index, 0, 0)).save(data / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": caption})
    pytest.importorskip("datasets")
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_training("noised-clip", arguments("run", "--train_data_dir", str(data), steps=1, dataset_name=None))
    (positives,) = seen
    assert positives.sum(dim=1).sort().values.tolist() == [1, 1, 2, 2]
    assert torch.equal(positives, positives.T) and positives.diagonal().all()


def test_the_temperature_stays_below_100(arguments, tmp_path):
    sizes = SIZES | {"logit_scale_init_value": 6.0}
    (tmp_path / "hot.json").write_text(json.dumps(sizes))
    run_training("noised-clip", arguments("run", "--model_config", str(tmp_path / "hot.json"), "--ema_decay", "0"))
    model = NoisedCLIPModel.from_pretrained(tmp_path / "run" / "model")
    assert model.logit_scale.exp().item() < 101


@pytest.mark.filterwarnings("ignore:`--noisy_share`:FutureWarning")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model_config", "nothing.json"], "`model_config` must be a JSON file, got 'nothing.json'"),
        (
            ["--model_config", str(BASE)],
            "shapes_base.json is of another kind of model: it lacks 'text_config'",
        ),
        (["--resolution", "16"], "`resolution` must be that of the model, 8, got 16"),
        (["--push_to_hub"], "`push_to_hub` and `hub_model_id` go together"),
        (["--noisy_share", "-1"], "`noisy_share` must be between -1 and 1, got -1.0"),
        (["--proportion_full_captions", "2"], "`proportion_full_captions` must lie between 0 and 1, got 2.0"),
    ],
)
def test_bad_arguments_are_named(arguments, more, message):
    with pytest.raises((ValueError, UserError)) as error:
        run_training("noised-clip", arguments("run", *more))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "There is no training data: pass `--train_data_dir`"),
        (["--train_data_dir", "x", "--proportion_full_captions", "1"], "`proportion_full_captions` is for the shapes"),
    ],
)
def test_bad_data_arguments_are_named(arguments, more, message):
    with pytest.raises(UserError, match=message):
        run_training("noised-clip", arguments("run", *more, dataset_name=None))


def test_only_the_shapes_world_has_a_model_to_guide_by_default(tmp_path):
    """On a person's own images the tokenizer and the noise schedule of coloured shapes would be a silent choice."""
    own = ["--train_data_dir", str(tmp_path), "--output_dir", str(tmp_path / "run"), "--max_train_steps", "1"]
    with pytest.raises(ValueError, match="`guided_model` must name the pipeline that is to be guided"):
        run_training("noised-clip", own)


def test_a_model_that_sees_other_images_than_those_it_is_to_guide_is_refused(arguments, tmp_path):
    sizes = SIZES | {"vision_config": SIZES["vision_config"] | {"image_size": 16}}
    (tmp_path / "large.json").write_text(json.dumps(sizes))
    message = r"large\.json is of a CLIP of 16 pixels, but `guided_model` makes images of 8: name its sizes"
    with pytest.raises(ValueError, match=message):
        run_training("noised-clip", arguments("run", "--model_config", str(tmp_path / "large.json")))


def test_a_model_for_another_number_of_timesteps_is_refused(arguments, tmp_path):
    sizes = SIZES | {"vision_config": SIZES["vision_config"] | {"num_train_timesteps": 100}}
    (tmp_path / "short.json").write_text(json.dumps(sizes))
    with pytest.raises(ValueError, match="`guided_model` has 1000 timesteps, the noised CLIP 100"):
        run_training("noised-clip", arguments("run", "--model_config", str(tmp_path / "short.json")))
