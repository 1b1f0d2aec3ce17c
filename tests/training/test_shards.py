"""Tar shards: the same examples as in a folder, in an order that only the seed and the number decide."""

import contextlib
import functools
import io
import itertools
import json
import re
import signal
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from image_files import png
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from trainings import SMALL, launch, make_config, read_checkpoint, run, run_training

from glide_pipelines.training import (
    ShardSource,
    TarShards,
    TextToImageDataset,
    TimestepWeighting,
    expand_shards,
    text_to_image,
    text_to_image_loss,
)
from glide_pipelines.training import shards as shards_module
from glide_pipelines.training.loader import make_loader


pytestmark = pytest.mark.usefixtures("own_cache")


def red_png(number):
    return png(Image.new("RGB", (8, 8), (number, 0, 0)))


def write_shard(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))


@pytest.fixture
def urls(tmp_path):
    """Three shards of 5, 7 and 8 examples; the red of an image is its number, which its caption tells."""
    number = 0
    for shard, count in enumerate((5, 7, 8)):
        members = []
        for _ in range(count):
            members += [(f"a/{number:03}.png", red_png(number)), (f"a/{number:03}.txt", f"caption {number}\n".encode())]
            number += 1
        write_shard(tmp_path / "data" / f"{shard:03}.tar", members)
    return expand_shards([str(tmp_path / "data/{000..002}.tar")])


def seen(source, numbers):
    captions = []
    for number in numbers:
        image, caption = source(number, np.random.default_rng(0))
        assert caption == f"caption {image.getpixel((4, 4))[0]}"
        captions.append(int(caption.split()[1]))
    return captions


def make_dataset(urls, **options):
    source = ShardSource(TarShards(urls), 8, seed=1, shuffle_buffer=6, **options)
    return TextToImageDataset(source, tiny_tokenizer(), TimestepWeighting(1000), 1)


def test_each_epoch_has_every_example_once_in_another_order(urls):
    assert len(urls) == 3
    for shuffle_buffer in (1, 6, 20, 1000):
        source = ShardSource(TarShards(urls), 8, seed=1, shuffle_buffer=shuffle_buffer)
        epochs = [seen(source, range(20 * epoch, 20 * epoch + 20)) for epoch in range(4)]
        assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 1
    assert epochs[0] != seen(ShardSource(TarShards(urls), 8, seed=2, shuffle_buffer=1000), range(20))
    # Windows of one example leave only the order of the shards to chance.
    plain = seen(ShardSource(TarShards(urls), 8, seed=1, shuffle_buffer=1), range(20))
    assert sum(after == before + 1 for before, after in itertools.pairwise(plain)) >= 17


def test_some_of_the_examples(urls):
    """Those of a seed, each once an epoch; another number or seed is another dataset."""
    shards = TarShards(urls)
    some = shards.sample(4, seed=0)
    chosen = seen(ShardSource(some, 8, seed=1), range(8))
    assert len(set(chosen[:4])) == 4 and sorted(chosen[:4]) == sorted(chosen[4:])
    assert sorted(chosen[:4]) == sorted(seen(ShardSource(TarShards(urls).sample(4, seed=0), 8, seed=2), range(4)))
    different = [shards, some, shards.sample(5, seed=0), shards.sample(4, seed=1)]
    assert len({one.fingerprint["names and places"] for one in different}) == 4
    assert shards.sample(100, seed=0).fingerprint == shards.fingerprint


def test_a_window_reaches_over_neighbouring_shards_only(tmp_path):
    for shard in range(10):
        members = [(f"{n}.{e}", d) for n in range(10) for e, d in (("png", red_png(shard)), ("txt", b"caption"))]
        write_shard(tmp_path / f"{shard}.tar", members)
    source = ShardSource(TarShards(expand_shards([str(tmp_path / "*.tar")])), 8, seed=0, shuffle_buffer=20)
    images = [source(number, np.random.default_rng(0))[0] for number in range(100)]
    colours = [image.getpixel((0, 0))[0] for image in images]
    assert all(len(set(colours[start : start + 20])) == 2 for start in range(0, 100, 20))


