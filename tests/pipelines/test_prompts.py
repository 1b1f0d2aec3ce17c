"""Prompts become the original's token ids, by the pipeline's own path."""

import gzip
import json

import pytest
from tiny import tiny_components
from transformers import GPT2Tokenizer

from glide_pipelines import GLIDEPipeline
from glide_pipelines.conversion.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def tokens(reference):
    return json.loads((reference / "tokens.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pipe(reference, tokens, tmp_path_factory):
    """A pipeline with the released tokenizer, saved and loaded once: what a converted folder holds."""
    folder = tmp_path_factory.mktemp("gpt2")
    for source, target in (("encoder.json.gz", "vocab.json"), ("vocab.bpe.gz", "merges.txt")):
        (folder / target).write_bytes(gzip.decompress((reference / "vocab" / source).read_bytes()))
    tokenizer = load_tokenizer(folder, tokens["glide"]["context"], tokens["glide"]["vocab_size"])
    tokenizer.save_pretrained(folder / "saved")
    return GLIDEPipeline(**tiny_components() | {"tokenizer": GPT2Tokenizer.from_pretrained(folder / "saved")})


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
