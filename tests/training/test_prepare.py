"""Data of people, checked and written as shards."""

import io
import json
import shutil
import tarfile

import pytest
from image_files import bomb, noise, noise_folder, png
from PIL import Image
from transformers import GPT2Tokenizer

import glide_cli
from glide_pipelines.datasets import load_captioned_rows
from glide_pipelines.training import DatasetExamples, TarShards, expand_shards, prepare_data


pytestmark = pytest.mark.usefixtures("own_cache")


def examples(folder):
    return DatasetExamples(load_captioned_rows(None, str(folder), "image", "text"))


@pytest.fixture
def folder(tmp_path):
    """Ten images: three good ones, and one of each fault."""
    folder = noise_folder(tmp_path / "images", 10)
    (folder / "1.png").write_bytes(png(noise())[:200])
    (folder / "2.png").write_bytes(bomb(14_000, 14_000))
    Image.new("RGB", (24, 3)).save(folder / "3.png")
    shutil.copy(folder / "0.png", folder / "4.png")
    metadata = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    rows[4]["text"] = rows[0]["text"]
    rows[5]["text"] = " "
    shutil.copy(folder / "0.png", folder / "6.png")  # with another caption: no duplicate
    (folder / "7.png").write_bytes(b"no image")
    rows[8]["text"] = "many words " * 30
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def faults(report):
    return {(problem.number, problem.kind) for problem in report.problems}


def test_every_fault_is_reported_and_what_is_good_is_written(folder, tmp_path):
    output = tmp_path / "prepared"
    report = prepare_data(
        examples(folder), output, resolution=8, vocab_size=300, context=32, shard_size=3, num_workers=2
    )
    duplicates = {problem.number for problem in report.problems if problem.kind == "duplicate"}
    assert len(duplicates) == 1 and duplicates < {0, 4}
    expected = {(1, "unreadable"), (7, "unreadable"), (2, "too large"), (3, "too small"), (5, "no caption")}
    assert faults(report) == expected | {(8, "cut caption"), *((number, "duplicate") for number in duplicates)}
    assert "10 images: 4 to train on, 0 held out, 6 left out." in str(report)
    assert "row 2 (" in str(report) and "exceeds limit" in str(report)
    lines = [json.loads(line) for line in (output / "report.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == sorted(line["number"] for line in lines) and len(lines) == 7

    shards = TarShards(expand_shards([str(output / "train/*.tar")]))
    assert shards.counts.tolist() == [3, 1] and not (output / "held_out").exists()
    assert {shards.caption(number) for number in range(4)} == {
        "caption 0", "caption 6", "caption 9", ("many words " * 30).strip()
    }  # fmt: skip
    tokenizer = GPT2Tokenizer.from_pretrained(output / "tokenizer")
    assert len(tokenizer) == report.vocab_size and tokenizer.model_max_length == 32
    assert tokenizer.tokenize("caption") == ["caption"]
    again = prepare_data(shards, tokenizer=tokenizer, num_workers=0)
    assert {problem.kind for problem in again.problems} == {"cut caption"} and again.parts["train"] == 4


def test_an_image_is_held_out_with_all_its_captions_and_stays_there(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = noise_folder(tmp_path / "images", 40)
    rows = [{"file_name": f"{index % 20}.png", "text": [f"caption {index}", "an image"]} for index in range(40)]
    for index in range(20, 40):
        (folder / f"{index}.png").unlink()
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_data(examples(folder), tmp_path / "out", held_out=0.4, num_workers=0)

    def numbers(part):
        shards = TarShards(expand_shards([str(tmp_path / "out" / part / "*.tar")]))
        return {int(shards.caption(number)[0].split()[1]) for number in range(len(shards))}

    held_out, train = numbers("held_out"), numbers("train")
    assert held_out | train == set(range(40)) and 4 < len(held_out) < 30
    assert {number % 20 for number in held_out}.isdisjoint(number % 20 for number in train)
    rows_of_part = load_captioned_rows(None, str(tmp_path / "out/held_out"), "image", "text")  # as to measure with
    assert {int(captions[0].split()[1]) for captions in rows_of_part["text"]} == held_out
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:30]))
    shutil.rmtree(tmp_path / "out")
    prepare_data(examples(folder), tmp_path / "out", held_out=0.4, num_workers=0)
    assert numbers("held_out") == {number for number in held_out if number < 30}


def test_files_keep_their_usual_endings(tmp_path):
    folder = noise_folder(tmp_path / "images", 5)
    for number, kind in enumerate(("PNG", "JPEG", "MPO", "WEBP")):
        Image.open(io.BytesIO(png(noise()))).convert("RGB").save(folder / f"{number}.png", kind)
    (folder / "4.png").write_bytes(b"P7 332\n#END_OF_COMMENTS\n4 4 255\n" + bytes(range(16)))  # an XV thumbnail
    report = prepare_data(examples(folder), tmp_path / "out", num_workers=0)
    with tarfile.open(tmp_path / "out/train/000000.tar") as shard:
        endings = sorted(name.partition(".")[2] for name in shard.getnames() if not name.endswith(".txt"))
    assert endings == ["jpg", "jpg", "png", "webp"]
    [problem] = report.problems
    assert problem[:1] + problem[2:] == (4, "unreadable", "a file of Pillow's kind XVThumb has no usual ending")


def test_the_command(folder, tmp_path, capsys):
    options = ["--train_data_dir", str(folder), "--num_workers", "1"]
    assert glide_cli.main(["prepare-data", *options]) == 0
    out = capsys.readouterr().out
    assert "10 images: 5 to train on, 0 held out, 5 left out." in out
    assert (
        "unreadable: 2\n" in out
        and "1.png): image file is truncated\n" in out
        and "7.png): it is of no kind of image that Pillow reads" in out
    )
    assert "Without a tokenizer it is not known which captions are too long." in out
    for more, message in (
        (["--dataset_name", "x"], "Pass one of `dataset_name`, `train_data_dir` and `train_shards`."),
        (["--vocab_size", "300"], "`vocab_size` needs `output_dir` for the tokenizer"),
        (
            ["--tokenizer_name", str(folder)],
            f"`tokenizer_name` must be a tokenizer, a folder or a Hub id, got '{folder}'.",
        ),
        (["--held_out", "1.5"], "`held_out` must be at least 0 and below 1, got 1.5."),
        (["--output_dir", str(folder)], "`output_dir` must be a new folder"),
        (["--output_dir", str(tmp_path / "new"), "--vocab_size", "5"], "`vocab_size` must be at least 257, got 5."),
    ):
        assert glide_cli.main(["prepare-data", *options, *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("glide prepare-data: error: ") and message in error
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob("*.partial"))