def test_processes_and_workers_do_not_change_the_sequence(urls):
    """What a run sees from step 3 on, however it goes on."""
    dataset = make_dataset(urls)
    expected = torch.stack([dataset[number]["input_ids"] for number in range(12, 36)])
    for world, workers in ((1, 0), (1, 3), (2, 1)):
        parts = [
            [
                batch["input_ids"]
                for batch in make_loader(make_dataset(urls), 12, 6, 4 // world, 1, rank, world, workers)
            ]
            for rank in range(world)
        ]
        ids = [batch for step in zip(*parts, strict=True) for batch in step]
        assert torch.equal(torch.cat(ids), expected)


def test_a_run_is_resumed_to_the_bit_with_other_workers(urls, tmp_path):
    run(make_config(tmp_path / "whole", max_train_steps=4), dataset=make_dataset(urls))
    run(make_config(tmp_path / "parts", max_train_steps=2), dataset=make_dataset(urls))
    again = make_config(
        tmp_path / "parts", max_train_steps=4, resume_from_checkpoint="latest", dataloader_num_workers=2
    )
    run(again, dataset=make_dataset(urls))
    one, other = (read_checkpoint(tmp_path / name / "checkpoint-4") for name in ("whole", "parts"))
    assert one["progress"] == other["progress"]
    assert all((value == other["model"][name]).all() for name, value in one["model"].items())
    with pytest.raises(ValueError, match="The dataset is not the one of the run to resume: rows 20, now 12"):
        more = make_config(tmp_path / "parts", max_train_steps=6, resume_from_checkpoint="latest")
        run(more, dataset=make_dataset(urls[:2]))


def logging_loss(path, stop_after=None):
    """`text_to_image_loss`, which writes down the examples of each step, and receives a signal in one of them."""

    def make_loss(*arguments):
        plain = text_to_image_loss(*arguments)

        def compute_loss(model, batch):
            reds = (batch["pixel_values"][:, 0, 4, 4] + 1) * 127.5
            with path.open("a") as file:
                file.write(f"{reds.round().int().tolist()}\n")
            if len(read_lines(path)) == stop_after:
                signal.raise_signal(signal.SIGTERM)
            return plain(model, batch)

        return compute_loss

    return make_loss


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_and_then_one_see_the_sequence_of_an_unbroken_run(urls, tmp_path, monkeypatch):
    """One of two is told to stop in step 3; a single one goes on, with workers, past the end of the epoch."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "sizes.json").write_text(json.dumps(SMALL))
    tiny_tokenizer(24).save_pretrained(tmp_path / "tokenizer")

    def arguments(folder, *more):
        data = ["--train_shards", *urls, "--shuffle_buffer", "6", "--train_batch_size", "4"]
        sizes = ["--model_config", str(tmp_path / "sizes.json"), "--tokenizer_name", str(tmp_path / "tokenizer")]
        # Where the gradient is zero in exact arithmetic, AdamW would blow rounding up to full steps.
        settings = ["--max_train_steps", "7", "--adam_epsilon", "1e-3", "--ema_decay", "0.5"]
        return [*data, *sizes, *settings, "--output_dir", str(tmp_path / folder), *more]

    script = tmp_path / "stopped.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from glide_cli.train import main\n"
        "from glide_pipelines.training import text_to_image\n"
        "from test_shards import logging_loss\n"
        "rank = os.environ['RANK']\n"
        f"path = Path({str(tmp_path)!r}, f'{{rank}}.seen')\n"
        "text_to_image.text_to_image_loss = logging_loss(path, 3 if rank == '1' else None)\n"
        "sys.exit(main('text-to-image'))\n"
    )
    result = launch(2, arguments("parts", "--train_batch_size", "2", "--dataloader_num_workers", "1"), script)
    assert result.returncode == 0, result.stderr
    assert "Stopped at step 3 of 7" in result.stdout
    resume = ["--resume_from_checkpoint", "latest", "--dataloader_num_workers", "2"]
    for folder, name, more in (("parts", "rest", resume), ("whole", "whole", [])):
        monkeypatch.setattr(text_to_image, "text_to_image_loss", logging_loss(tmp_path / f"{name}.seen"))
        run_training("text-to-image", arguments(folder, *more))
    first, second, rest, whole = (read_lines(tmp_path / f"{name}.seen") for name in ("0", "1", "rest", "whole"))
    assert len(whole) == 7
    assert [one + other for one, other in zip(first, second, strict=True)] + rest == whole
    unbroken, resumed = (load_file(tmp_path / name / "checkpoint-7/model.safetensors") for name in ("whole", "parts"))
    for name, value in unbroken.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-4)


def test_captions_in_json_and_members_of_other_kinds(tmp_path):
    caption = json.dumps({"text": ["one", "uno"], "width": 8}).encode()
    both = [("0.json", caption), ("0.jpg", red_png(1)), ("0.seg.png", b""), ("0.cls", b"3"), ("readme", b"hello")]
    text_first = [("1.txt", b"two"), ("1.json", b"{}"), ("1.PNG", red_png(2))]
    write_shard(tmp_path / "0.tar", both + text_first)
    shards = TarShards([str(tmp_path / "0.tar")])
    assert [shards.caption(number) for number in range(2)] == [["one", "uno"], "two"]
    assert shards[0] == (red_png(1), ["one", "uno"]) and shards[1] == (red_png(2), "two")
    assert TarShards([str(tmp_path / "0.tar")], caption_column="width").caption(0) == 8


def test_a_folder_that_tar_packed_by_hand(tmp_path):
    """In the order of the disk, with what a Mac hides between the files, and dots in the names."""
    names = ["0", "1", "Dr. 2", "photo 3.5"]
    images = [(f"./{name}.png", red_png(number)) for number, name in enumerate(names)]
    texts = [(f"./{name}.TXT", f"\ufeffcaption {number}".encode()) for number, name in enumerate(names)]
    hidden = [(f"./._{name}.png", b"of a Mac") for name in names]
    write_shard(tmp_path / "apart.tar", [*hidden, *images, ("./readme.md", bytes(100_000)), *reversed(texts)])
    shards = TarShards([str(tmp_path / "apart.tar")])
    assert [shards[number] for number in range(4)] == [(red_png(n), f"caption {n}") for n in range(4)]
    assert seen(ShardSource(shards, 8, seed=0), range(4))
    # Two shards in one: the same names again are other examples.
    write_shard(tmp_path / "twice.tar", [("0.png", red_png(0)), ("0.txt", b"caption 0")] * 2)
    assert len(TarShards([str(tmp_path / "twice.tar")])) == 2


class Parts(SimpleHTTPRequestHandler):
    """Sends the part of a file that is asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with open(self.translate_path(self.path), "rb") as file:
            data = file.read()
        begin, end = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        part = data[begin : end + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *words):
        pass


class Wholes(SimpleHTTPRequestHandler):
    """Sends whole files only, as `python -m http.server` does."""

    def log_message(self, *words):
        pass


@pytest.fixture
def serve():
    """Serve a folder to this computer; returns the address."""
    with contextlib.ExitStack() as running:

        def start(handler, folder):
            server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
            running.callback(server.server_close)
            running.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}"

        yield start


