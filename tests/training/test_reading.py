"""Reading the shapes world's captions: what words are to tell, and that a text encoder learns it."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import GPT2Tokenizer

from glide_pipelines import GLIDETextConfig, GLIDETextEncoder, shapes_checkpoint
from glide_pipelines.models import tokenize_prompts
from glide_pipelines.shapes import Caption, Mention, parse
from glide_pipelines.training.reading import READINGS, readings, train_reading


def told(text: str) -> dict[str, dict[str, str | None]]:
    """What the words of a text are to tell, but for what is unsaid."""
    words = text.replace(",", " ,").split()
    found = {}
    for position, numbers in readings(parse(text), words):
        values = {name: READINGS[name][number] for name, number in zip(READINGS, numbers, strict=True)}
        found[f"{position} {words[position]}"] = {name: value for name, value in values.items() if value is not None}
    return found


def test_every_word_of_an_object_tells_of_that_object_only():
    first = {"colour": "red", "shape": "circle", "relation": "above"}
    second = {"colour": "blue", "shape": "square", "size": "small", "relation": "below"}
    assert told("a red circle above a small blue square") == {
        "1 red": first,
        "2 circle": first,
        "5 small": second,
        "6 blue": second,
        "7 square": second,
    }


def test_places_backgrounds_and_unsaid_shapes_are_told():
    said = {"colour": "pink", "place": "top left", "background": "black"}
    assert told("a pink shape in the top left on black") == {"1 pink": said, "2 shape": said}


def test_the_third_object_has_no_part_in_the_relation():
    found = told("a red circle left of a blue square, and a star")
    assert [values.get("relation") for values in found.values()] == ["left of"] * 2 + ["right of"] * 2 + [None]


def test_words_of_the_background_are_no_objects():
    assert list(told("a cross on a white background")) == ["1 cross"]


@pytest.fixture(scope="module")
def shapes_tokenizer():
    return GPT2Tokenizer.from_pretrained(shapes_checkpoint() / "tokenizer")


@pytest.fixture
def text_encoder(shapes_tokenizer):
    torch.manual_seed(0)
    config = GLIDETextConfig(
        vocab_size=len(shapes_tokenizer),
        pad_token_id=shapes_tokenizer.pad_token_id,
        eos_token_id=shapes_tokenizer.eos_token_id,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return GLIDETextEncoder(config)


def test_the_encoder_learns_what_stands_beside_a_word(text_encoder, shapes_tokenizer):
    shares = []
    train_reading(text_encoder, shapes_tokenizer, 150, 48, 5e-3, report=lambda step, loss, told: shares.append(told))
    assert shares[0]["shape"] < 0.4
    assert sum(share["shape"] for share in shares[-10:]) / 10 > 0.6
    # "circle" itself does not change, but what it is said to be does.
    tokens = tokenize_prompts(shapes_tokenizer, ["a red circle and a blue star", "a blue circle and a red star"])
    with torch.no_grad():
        one, other = text_encoder(**tokens).last_hidden_state[:, 2]
    assert (one - other).norm() > 0.2 * one.norm()


def test_an_anchor_keeps_the_outputs(text_encoder, shapes_tokenizer):
    tokens = tokenize_prompts(shapes_tokenizer, [str(Caption((Mention("circle", "red"),)))])
    before = text_encoder(**tokens).last_hidden_state.detach()
    weights = {name: value.clone() for name, value in text_encoder.state_dict().items()}
    moved = []
    for anchor_weight in (0.0, 100.0):
        text_encoder.load_state_dict(weights)
        train_reading(text_encoder, shapes_tokenizer, 20, 16, 5e-3, anchor_weight=anchor_weight)
        moved.append((text_encoder(**tokens).last_hidden_state - before).norm().item())
    assert moved[1] < 0.5 * moved[0]


def test_a_tokenizer_that_splits_the_words_is_refused(text_encoder):
    with pytest.raises(ValueError, match="`tokenizer` must have a token for each word"):
        train_reading(text_encoder, tiny_tokenizer(), 1)
