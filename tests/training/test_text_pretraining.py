"""A text encoder is pretrained to predict the image of a caption, and a base model starts from it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_text_encoder
from trainings import run_training

from glide_pipelines import GLIDETextEncoder
from glide_pipelines.models import tokenize_prompts
from glide_pipelines.training.text_pretraining import ImagePredictor, image_prediction_loss


SIZES = {
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 18,
    },
    "unet": {
        "sample_size": 8,
        "block_out_channels": [8],
        "attention_levels": [0],
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    },
    "scheduler": {"beta_schedule": "linear"},
}


@pytest.fixture
def flags(tmp_path):
    """Images of two halves, with their captions."""
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 128, 0)}
    folder = tmp_path / "flags"
    folder.mkdir()
    rows = []
    for left in colours:
        for right in colours:
            pixels = np.empty((16, 16, 3), np.uint8)
            pixels[:, :8], pixels[:, 8:] = colours[left], colours[right]
            Image.fromarray(pixels).save(folder / f"{left}-{right}.png")
            rows.append({"file_name": f"{left}-{right}.png", "text": f"{left} beside {right}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sizes.json").write_text(json.dumps(SIZES))
    return folder


def arguments(folder, output, *more):
    config = ("--model_config", str(folder.parent / "sizes.json"), "--train_data_dir", str(folder))
    return [*config, "--output_dir", str(output), "--learning_rate", "3e-3", *more]


def test_the_text_encoder_learns_where_its_words_put_which_colour(flags, tmp_path):
    run = tmp_path / "run"
    options = ("--resolution", "16", "--max_train_steps", "150", "--train_batch_size", "9", "--ema_decay", "0")
    run_training("text-encoder", arguments(flags, run, *options))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["patches"] < 0.3 * lines[0]["patches"] and lines[-1]["thumbnail"] < 0.3 * lines[0]["thumbnail"]

    # A linear layer reads it off the outputs: colours on the left off the first one, on the right off the fourth.
    from transformers import AutoTokenizer

    text_encoder = GLIDETextEncoder.from_pretrained(run / "model")
    tokens = tokenize_prompts(AutoTokenizer.from_pretrained(run / "model"), ["red beside blue", "blue beside red"])
    with torch.no_grad():
        first, second = text_encoder(**tokens).last_hidden_state
    difference = (first - second).norm(dim=1)
    assert difference[:16].min() > 0.5 * difference.mean()  # all patches differ, on either side

    base = ("--text_encoder_name_or_path", str(run / "model"), "--tokenizer_name", str(run / "model"))
    run_training("text-to-image", arguments(flags, tmp_path / "base", "--max_train_steps", "1", *base))
    assert (tmp_path / "base/pipeline/model_index.json").is_file()


def test_patches_stand_in_the_order_of_the_outputs():
    predictor = ImagePredictor(tiny_text_encoder(), grid_size=2)
    with torch.no_grad():
        predictor.patches.weight.zero_()
        # The red of a patch is that of the first number of its output.
        predictor.patches.weight[:16, 0] = 1
        predictor.patches.bias.zero_()
    tokens = torch.zeros(1, predictor.text_encoder.config.max_position_embeddings, dtype=torch.long)
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        outputs = predictor.text_encoder(tokens, mask).last_hidden_state[0, :4, 0]
        image, thumbnail = predictor(tokens, mask)
    assert image.shape == (1, 3, 8, 8) and thumbnail.shape == (1, 3, 8, 8)
    assert torch.allclose(image[0, 0, ::4, ::4].flatten(), outputs, atol=1e-5)
    assert torch.allclose(image[0, 0, 3::4, 3::4].flatten(), outputs, atol=1e-5) and not image[0, 1:].any()


def test_the_loss_is_that_of_the_image_reduced():
    predictor = ImagePredictor(tiny_text_encoder(), grid_size=2)
    with torch.no_grad():
        for layer in (predictor.patches, predictor.thumbnail):
            layer.weight.zero_()
            layer.bias.fill_(0.5)
    tokens = torch.zeros(2, predictor.text_encoder.config.max_position_embeddings, dtype=torch.long)
    stripes = torch.ones(2, 3, 16, 16)
    stripes[:, :, :, ::2] = -1  # 0, reduced to a half or more
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "pixel_values": stripes}
    loss, metrics = image_prediction_loss(predictor, batch)
    assert loss.shape == (2,) and torch.allclose(loss, torch.tensor(0.5))
    assert torch.allclose(metrics["patches"], torch.tensor(0.25))


def test_more_patches_than_outputs_are_refused(flags, tmp_path):
    with pytest.raises(
        ValueError, match=r"`grid_size` must be at least 1, and its square below .* of 18 tokens, got 5"
    ):
        run_training("text-encoder", arguments(flags, tmp_path / "run", "--max_train_steps", "1", "--grid_size", "5"))
