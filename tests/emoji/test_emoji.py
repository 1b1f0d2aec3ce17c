"""The emoji set: what is said of a picture is true and readable, what is held out stays out, and bad input is named."""

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import load_script

from glide_pipelines.emoji import HELD_OUT, NOTICE, Emoji, build, captions, choose, open_package, phrases, place
from glide_pipelines.emoji.captions import with_article
from glide_pipelines.emoji.colours import BACKGROUNDS, name_of_colour
from glide_pipelines.emoji.sources import fetch_package, read_emoji
from glide_pipelines.emoji.wordings import WORDINGS


RED, YELLOW = (230, 30, 40, 255), (250, 210, 60, 255)


def entry(unified, name, short_names, category, subcategory, tones=()):
    variations = {tone: {"unified": unified.replace("-FE0F", "") + f"-{tone}"} for tone in tones}
    return {
        "unified": unified,
        "name": name,
        "short_names": short_names,
        "category": category,
        "subcategory": subcategory,
        **({"skin_variations": variations} if tones else {}),
    }


ENTRIES = [
    entry("1F6F6", "CANOE", ["canoe"], "Travel & Places", "transport-water"),
    entry("1F34E", "RED APPLE", ["apple"], "Food & Drink", "food-fruit"),
    entry("1F49A", "GREEN HEART", ["green_heart"], "Smileys & Emotion", "heart"),
    entry("1F44D", "THUMBS UP SIGN", ["+1", "thumbsup"], "People & Body", "hand-fingers-closed", ["1F3FB", "1F3FF"]),
    entry("1F448", "WHITE LEFT POINTING", ["point_left"], "People & Body", "hand-single-finger", ["1F3FF"]),
    entry("1F51F", "KEYCAP TEN", ["keycap_ten"], "Symbols", "keycap"),
    entry("1F534", "LARGE RED CIRCLE", ["red_circle"], "Symbols", "geometric"),
    entry("1F1EA-1F1EC", "Egypt Flag", ["flag-eg"], "Flags", "country-flag"),
    entry("1F468-200D-1F466", "FAMILY: MAN, BOY", ["man-boy"], "People & Body", "family"),
    entry("1F4CE", "PAPERCLIP", ["paperclip"], "Objects", "office"),
    entry("1F3FB", "EMOJI MODIFIER", ["skin-tone-2"], "Component", "skin-tone"),
    entry("1FADC", "ROOT VEGETABLE", ["root_vegetable"], "Food & Drink", "food-vegetable"),  # newer than the pictures
]
WITHOUT_PICTURE = "1fadc"


