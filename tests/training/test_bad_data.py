"""What users bring: damaged images, other layouts of a folder, data that changes under a run."""

import io
import json
import multiprocessing
import os
import tarfile

import numpy as np
import pytest
from image_files import bomb, noise, noise_folder, png
from PIL import Image
from tiny import tiny_tokenizer
from trainings import make_config, read_checkpoint, read_log, run

from glide_pipelines.datasets import DatasetExamples, load_captioned_rows, open_image
from glide_pipelines.training import DatasetSource, TextToImageDataset, TimestepWeighting, prepare_data


datasets = pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path):
    return noise_folder(tmp_path / "images")


def make_source(folder, **options):
    rows = load_captioned_rows(None, str(folder), "image", "text", split="train")
    return DatasetSource(rows, 8, seed=0, **options)


def make_dataset(folder, **options):
    return TextToImageDataset(make_source(folder, **options), tiny_tokenizer(), TimestepWeighting(1000), 0)


def captions(source, count):
    return [source(index, np.random.default_rng(0))[1] for index in range(count)]


BAD = {
    "cut": (png(noise())[:200], "truncated"),
    "bomb": (bomb(14_000, 14_000), "exceeds limit"),
    "text": (b"no image", "cannot identify"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_with_its_row_and_the_steps_before_are_saved(folder, tmp_path, kind):
    data, reason = BAD[kind]
    (folder / "3.png").write_bytes(data)
    with pytest.raises(ValueError, match=rf"The image of row 3 \(.*3\.png\) cannot be read: .*{reason}") as error:
        run(make_config(tmp_path / "run", train_batch_size=1, max_train_steps=8), dataset=make_dataset(folder))
    assert len(str(error.value)) < 400
    [path] = (tmp_path / "run").glob("checkpoint-*")
    assert read_checkpoint(path)["progress"]["step"] == int(path.name.split("-")[1]) > 0


def test_what_is_wrong_with_an_image_in_memory_reads_the_same_each_time():
    """PIL names the address of what it read from."""
    with pytest.raises(ValueError, match=r"^cannot identify image file$"):
        open_image(b"no image")


def test_bad_images_are_skipped_on_request_and_counted(folder, tmp_path):
    (folder / "3.png").write_bytes(BAD["cut"][0])
    (folder / "5.png").write_bytes(BAD["text"][0])
    seen = captions(make_source(folder, skip_bad_images=2), 12)
    assert set(seen) == {"caption 0", "caption 1", "caption 2", "caption 4"}
    # The replacement is the same whatever was met before, as after a resumption.
    late = make_source(folder, skip_bad_images=2)
    assert [late(index, np.random.default_rng(0))[1] for index in reversed(range(12))][::-1] == seen
    with pytest.raises(ValueError, match=r"cannot be read.*`skip_bad_images` is 1\."):
        captions(make_source(folder, skip_bad_images=1), 12)

    changes = {"train_batch_size": 2, "max_train_steps": 6, "skip_bad_images": 2}
    for workers in (0, 2):
        output = tmp_path / f"run-{workers}"
        run(
            make_config(output, **changes, dataloader_num_workers=workers),
            dataset=make_dataset(folder, skip_bad_images=2),
        )
        bad = read_checkpoint(output / "checkpoint-6")["progress"]["bad_rows"]
        assert sorted(name.split()[1] for name in bad) == ["3", "5"]
        assert read_log(output)[-1]["skipped_images"] == 2
    # What several loading processes skip counts together.
    with pytest.raises(ValueError, match=r"`skip_bad_images` is 1, but there are more: row . .*, row "):
        run(
            make_config(tmp_path / "more", **changes | {"skip_bad_images": 1}, dataloader_num_workers=2),
            dataset=make_dataset(folder, skip_bad_images=2),
        )


def test_a_changed_dataset_is_not_resumed(folder, tmp_path):
    config = make_config(tmp_path / "run", max_train_steps=1)
    again = make_config(tmp_path / "run", max_train_steps=2, resume_from_checkpoint="latest")
    run(config, dataset=make_dataset(folder))
    metadata = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(metadata.replace("caption 2", "another caption"))
    with pytest.raises(ValueError, match="The dataset is not the one of the run to resume: names and captions"):
        run(again, dataset=make_dataset(folder))
    (folder / "metadata.jsonl").write_text("\n".join(metadata.splitlines()[:5]))
    with pytest.raises(ValueError, match="rows 6, now 5"):
        run(again, dataset=make_dataset(folder))
    run(make_config(tmp_path / "run", max_train_steps=1, resume_from_checkpoint="latest"), dataset=make_dataset(folder))
    moved = folder.rename(tmp_path / "moved")  # the same data elsewhere
    (moved / "metadata.jsonl").write_text(metadata)
    assert run(again, dataset=make_dataset(moved))[1] == 2


def test_an_error_in_a_step_saves_the_state_before_it(folder, tmp_path):
    from glide_pipelines import GLIDEDDPMScheduler
    from glide_pipelines.training import text_to_image_loss

    plain = text_to_image_loss(GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2"), TimestepWeighting(1000))
    count = 0

    def breaks(model, batch):
        nonlocal count
        count += 1
        loss = plain(model, batch)  # dropout takes random numbers
        if count == 6:  # the second micro batch of the third step
            raise RuntimeError("out of memory")
        return loss

    changes = {"gradient_accumulation_steps": 2}
    run(make_config(tmp_path / "unbroken", **changes), compute_loss=plain)
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        run(make_config(tmp_path / "broken", **changes, dataloader_num_workers=1), compute_loss=breaks)
    assert raised.tb and not multiprocessing.active_children(), "they would keep the process from ending"
    run(make_config(tmp_path / "broken", **changes, resume_from_checkpoint="latest"), compute_loss=plain)
    one, other = (read_checkpoint(tmp_path / name / "checkpoint-4") for name in ("unbroken", "broken"))
    assert one["random"] == other["random"] and one["progress"] == other["progress"]
    assert all((value == other["model"][name]).all() for name, value in one["model"].items())


def write_layout(layout, folder):
    """The same six captioned images in a layout that users have."""
    names, texts = [f"{index}.png" for index in range(6)], [f"caption {index}" for index in range(6)]
    noise_folder(folder)
    files = [(folder / name).read_bytes() for name in names]
    if layout == "csv":
        lines = [f'{name},"{text}"' for name, text in zip(names, texts, strict=True)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    if layout == "txt":
        for name, text in zip(names, texts, strict=True):
            (folder / name).with_suffix(".txt").write_text(f"{text}\n")
    if layout != "jsonl":
        (folder / "metadata.jsonl").unlink()
    if layout.startswith("parquet") or layout == "save_to_disk":
        paths = [str(folder / name) for name in names]
        paths = [os.path.join("..", folder.name, name) for name in names] if layout == "parquet names" else paths
        rows = datasets.Dataset.from_dict({"image": files if layout == "parquet bytes" else paths, "text": texts})
        if layout in ("parquet images", "save_to_disk"):
            rows = rows.cast_column("image", datasets.Image())
        folder = folder.parent / "other"
        folder.mkdir()
        if layout == "save_to_disk":
            rows.save_to_disk(str(folder))
        else:
            rows.to_parquet(str(folder / "train-00000-of-00001.parquet"))
    if layout == "tar":
        folder = folder.parent / "shards"
        folder.mkdir()
        with tarfile.open(folder / "000.tar", "w") as shard:
            for index, (file, text) in enumerate(zip(files, texts, strict=True)):
                for ending, data in (("png", file), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{index}.{ending}")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
    return folder


LAYOUTS = [
    "jsonl",
    "csv",
    "txt",
    "parquet paths",
    "parquet names",
    "parquet bytes",
    "parquet images",
    "save_to_disk",
    "tar",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_examples(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    expected = make_source(noise_folder(tmp_path / "expected"))
    source = make_source(write_layout(layout, tmp_path / "given"))
    for index in range(6):
        image, caption = source(index, np.random.default_rng(1))
        wanted, wanted_caption = expected(index, np.random.default_rng(1))
        assert caption == wanted_caption and image.size == wanted.size == (8, 8)


def test_tar_shards_of_images_and_captions_of_several_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    photo = io.BytesIO()
    noise().convert("RGB").save(photo, "JPEG")
    path = tmp_path / "shards/0.tar"
    path.parent.mkdir()

    def write(first):
        members = {
            "0.png": png(noise()),
            "1.jpg": photo.getvalue(),
            "0.txt": first,
            "1.json": b'{"text": ["two", "2"]}',
        }
        with tarfile.open(path, "w") as shard:
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))

    def read():
        rows = load_captioned_rows(None, str(path.parent), "image", "text")
        assert [image.size for image in rows["image"]] == [noise().size] * 2
        return rows["text"][:]

    write(b"one")
    assert read() == [["one"], ["two", "2"]]
    write(b"another")  # not that of the cache
    assert read() == [["another"], ["two", "2"]]
    write(b"\xff")
    with pytest.raises(ValueError, match=r"^0\.png of .*shards.0\.tar cannot be read: 'utf-8' codec"):
        read()
    path.write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"shards.0\.tar cannot be read: "):
        read()


def test_splits_are_folders(tmp_path):
    for split in ("train", "test"):
        noise_folder(tmp_path / split, 3 if split == "test" else 6)
    assert len(load_captioned_rows(None, str(tmp_path), "image", "text", "train")) == 6
    assert len(load_captioned_rows(None, str(tmp_path), "image", "text", "test")) == 3
    with pytest.raises(ValueError, match="`split` must be one of test, train, got None"):
        load_captioned_rows(None, str(tmp_path), "image", "text")
    assert len(load_captioned_rows(None, str(tmp_path), "image", "text", "train[2:]")) == 4
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="`split` must be one of test, got 'train'"):
        load_captioned_rows(None, str(tmp_path), "image", "text", "train")


def test_an_only_split_is_trained_on_whatever_its_name_unless_it_is_held_out(folder, tmp_path):
    rows = load_captioned_rows(None, str(folder), "image", "text")

    def load(*names):
        path = tmp_path / "-".join(names)
        datasets.DatasetDict(dict.fromkeys(names, rows)).save_to_disk(path)
        return load_captioned_rows(None, str(path), "image", "text", ("train",))

    assert len(load("foo")) == len(load("foo", "train")) == len(rows)
    with pytest.raises(ValueError, match="The dataset has no split train, but test"):
        load("test")
    with pytest.raises(ValueError, match="The dataset has no split train, but bar, foo"):
        load("bar", "foo")


def test_what_was_held_out_is_not_trained_on(tmp_path, monkeypatch):
    """`glide prepare-data` writes folders `train` and `held_out`: the folder above them is both splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = DatasetExamples(load_captioned_rows(None, str(noise_folder(tmp_path / "images", 20)), "image", "text"))
    counts = prepare_data(images, tmp_path / "out", held_out=0.4, num_workers=0).parts
    for split in ("train", "held_out"):
        assert len(load_captioned_rows(None, str(tmp_path / "out"), "image", "text", split)) == counts[split] > 0


def test_one_metadata_file_names_the_images_of_several_splits(tmp_path):
    rows = []
    for split in ("train", "test"):
        for path in sorted(noise_folder(tmp_path / split, 3).glob("*.png")):
            rows.append({"file_name": f"{split}/{path.name}", "text": f"{split} {path.stem}"})
        (tmp_path / split / "metadata.jsonl").unlink()
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_captioned_rows(None, str(tmp_path), "image", "text", "test")["text"][:] == [
        "test 0",
        "test 1",
        "test 2",
    ]
    assert len(load_captioned_rows(None, str(tmp_path), "image", "text", "train")) == 3


def test_what_is_wrong_with_a_folder_is_said(folder, caplog):
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("4.png", "nine.png"))
    with pytest.raises(
        ValueError, match=r"names 1 files that are not there, as `file_name`: nine\.png; the first is in row 4\."
    ):
        make_source(folder)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "one"}\n')
    assert len(make_source(folder).examples) == 1
    assert "5 of the 6 images in" in caplog.text and "are in no row of its metadata: 1.png, " in caplog.text
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "one"\n')
    with pytest.raises(ValueError, match=r"metadata\.jsonl cannot be read"):
        make_source(folder)
    (folder / "metadata.jsonl").rename(folder / "metadata.json1")
    with pytest.raises(ValueError, match=r"must hold a metadata\.jsonl or .* there are 0\.png, "):
        make_source(folder)
    (folder / "sub").mkdir()
    (folder / "1.png").rename(folder / "sub/1.png")
    (folder / "sub/1.txt").write_text("one")
    with pytest.raises(ValueError, match=r"in the folder itself or in its folders train and test; there are 0\.png, "):
        make_source(folder)
    (folder / "0.txt").write_text("one")
    with pytest.raises(ValueError, match=r"must hold a \.txt beside every image, got none for 4: 2\.png, "):
        make_source(folder)


@pytest.mark.parametrize("names", [[], ["0.tar.gz"]])
def test_a_folder_of_nothing_that_is_read(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"packed")
    held = ", ".join(names) or "no files"
    with pytest.raises(ValueError, match=rf"must hold a metadata\.jsonl or .*; there are {held}\."):
        make_source(tmp_path)


def test_metadata_of_a_spreadsheet(folder):
    """A spreadsheet may write a byte order mark, semicolons or tabs, and spaces in its header."""
    names = sorted(path.name for path in folder.glob("*.png"))
    for comma in (";", "\t", ","):
        rows = [f'{name}{comma}"one, two; three"' for name in names]
        text = "\r\n".join([f"file_name{comma} text", *rows])
        (folder / "metadata.jsonl").unlink(missing_ok=True)
        (folder / "metadata.csv").write_text(text, encoding="utf-8-sig")
        assert captions(make_source(folder), 6) == ["one, two; three"] * 6
    # Rows that a spreadsheet has below its last one.
    (folder / "metadata.csv").write_text(
        "\n".join(["file_name,text,year", *(f"{name},one,5" for name in names), ",,", ",,"])
    )
    assert captions(make_source(folder), 6) == ["one"] * 6
    for text, problem in {
        "file_name,text\n": "holds no row",
        "file_name,text\n0.png,one\n,two\n": "must name a file in each row, as `file_name`; row 1 names none",
        "image,text\n0.png,one\n": "must have a column `file_name`, got image, text",
        "file_name,text\n0.png,sch\xf6n\n": "cannot be read as CSV, in UTF-8",
    }.items():
        (folder / "metadata.csv").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=rf"metadata\.csv {problem}"):
            make_source(folder)


def test_names_of_files_from_other_systems(folder, tmp_path):
    (folder / "sub").mkdir()
    (folder / "0.png").rename(folder / "sub" / "sch\u00f6n \U0001f355.png")
    named = [".\\sub\\scho\u0308n \U0001f355.png", str(folder / "1.png"), "../images/2.png"]
    rows = [json.dumps({"file_name": name, "text": str(row)}) for row, name in enumerate(named)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    assert sorted(captions(make_source(folder), 3)) == ["0", "1", "2"]


def test_text_files_beside_images(tmp_path, caplog):
    folder = noise_folder(tmp_path / "images", 0)
    (folder / "metadata.jsonl").unlink()
    for name, text in {"my.photo.v2": "dotted", "my.photo": "not this one", "bom": "\ufeffmarked\r\n"}.items():
        (folder / f"{name}.png").write_bytes(png(noise()))
        (folder / f"{name}.txt").write_bytes(text.encode())
    (folder / "phone.heic").write_bytes(b"of a kind that is not known")
    (folder / "phone.txt").write_text("a photo")
    (folder / "._bom.png").write_bytes(b"what a Mac puts beside a file")
    (folder / "._bom.txt").write_bytes(b"\xff")
    (folder / "CARD.PNG").write_bytes(png(noise()))
    (folder / "CARD.TXT").write_text("of a camera")
    assert sorted(captions(make_source(folder), 4)) == ["dotted", "marked", "not this one", "of a camera"]
    assert "1 of the 5 .txt files in" in caplog.text
    assert "no image beside them that can be read: phone.txt" in caplog.text


def test_modes_that_files_have(tmp_path):
    folder = tmp_path / "modes"
    folder.mkdir()
    rgb = Image.new("RGB", (24, 16), (200, 100, 50))
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("RGBA").save(folder / "alpha.webp")
    Image.fromarray(np.full((16, 24), 30_000, np.uint16)).save(folder / "sixteen.png")
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(path.stem)
    source = make_source(folder)
    seen = dict(reversed(source(index, np.random.default_rng(0))) for index in range(4))
    assert seen.keys() == {"cmyk", "palette", "alpha", "sixteen"}
    assert seen["sixteen"].getpixel((4, 4)) == (117, 117, 117)
