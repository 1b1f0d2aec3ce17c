"""What the emoji checkpoint has read, and what it says of other prompts."""

import json

import pytest
from scripts import load_script

from glide_pipelines.emoji import prompt_warning
from glide_pipelines.emoji.vocabulary import FILE, words_of
from glide_pipelines.emoji.wordings import WORDINGS


@pytest.mark.parametrize(
    "prompt", ["a slice of pizza", "A red Car, on a blue background!", "a clock at three o’clock", "3:00", ""]
)
def test_nothing_is_said_of_known_words(prompt):
    assert prompt_warning(prompt) is None


def test_words_that_were_never_read_are_named_once():
    said = prompt_warning("a corgi and a corgi at the Louvre, in space")
    assert "never read 'corgi', 'louvre'. Try" in said


@pytest.mark.parametrize("prompt", ["\U0001f355", "\u7ea2\u8272\u7684\u5706", "?!"])
def test_a_prompt_without_a_known_word_is_no_prompt(prompt):
    assert "never read" in prompt_warning(prompt)


def test_most_of_what_is_held_out_is_made_of_known_words():
    from glide_pipelines.emoji import HELD_OUT

    wordings = [WORDINGS[code][0] for code in HELD_OUT if code in WORDINGS]
    assert len(wordings) > 20
    assert sum(prompt_warning(text) is None for text in wordings) / len(wordings) > 0.9


def test_the_words_are_those_of_a_set_s_captions(tmp_path):
    rows = [{"text": ["a red apple", "apple, red"]}, {"text": ["It's three o'clock"]}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = load_script("write_emoji_words", "tools")
    assert script.main([str(tmp_path), "--output", str(tmp_path / "words.txt")]) == 0
    assert (tmp_path / "words.txt").read_text().split() == ["a", "apple", "it's", "o'clock", "red", "three"]
    known = FILE.read_text().split()
    assert known == sorted(set(known)) and {"taxi", "pizza", "background"} <= set(known)
    assert words_of("heart-shaped") == ["heart", "shaped"]
