"""Prompts become the original's token ids, by the pipeline's own path."""

import pytest
from recorded import recorded_tokens, write_glide_vocabulary
from tiny import tiny_components
from transformers import GPT2Tokenizer

from glide_pipelines import GLIDEPipeline
from glide_pipelines.conversion.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def tokens(recordings):
    return recorded_tokens(recordings)


@pytest.fixture(scope="module")
def pipe(tokens, tmp_path_factory):
    """A pipeline with the released tokenizer, saved and loaded once: what a converted folder holds."""
    glide = tokens["glide"]
    folder = write_glide_vocabulary(tmp_path_factory.mktemp("gpt2"), glide["vocab_size"], glide["merges"])
    tokenizer = load_tokenizer(folder, glide["context"], glide["vocab_size"])
    tokenizer.save_pretrained(folder / "saved")
    without_encoders = tiny_components() | dict.fromkeys(("text_encoder", "super_res_text_encoder"))
    return GLIDEPipeline(**without_encoders | {"tokenizer": GPT2Tokenizer.from_pretrained(folder / "saved")})


def test_ids_equal_the_original(pipe, tokens):
    context, end = tokens["glide"]["context"], tokens["glide"]["end_token"]
    for row in tokens["rows"]:
        encoded = pipe.tokenize(row["text"])
        ids = row["glide_ids"]
        assert encoded.input_ids[0].tolist() == ids + [end] * (context - len(ids)), row["text"]
        assert encoded.attention_mask[0].tolist() == [1] * len(ids) + [0] * (context - len(ids)), row["text"]


def test_a_batch_of_prompts_equals_each_alone(pipe, tokens):
    texts = [row["text"] for row in tokens["rows"]]
    together = pipe.tokenize(texts)
    assert together.input_ids.shape == (len(texts), tokens["glide"]["context"])
    assert [ids.tolist() for ids in together.input_ids] == [pipe.tokenize(text).input_ids[0].tolist() for text in texts]


def test_there_must_be_something_to_encode():
    pipe = GLIDEPipeline(**tiny_components())
    embeds = pipe.encode_prompt("a red circle")[2]
    for given in ({}, {"super_res_prompt_embeds": embeds}):
        with pytest.raises(ValueError, match="Pass `prompt` or `prompt_embeds`"):
            pipe.encode_prompt(**given)