@pytest.mark.parametrize("chain", ["", "filecache::"])
def test_shards_anywhere_that_fsspec_opens(urls, chain, monkeypatch):
    cat_file = MemoryFileSystem.cat_file

    def like_s3(self, path, version_id=None, start=None, end=None):  # s3fs takes a version first
        return cat_file(self, path, start, end)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", like_s3)
    memory = fsspec.filesystem("memory")
    for url in urls:
        with open(url, "rb") as file:
            memory.pipe(f"/far/{url[-7:]}", file.read())
    source = ShardSource(TarShards(expand_shards([f"{chain}memory://far/{{000..002}}.tar"])), 8, seed=1)
    assert seen(source, range(20)) == seen(ShardSource(TarShards(urls), 8, seed=1), range(20))
    assert expand_shards(["memory://far/*.tar"]) == [f"memory:///far/{index:03}.tar" for index in range(3)]


def test_shards_of_web_servers(urls, tmp_path, serve):
    pytest.importorskip("aiohttp", reason="fsspec reads the web with it")
    expected = make_dataset(urls)[0]["input_ids"]
    shards = "/{000..002}.tar"
    parts, wholes = (serve(handler, tmp_path / "data") for handler in (Parts, Wholes))
    for place in (parts, f"filecache::{wholes}"):
        dataset = make_dataset(expand_shards([place + shards]))
        assert torch.equal(dataset[0]["input_ids"], expected)
        # Connections do not outlive the fork of a worker.
        (batch,) = make_loader(dataset, 0, 1, 1, 1, 0, 1, 1)
        assert torch.equal(batch["input_ids"][0], expected)
    with pytest.raises(ValueError, match=f"{wholes}/000.tar cannot be read: .* as a whole only.* filecache::{wholes}"):
        TarShards(expand_shards([wholes + shards]))
    with pytest.raises(ValueError, match=f"`train_shards` {wholes}/003.tar cannot be read: .*404"):
        TarShards([f"{wholes}/003.tar"])
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:1/0\.tar cannot be read: ClientConnectorError: Cannot connect"):
        TarShards(["http://127.0.0.1:1/0.tar"])


