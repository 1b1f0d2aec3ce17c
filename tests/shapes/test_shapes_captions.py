"""Captions are true, short and readable; the tokenizer knows their words."""

import numpy as np
import pytest

from glide_pipelines.shapes import (
    Caption,
    Mention,
    Object,
    Scene,
    ShapesWorld,
    describe,
    describe_fully,
    knows,
    parse,
    train_tokenizer,
)
from glide_pipelines.shapes.calibration import is_true


@pytest.fixture(scope="module")
def examples():
    world = ShapesWorld(seed=2, held_out=None)
    return [world.example(index) for index in range(3000)]


def test_captions_are_true(examples):
    assert all(is_true(caption, scene) for scene, caption in examples)


def test_relations_are_clearly_true():
    below = Object("circle", "red", "small", 0.5, 0.8)
    above = Object("square", "blue", "small", 0.45, 0.2)
    for seed in range(40):
        caption = describe(Scene((below, above)), np.random.default_rng(seed))
        first = "blue" if caption.objects[0].colour == "blue" or caption.objects[0].shape == "square" else "red"
        assert caption.relation in (None, "above" if first == "blue" else "below")
    diagonal = Scene((Object("circle", "red", "small", 0.2, 0.2), Object("square", "red", "small", 0.7, 0.72)))
    assert not any(describe(diagonal, np.random.default_rng(seed)).relation for seed in range(40))


def test_captions_are_read_back(examples):
    for _, caption in examples:
        assert parse(str(caption)) == caption
        assert parse(str(caption).upper() + ".") == caption
        assert len(str(caption).split()) <= 24


def test_each_attribute_is_sometimes_unstated(examples):
    mentions = [item for _, caption in examples for item in caption.objects]
    for name in ("shape", "colour", "size", "place"):
        said = np.mean([getattr(item, name) is not None for item in mentions])
        assert 0.1 < said < 0.95, name
    assert all(item.shape or item.colour for item in mentions)
    for name in ("relation", "background"):
        assert 0.2 < np.mean([getattr(caption, name) is not None for _, caption in examples]) < 0.8


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("a red circle", Caption((Mention("circle", "red"),))),
        ("Red circle on white", Caption((Mention("circle", "red"),), background="white")),
        ("a green star in the top-left corner", Caption((Mention("star", "green", place="top left"),))),
        ("a star in the middle", Caption((Mention("star", place="centre"),))),
        ("a red shape on the left side", Caption((Mention(colour="red", place="left"),))),
        (
            "A large red circle on the left of the small blue square, on a grey background.",
            Caption((Mention("circle", "red", "large"), Mention("square", "blue", "small")), "left of", "gray"),
        ),
        (
            "a red circle, a blue square, and a green star",
            Caption((Mention("circle", "red"), Mention("square", "blue"), Mention("star", "green"))),
        ),
        (
            "a circle above a yellow cross with a pink diamond",
            Caption((Mention("circle"), Mention("cross", "yellow"), Mention("diamond", "pink")), "above"),
        ),
    ],
)
def test_texts_are_read_with_tolerance(text, caption):
    assert parse(text) == caption
    assert parse(str(caption)) == caption
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "an oil painting of a corgi",
        "a red circle on a red background",
        "a red circle a blue square",
        "a red circle and",
        "a red circle and a red circle",
        "a circle, a square, a star and a cross",
        "a circle, a square above a star",
        "a red circlet",
        "a large circle, a large square and a star",
        "on white",
        "a shape",
    ],
)
def test_texts_outside_the_world_are_refused(text):
    assert parse(text) is None and not knows(text)


def test_bad_input_names_the_argument():
    with pytest.raises(TypeError, match="`text`"):
        parse(None)
    with pytest.raises(ValueError, match="`shape`"):
        Mention("heart")
    with pytest.raises(ValueError, match="`relation`"):
        Caption((Mention("circle"),), relation="above")
    with pytest.raises(ValueError, match="`objects`"):
        Caption(())
    with pytest.raises(ValueError, match="`background`"):
        Caption((Mention("circle"),), background="red")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    assert 257 < train_tokenizer(folder, 512, model_max_length=32) <= 512
    return folder


def test_tokenizer_takes_each_word_as_one_token(tokenizer_folder, examples):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(tokenizer_folder)
    for _, caption in examples[:500]:
        words = str(caption).replace(",", " ,").split()
        assert [token.lstrip("Ġ") for token in tokenizer.tokenize(str(caption))] == words
        assert len(words) <= tokenizer.model_max_length == 32
    assert tokenizer.pad_token == tokenizer.eos_token == tokenizer.unk_token == "<|endoftext|>"
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1


def test_tokenizer_holds_any_text(tokenizer_folder):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(tokenizer_folder)
    for text in ("Zürich 日本 \x00\x7f\n", "<|endoftext|> is text", "".join(map(chr, range(0x250)))):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.eos_token_id not in ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_tokenizer_files_repeat(tokenizer_folder, tmp_path):
    train_tokenizer(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (tokenizer_folder / name).read_bytes()


@pytest.mark.parametrize(("argument", "value"), [("vocab_size", 100), ("model_max_length", 0)])
def test_tokenizer_bad_input(tmp_path, argument, value):
    with pytest.raises(ValueError, match=argument):
        train_tokenizer(tmp_path, **{argument: value})


def test_the_full_caption_is_true_of_scenes_with_the_same_objects_only():
    scenes = [ShapesWorld(3).scene(index) for index in range(200)]
    captions = [describe_fully(scene) for scene in scenes]
    for scene, caption in zip(scenes, captions, strict=True):
        assert parse(str(caption)) == caption and is_true(caption, scene)
        assert all(None not in (said.shape, said.colour, said.size) for said in caption.objects)

    def content(scene):
        return scene.background, sorted((item.shape, item.colour, item.size) for item in scene.objects)

    for caption, own in zip(captions, scenes, strict=True):
        assert describe_fully(Scene(own.objects[::-1], own.background)) == caption
        assert all(is_true(caption, scene) == (content(scene) == content(own)) for scene in scenes)
