"""Pretraining of the text encoder: what is read off each word, and that it is learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_tokenizer
from transformers import GPT2Tokenizer

from glide_pipelines import GLIDETextConfig, GLIDETextEncoder, shapes_checkpoint
from glide_pipelines.models import tokenize_prompts
from glide_pipelines.shapes import parse
from glide_pipelines.shapes.reading import ATTRIBUTES, pretrain_text_encoder, probe_targets


MODEL_CONFIGS = Path(__file__).parents[2] / "glide_cli" / "model_configs"


def stated(text: str) -> dict[str, dict[str, str | int]]:
    """The attributes that must be read off the words of a text, but for unstated ones."""
    words = text.replace(",", " ,").split()
    found = {}
    for position, numbers in probe_targets(parse(text), words):
        values = {name: ATTRIBUTES[name][number] for name, number in zip(ATTRIBUTES, numbers, strict=True)}
        found[f"{position} {words[position]}"] = {name: value for name, value in values.items() if value is not None}
    return found


def test_every_word_of_an_object_has_the_attributes_of_that_object_only():
    first = {"colour": "red", "shape": "circle", "relation": "above", "count": 2}
    second = {"colour": "blue", "shape": "square", "size": "small", "relation": "below", "count": 2}
    assert stated("a red circle above a small blue square") == {
        "1 red": first,
        "2 circle": first,
        "5 small": second,
        "6 blue": second,
        "7 square": second,
    }


def test_places_backgrounds_and_unstated_shapes_are_stated():
    target = {"colour": "pink", "place": "top left", "background": "black", "count": 1}
    assert stated("a pink shape in the top left on black") == {"1 pink": target, "2 shape": target}


def test_the_third_object_has_no_part_in_the_relation():
    found = stated("a red circle left of a blue square, and a star")
    assert [values.get("relation") for values in found.values()] == ["left of"] * 2 + ["right of"] * 2 + [None]


def test_words_of_the_background_are_no_objects():
    assert list(stated("a cross on a white background")) == ["1 cross"]


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


def test_words_are_learned_first(text_encoder, shapes_tokenizer):
    shares = []
    pretrain_text_encoder(
        text_encoder, shapes_tokenizer, 120, 48, 5e-3, report=lambda step, loss, accuracy: shares.append(accuracy)
    )
    assert shares[0]["shape"] < 0.25
    assert sum(share["shape"] for share in shares[-10:]) / 10 > 0.4


@pytest.mark.slow
def test_a_word_comes_to_encode_what_stands_beside_it(shapes_tokenizer):
    torch.manual_seed(0)
    config = GLIDETextConfig(**json.loads((MODEL_CONFIGS / "shapes_base.json").read_text())["text_encoder"])
    config.vocab_size = len(shapes_tokenizer)
    text_encoder = GLIDETextEncoder(config)
    shares = []
    pretrain_text_encoder(
        text_encoder, shapes_tokenizer, 400, report=lambda step, loss, accuracy: shares.append(accuracy)
    )
    assert min(sum(share[name] for share in shares[-10:]) / 10 for name in ("colour", "shape", "relation")) > 0.9
    tokens = tokenize_prompts(shapes_tokenizer, ["a red circle and a blue star", "a blue circle and a red star"])
    with torch.no_grad():
        one, other = text_encoder(**tokens).last_hidden_state[:, 2]  # "circle", which is another one now
    assert (one - other).norm() > 0.3 * one.norm()


def test_empty_positions_do_not_depend_on_the_caption(text_encoder, shapes_tokenizer):
    tokens = tokenize_prompts(shapes_tokenizer, ["a red circle and a blue star", "a cross on black"])

    def difference():
        with torch.no_grad():
            one, other = text_encoder(**tokens).last_hidden_state[:, 10:]
        return ((one - other).norm() / one.norm()).item()

    before = difference()
    pretrain_text_encoder(text_encoder, shapes_tokenizer, 100, 32, 5e-3)
    assert difference() < 0.5 * before


def test_a_tokenizer_that_splits_the_words_is_refused(text_encoder):
    with pytest.raises(ValueError, match="`tokenizer` must have a token for each word"):
        pretrain_text_encoder(text_encoder, tiny_tokenizer(), 1)