def test_a_key_that_no_caption_has_is_named(tmp_path):
    members = [(f"{n}.{e}", d) for n in range(3) for e, d in (("png", red_png(n)), ("json", b'{"caption": "one"}'))]
    write_shard(tmp_path / "0.tar", members)
    message = r"`caption_column` 'text' must .* the \.json .*, got none in that of 0\.png of .*: its keys are caption\."
    with pytest.raises(ValueError, match=message):
        ShardSource(TarShards([str(tmp_path / "0.tar")]), 8, seed=0)
    arguments = ["--train_shards", str(tmp_path / "0.tar"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match=message):
        run_training("text-to-image", [*arguments, "--max_train_steps", "1"])
    assert not list(tmp_path.glob("run/tokenizer/*"))
    # One that lacks it is named when it is reached.
    write_shard(tmp_path / "1.tar", [*members, ("3.png", red_png(3)), ("3.json", b"{}")])
    source = ShardSource(TarShards([str(tmp_path / "1.tar")], "caption"), 8, seed=0)
    with pytest.raises(ValueError, match=r"The image of 3\.png of .* cannot be read: it has no caption"):
        [source(number, np.random.default_rng(0)) for number in range(4)]
    # And so is one that cannot be read, or it is skipped.
    write_shard(tmp_path / "2.tar", [("0.png", red_png(0)), ("0.json", b"{broken"), *members[2:]])
    source = ShardSource(TarShards([str(tmp_path / "2.tar")], "caption"), 8, seed=0, skip_bad_images=1)
    assert [source(number, np.random.default_rng(0))[1] for number in range(3)] == ["one"] * 3


@pytest.mark.parametrize("pattern", ["odd://bucket/0.tar", "odd://bucket/*.tar"])
def test_a_package_that_is_missing_is_named(pattern):
    fsspec.register_implementation("odd", "no_such_package.OddFileSystem", clobber=True, errtxt="Install odd")
    with pytest.raises(ValueError, match=f"{re.escape(pattern)} cannot be read: ImportError: Install odd"):
        TarShards(expand_shards([pattern]))


def test_an_index_is_made_once(urls, monkeypatch):
    TarShards(urls)
    with monkeypatch.context() as context:
        context.setattr(shards_module, "_make_index", None)
        assert len(TarShards(urls)) == 20
    with tarfile.open(urls[0], "a") as shard:
        for name, data in (("b.png", red_png(20)), ("b.txt", b"caption 20")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    assert len(TarShards(urls)) == 21  # it has changed


def test_bad_shards_and_examples_are_named(urls, tmp_path):
    with pytest.raises(ValueError, match=r"`train_shards` .*003\.tar cannot be read: FileNotFoundError"):
        TarShards([*urls, str(tmp_path / "data/003.tar")])
    with pytest.raises(ValueError, match=r"`train_shards` '.*\*\.tgz' names no file"):
        expand_shards([str(tmp_path / "*.tgz")])
    with pytest.raises(ValueError, match=r"`train_shards` '.*' is a folder: name the shards in it, .*/\*\.tar"):
        expand_shards([str(tmp_path)])
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as shard:
        shard.add(urls[0], "0.png")
    with pytest.raises(ValueError, match=r"`train_shards` .*packed\.tar cannot be read: .*not a tar|invalid header"):
        TarShards([str(tmp_path / "packed.tar")])
    whole = (tmp_path / "data/000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:700])
    with pytest.raises(ValueError, match=r"`train_shards` .*cut\.tar cannot be read: .*unexpected end"):
        TarShards([str(tmp_path / "cut.tar")])
    write_shard(tmp_path / "none.tar", [("0.png", red_png(1)), ("1.png", red_png(2)), ("1.txt", b"two")])
    with pytest.raises(ValueError, match=r"beside every image, got none for 1 of 2: 0\.png of .*none"):
        ShardSource(TarShards([str(tmp_path / "none.tar")]), 8, seed=0)
    write_shard(tmp_path / "bad.tar", [("x/0.png", b"no"), ("x/0.txt", b"one"), ("1.png", red_png(2)), ("1.txt", b"2")])
    bad = TarShards([str(tmp_path / "bad.tar")])
    with pytest.raises(ValueError, match=r"The image of x/0\.png of .*bad\.tar cannot be read: .*identify"):
        [ShardSource(bad, 8, seed=0)(number, np.random.default_rng(0)) for number in range(2)]
    source = ShardSource(bad, 8, seed=0, skip_bad_images=1)
    assert [source(number, np.random.default_rng(0))[1] for number in range(4)] == ["2"] * 4
    shards = TarShards(urls)
    (tmp_path / "data/000.tar").write_bytes(whole[:600])
    with pytest.raises(ValueError, match=r"000\.tar is shorter than it was"):
        shards[0]
