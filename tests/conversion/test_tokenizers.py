"""GLIDE's tokenizer: the original's ids, from a folder and from the Hub, and after saving."""

import json

import pytest
from recorded import recorded_tokens, write_glide_vocabulary
from small import CONTEXT, VOCAB
from tiny import tiny_tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2Tokenizer

from glide_pipelines.conversion import ConversionError
from glide_pipelines.conversion.tokenizers import load_tokenizer


def write_vocabulary(folder):
    """`vocab.json` and `merges.txt` of 258 entries, and no settings."""
    folder.mkdir(parents=True)
    vocabulary = [*sorted(ByteLevel.alphabet()), "re", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\n")
    return folder


def test_ids_are_the_originals(recordings, tmp_path):
    recorded = recorded_tokens(recordings)
    glide = recorded["glide"]
    folder = write_glide_vocabulary(tmp_path / "original", glide["vocab_size"], glide["merges"])
    tokenizer = load_tokenizer(folder, glide["context"], glide["vocab_size"])
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, GPT2Tokenizer.from_pretrained(tmp_path)):
        for row in recorded["rows"]:
            tokens = loaded(row["text"].lower(), padding="max_length", truncation=True)
            length = len(row["glide_ids"])
            padding = glide["context"] - length
            assert tokens.input_ids == row["glide_ids"] + [glide["end_token"]] * padding, row["text"]
            assert tokens.attention_mask == [1] * length + [0] * padding, row["text"]


def test_settings_survive_saving(tmp_path):
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "original"), CONTEXT, VOCAB)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = GPT2Tokenizer.from_pretrained(tmp_path / "saved")
    # What was saved, a single tokenizer.json, can be converted with too.
    third = load_tokenizer(tmp_path / "saved", CONTEXT, VOCAB)
    for loaded in (tokenizer, again, third):
        assert len(loaded) == VOCAB
        assert loaded.model_max_length == CONTEXT
        assert loaded.pad_token_id == loaded.eos_token_id == loaded.unk_token_id == VOCAB - 1
        assert (loaded.padding_side, loaded.truncation_side) == ("right", "right")
        # The end token, spelled out in a prompt, is text.
        assert VOCAB - 1 not in loaded("a <|endoftext|> b").input_ids
        assert len(loaded("x" * 50, truncation=True).input_ids) == CONTEXT
        assert loaded("are", padding="max_length").input_ids == tiny_tokenizer()("are", padding="max_length").input_ids


def test_a_repository_on_the_hub(tmp_path, monkeypatch):
    """The Hub's cache, laid out by hand; nothing is asked of the network."""
    repository = tmp_path / "models--openai-community--gpt2"
    write_vocabulary(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert len(load_tokenizer("openai-community/gpt2", CONTEXT, VOCAB)) == VOCAB
    with pytest.raises(
        ConversionError, match="there is no such folder, and it cannot be fetched from the Hugging Face Hub"
    ):
        load_tokenizer("openai-community/gpt3", CONTEXT, VOCAB)


def test_only_what_is_needed_is_asked_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return write_vocabulary(tmp_path / "snapshot")

    monkeypatch.setattr("glide_pipelines.conversion.tokenizers.snapshot_download", snapshot_download)
    load_tokenizer("some/tokens", CONTEXT, VOCAB)
    assert asked == [("some/tokens", ["vocab.json", "merges.txt"])]


def test_a_vocabulary_of_another_size(tmp_path):
    folder = write_vocabulary(tmp_path / "original")
    with pytest.raises(ConversionError, match=r"the tokenizer has 258 entries, but .* embedding has 50257 rows"):
        load_tokenizer(folder, CONTEXT, 50257)


@pytest.mark.parametrize("name", ["no such folder", "/no/such/folder"])
def test_no_such_folder(name):
    with pytest.raises(ConversionError, match="there is no such folder"):
        load_tokenizer(name, CONTEXT, VOCAB)