def draw(colour=RED, size=256):
    """A disc on transparent ground."""
    grid = np.mgrid[:size, :size] - (size - 1) / 2
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[np.hypot(*grid) < 0.45 * size] = colour
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Folders as npm leaves them: pictures and names."""
    folder = tmp_path_factory.mktemp("npm")
    assets = folder / "pictures/package/assets"
    assets.mkdir(parents=True)
    codepoints = [each["unified"] for each in ENTRIES]
    codepoints += [v["unified"] for each in ENTRIES for v in each.get("skin_variations", {}).values()]
    for codepoint in codepoints:
        if codepoint.lower() != WITHOUT_PICTURE:
            draw().save(assets / f"{codepoint.lower()}.webp", lossless=True)
    (folder / "names").mkdir()
    (folder / "names/emoji.json").write_text(json.dumps(ENTRIES))
    return folder / "pictures", folder / "names"


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "package" if (folder / "package").is_dir() else folder, arcname="package")
    return archive


def make(packages, output, **options):
    pictures, names = (open_package(what, source) for what, source in zip(("pictures", "names"), packages, strict=True))
    return build(output, pictures, names, **options)


def rows(folder: Path):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def emoji(codepoint="1f6f6", name="canoe", short_names=("canoe",), category="Objects", subcategory="tool", **more):
    return Emoji(codepoint, name, tuple(short_names), category, subcategory, **more)


# --- captions


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("slice of pizza", "a slice of pizza"),
        ("apple", "an apple"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("european castle", "a european castle"),
        ("chopsticks", "chopsticks"),
        ("popcorn", "popcorn"),
        ("cactus", "a cactus"),
        ("bags of money", "bags of money"),
        ("man lifting weights", "a man lifting weights"),
        ("the sun", "the sun"),
    ],
)
def test_articles(phrase, expected):
    assert with_article(phrase) == expected


def test_phrases_come_from_name_and_short_names():
    found = phrases(emoji("1f5b9", "document sign", ("sheet_of_paper", "doc1", "x")))
    assert found == ["a document", "a sheet of paper"]


def test_faces_are_not_named_by_a_mood_alone():
    face = emoji("1f60c", "relieved face", ("relieved", "relieved_face"), subcategory="face-sleepy")
    assert phrases(face) == ["a relieved face"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clock face three oclock", ["a clock at three o'clock", "a clock face at three o'clock", "a clock at 3:00"]),
        ("clock face one-thirty", ["a clock at half past one", "a clock at one thirty", "a clock at 1:30"]),
    ],
)
def test_clocks_tell_the_time(name, expected):
    assert phrases(emoji("1f5ff-", name, subcategory="time")) == expected


def test_captions_on_white_do_not_name_a_background():
    said = captions(emoji(subcategory="food-fruit"), "red")
    assert said[0] == "a canoe"
    assert {"canoe", "a red canoe", "a canoe, a fruit", "a picture of a canoe"} <= set(said)
    assert not any("background" in text for text in said)
    assert len(said) == len(set(said))


def test_every_caption_on_a_colour_names_it():
    said = captions(emoji(), "red", "blue")
    assert "a canoe on a blue background" in said
    assert all("blue background" in text for text in said)


@pytest.mark.parametrize("phrase", ["a red apple", "a slice of pizza", "two hands"])
def test_a_colour_is_not_put_before_what_cannot_take_it(phrase, monkeypatch):
    monkeypatch.setitem(WORDINGS, "1f6f6", (phrase,))
    assert not any("green" in text for text in captions(emoji(), "green"))


def test_a_skin_tone_is_named():
    said = captions(emoji("1f44d-1f3ff", skin_tone="1f3ff"))
    assert all("dark skin" in text for text in said)


def test_wordings_are_plain_noun_phrases():
    for codepoint, said in WORDINGS.items():
        assert re.fullmatch(r"[0-9a-f]{4,5}(-[0-9a-f]{4,5})*", codepoint) and "fe0f" not in codepoint
        assert len(said) == len(set(said)) >= 1
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9 ,'-]+", phrase) for phrase in said), codepoint


def test_no_two_emoji_are_worded_alike():
    said = [phrase for each in WORDINGS.values() for phrase in each]
    assert {phrase for phrase in said if said.count(phrase) > 1} == set()


# --- colours and places


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((230, 30, 40), "red"),
        ((250, 210, 60), "yellow"),
        ((40, 170, 80), "green"),
        ((40, 110, 240), "blue"),
        ((125, 70, 200), "purple"),
        ((240, 120, 180), "pink"),
        ((120, 70, 40), "brown"),
        ((20, 20, 25), "black"),
        ((245, 245, 245), "white"),
        ((140, 140, 140), "grey"),
    ],
)
def test_colours_are_named(rgb, name):
    assert name_of_colour(draw((*rgb, 255))) == name


def test_things_of_two_colours_have_none():
    picture = draw(RED)
    picture.paste(draw(YELLOW).crop((0, 0, 128, 256)), (0, 0))
    assert name_of_colour(picture) is None
    assert name_of_colour(Image.new("RGBA", (8, 8))) is None


def test_a_picture_is_placed_on_its_background():
    picture = np.asarray(place(draw(size=64), (0, 0, 255), scale=0.5, shift=(1, 0)))
    assert picture.shape == (256, 256, 3)
    assert tuple(picture[64, 192]) == RED[:3]  # in the middle of the upper right quarter
    assert (picture[128:] == (0, 0, 255)).all() and (picture[:, :128] == (0, 0, 255)).all()


# --- the set


def test_the_folders_hold_what_they_say(packages, tmp_path):
    done = make(packages, tmp_path / "set", size=64, copies=3)
    assert done.pictures == {"train": 12, "held_out": 2}
    assert done.missing == (WITHOUT_PICTURE,)
    assert (tmp_path / "set/NOTICE.md").read_text() == NOTICE
    train, held_out = rows(tmp_path / "set/train"), rows(tmp_path / "set/held_out")
    assert {row["codepoint"] for row in train} == {"1f6f6", "1f34e", "1f44d", "1f534"}
    assert {row["combination"] for row in train} == {""}
    assert {row["codepoint"]: row["combination"] for row in held_out} == {
        key: HELD_OUT[key] for key in ("1f49a", "1f448")
    }
    for folder, lines in (("train", train), ("held_out", held_out)):
        assert {path.name for path in (tmp_path / "set" / folder).glob("*.png")} == {row["file_name"] for row in lines}
        for row in lines:
            with Image.open(tmp_path / "set" / folder / row["file_name"]) as picture:
                assert picture.size == (64, 64) and picture.mode == "RGB"
    apples = [row for row in train if row["codepoint"] == "1f34e"]
    assert [row["background"] == "white" for row in apples] == [True, True, False]
    assert {row["name"] for row in apples} == {"a red apple"}
    assert apples[0]["text"][:2] == ["a red apple", "an apple"]
    for row in apples:
        expected = (255, 255, 255) if row["background"] == "white" else BACKGROUNDS[row["background"]]
        with Image.open(tmp_path / "set/train" / row["file_name"]) as picture:
            corners = [picture.getpixel((x, y)) for x in (0, 63) for y in (0, 63)]
        assert corners == [expected] * 4


def test_at_scale_one_nothing_is_moved(packages, tmp_path):
    make(packages, tmp_path / "set", size=64, copies=3, smallest_scale=1.0)
    first, second, coloured = [
        np.asarray(Image.open(tmp_path / "set/train" / f"1f34e{end}.png")).astype(int) for end in ("", "_1", "_2")
    ]
    assert (first == second).all()
    assert (coloured[0, 0] != first[0, 0]).any() and (coloured[32, 32] == first[32, 32]).all()


def test_the_folder_opens_as_a_captioned_dataset(packages, tmp_path):
    datasets = pytest.importorskip("datasets")
    make(packages, tmp_path / "set", size=32, copies=2)
    found = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "set/train"), split="train", cache_dir=tmp_path / "cache"
    )
    said = {row["codepoint"]: row["text"] for row in rows(tmp_path / "set/train") if row["background"] == "white"}
    [apple] = [row for row in found if row["codepoint"] == "1f34e" and row["background"] == "white"]
    assert apple["image"].size == (32, 32)
    assert apple["text"] == said["1f34e"]


@pytest.mark.parametrize(("symbols", "folder"), [("out", None), ("apart", "symbols"), ("train", "train")])
def test_signs_go_where_they_are_told(packages, symbols, folder):
    found = {
        each.codepoint: where for each, where in choose(read_emoji(open_package("names", packages[1])), "all", symbols)
    }
    assert found.get("1f51f") == folder
    assert found["1f534"] == "train"  # a circle is a thing


def test_skin_tones_are_kept_when_asked_and_held_out_with_their_kind(packages):
    entries = read_emoji(open_package("names", packages[1]))
    plain = {each.codepoint for each, _ in choose(entries)}
    toned = {each.codepoint: where for each, where in choose(entries, "all")}
    assert set(toned) - plain == {"1f44d-1f3fb", "1f44d-1f3ff", "1f448-1f3ff"}
    assert toned["1f44d-1f3ff"] == "train" and toned["1f448-1f3ff"] == "held_out"


def test_what_was_never_released_is_left_out(packages):
    found = {each.codepoint for each, _ in choose(read_emoji(open_package("names", packages[1])), "all", "train")}
    assert found.isdisjoint({"1f1ea-1f1ec", "1f468-200d-1f466", "1f4ce", "1f3fb"})


def test_the_same_arguments_give_the_same_files(packages, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        make(packages, tmp_path / name, size=32, seed=seed)
    read = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name / "train").iterdir()}
        for name in ("one", "two", "other")
    }
    assert read["one"] == read["two"] != read["other"]


def test_archives_are_read_as_folders_are(packages, tmp_path):
    archives = [pack(folder, tmp_path / f"{folder.name}.tgz") for folder in packages]
    assert make(archives, tmp_path / "set", size=32) == make(packages, tmp_path / "set2", size=32)


# --- bad input


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": 100}, "size"),
        ({"size": 0}, "size"),
        ({"copies": 0}, "copies"),
        ({"smallest_scale": 0.0}, "smallest_scale"),
        ({"smallest_scale": 1.5}, "smallest_scale"),
        ({"skin_tones": "some"}, "skin_tones"),
        ({"symbols": "in"}, "symbols"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments_out_of_range_are_named(packages, tmp_path, options, named):
    with pytest.raises(ValueError, match=rf"^`{named}` must"):
        make(packages, tmp_path / "set", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused(packages, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^`output` must be a new or empty folder"):
        make(packages, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("content", [b"no archive", b"\x1f\x8b\x08\x00 cut short"])
def test_a_damaged_archive_is_named(tmp_path, content):
    (tmp_path / "x.tgz").write_bytes(content)
    with pytest.raises(ValueError, match=r"^`pictures` .* is no .tgz archive"):
        open_package("pictures", tmp_path / "x.tgz")


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^`names` must be a .tgz file or a folder"):
        open_package("names", tmp_path / "nothing.tgz")


@pytest.mark.parametrize("text", ["[", "[1]", '[{"name": "X"}]', "{}x"])
def test_damaged_names_are_named(packages, tmp_path, text):
    (tmp_path / "emoji.json").write_text(text)
    with pytest.raises(ValueError, match=r"^`names` .*emoji.json"):
        make((packages[0], tmp_path), tmp_path / "set")


def test_packages_of_another_kind_are_named(packages, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^`pictures` .* holds no .webp"):
        make((tmp_path / "empty", packages[1]), tmp_path / "set")
    with pytest.raises(ValueError, match=r"^`names` .* is not emoji-datasource"):
        make((packages[0], tmp_path / "empty"), tmp_path / "set")


def test_a_picture_that_is_higher_than_wide_keeps_its_shape(packages, tmp_path):
    # As the ringed planet of the real package is.
    (tmp_path / "pictures").mkdir()
    Image.new("RGBA", (128, 256), RED).save(tmp_path / "pictures/1f34e.png")
    make((tmp_path / "pictures", packages[1]), tmp_path / "set", size=64)
    pixels = np.asarray(Image.open(tmp_path / "set/train/1f34e.png"))
    assert (pixels[:, 17:47] == RED[:3]).all() and (pixels[:, :15] == 255).all() and (pixels[:, 49:] == 255).all()


def test_a_damaged_picture_leaves_no_folder(packages, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1f34e.webp").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^`pictures` .*1f34e.webp is damaged"):
        make((tmp_path / "pictures", packages[1]), tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_without_npm_the_archive_is_asked_for(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"^`names` must be given where npm is not installed"):
        fetch_package("names", "emoji-datasource@16.0.0")


def test_npm_fetches_what_is_not_given(packages, tmp_path, monkeypatch):
    archive = pack(packages[1], tmp_path / "names.tgz")

    def run(command, **_):
        assert command[1] == "pack" and command[-1] == "emoji-datasource@16.0.0"
        target = Path(command[command.index("--pack-destination") + 1]) / "emoji-datasource-16.0.0.tgz"
        target.write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr("subprocess.run", run)
    assert len(read_emoji(fetch_package("names", "emoji-datasource@16.0.0"))) == len(ENTRIES) + 3


def test_what_npm_says_is_passed_on(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    failed = subprocess.CompletedProcess([], 1, "", "npm error code E404\nnpm error not found")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match=r"^`names`: npm could not fetch .*: npm error not found"):
        fetch_package("names", "emoji-datasource@16.0.0")


# --- the command


def test_the_command_makes_the_set(packages, tmp_path, capsys):
    pictures, names = packages
    arguments = [str(tmp_path / "set"), "--pictures", str(pictures), "--names", str(names), "--size", "32"]
    assert load_script("make_emoji_set").main(arguments) == 0
    said = capsys.readouterr().out
    assert "train: 16 images" in said and "held_out: 2 images" in said and "1 emoji" in said


def test_the_command_ends_with_one_line(tmp_path, capsys):
    arguments = [str(tmp_path / "set"), "--pictures", str(tmp_path / "nothing")]
    assert load_script("make_emoji_set").main(arguments) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"make_emoji_set.py: error: `pictures` must be a .tgz file or a folder, got '{tmp_path}/nothing'."
    ]


# --- what stands beside it


def test_the_notice_names_the_licence():
    assert "MIT" in NOTICE and "Microsoft" in NOTICE


def test_nothing_generic_needs_it():
    code = (
        "import sys, glide_pipelines; assert not any(name.startswith('glide_pipelines.emoji') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
