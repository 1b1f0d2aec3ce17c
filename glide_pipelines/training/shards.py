"""Captioned images in tar shards of webdataset's layout, by number, wherever fsspec opens them."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from huggingface_hub import constants
from tqdm.auto import tqdm

from ..datasets import captions_of, first_few, is_json, parse_caption, tar_examples
from ..files import atomic_file
from .randomness import random_stream


_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NONE, _TEXT, _JSON = 0, 1, 2  # what the member of a caption is
_GAP = 1 << 16  # bytes between an image and its caption that are not worth a second request
_LAYOUT = 2  # of an index: one of another is made anew


def expand_shards(patterns: Sequence[str]) -> list[str]:
    """The shards that patterns name, in their order: `"data/{000..127}.tar"` counts, `"data/*.tar"` is what is there.

    Raises:
        ValueError: if a pattern names no file, or what holds the files cannot be reached.
    """
    urls: list[str] = []
    for pattern in patterns:
        for url in _numbered(pattern):
            if "*" in url:
                with _reading(url):
                    fs, path = fsspec.core.url_to_fs(url)
                    found = sorted(map(str, fs.glob(path)))
                urls += [name if _is_local(url) else fs.unstrip_protocol(name) for name in found]
                if not found:
                    raise ValueError(f"`train_shards` {url!r} names no file.")
            elif os.path.isdir(url):
                raise ValueError(f"`train_shards` {url!r} is a folder: name the shards in it, {url.rstrip('/')}/*.tar.")
            else:
                urls.append(url)
    return urls


def _numbered(pattern: str) -> Iterator[str]:
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _numbered(f"{pattern[: found.start()]}{number:0{len(first)}}{pattern[found.end() :]}")


def _is_local(url: str) -> bool:
    return "://" not in url and "::" not in url


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Name the shard in whatever is raised; each package that opens a protocol has exceptions of its own."""
    try:
        yield
    except Exception as error:
        # That an address is not reached is the cause of what fsspec calls a missing file.
        reason = (isinstance(error, FileNotFoundError) and error.__cause__) or error
        raise ValueError(f"`train_shards` {url} cannot be read: {type(reason).__name__}: {reason}") from error


@dataclass
class TarShards:
    """The examples of tar shards, each by its number: neighbouring members `name.png` (or another kind of image) and
    `name.txt` or `name.json`, as webdataset and img2dataset write them.

    An index of each shard, made once and kept in the cache of Hugging Face (`HF_HOME`), says where its members lie. An
    example is then one range of bytes, whose order nothing dictates.

    Args:
        urls (`Sequence[str]`): Files or URLs that fsspec opens; `"filecache::https://..."` keeps what is read on the
            disk. See [`expand_shards`].
        caption_column (`str`, defaults to `"text"`): The key of the caption in `name.json`; `name.txt` is taken first.

    Raises:
        ValueError: naming the shard, if it cannot be read or there is none.
    """

    urls: Sequence[str]
    caption_column: str = "text"

    def __post_init__(self) -> None:
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            bar = tqdm(
                pool.map(self._index, self.urls), "Shards", len(self.urls), disable=len(self.urls) < 2, leave=False
            )
            self._take(list(bar))
        if not len(self):
            raise ValueError("The dataset is empty.")

    def _take(self, indices: list[np.ndarray]) -> None:
        self.indices = indices
        self.counts = np.array([len(index) for index in indices])
        self._starts = np.cumsum(self.counts) - self.counts

    def sample(self, count: int, seed: int) -> TarShards:
        """So many of the examples, or all if there are fewer, chosen at random, in the order in which they lie.

        Args:
            count (`int`): How many.
            seed (`int`): Decides which.
        """
        numbers = random_stream(seed, 0, 4).choice(len(self), min(count, len(self)), replace=False)
        chosen = np.zeros(len(self), bool)
        chosen[numbers] = True
        result = copy.copy(self)
        result.__dict__.pop("fingerprint", None)
        parts = np.split(chosen, self._starts[1:])
        result._take([index[part] for index, part in zip(self.indices, parts, strict=True)])
        return result

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getitem__(self, number: int) -> tuple[bytes, Any]:
        """The bytes of an image, and its caption or captions (None if there are none).

        Raises:
            ValueError: if the shard cannot be read, or the caption is no text.
        """
        shard, row = self._place(number)
        image, image_bytes, caption, caption_bytes, kind = self.indices[shard][row].tolist()
        begin, end = min(image, caption), max(image + image_bytes, caption + caption_bytes)
        if end - begin > image_bytes + caption_bytes + _GAP:
            return self._read(shard, image, image + image_bytes), self.caption(number)
        data = self._read(shard, begin, end)  # one request for both
        text = data[caption - begin :][:caption_bytes]
        return data[image - begin :][:image_bytes], self._parse(number, kind, text)

    def caption(self, number: int) -> Any:
        """The caption or captions alone."""
        return self._parse(number, *self._stored_caption(number))

    def _stored_caption(self, number: int) -> tuple[int, bytes]:
        """What kind of member the caption is, and its bytes."""
        shard, row = self._place(number)
        _, _, caption, caption_bytes, kind = self.indices[shard][row].tolist()
        return kind, self._read(shard, caption, caption + caption_bytes)

    def _read(self, shard: int, begin: int, end: int) -> bytes:
        with _reading(self.urls[shard]):
            # fsspec keeps what it opened, of each process its own: connections do not outlive a fork.
            fs, path = fsspec.core.url_to_fs(self.urls[shard], use_listings_cache=False)
            data: bytes = fs.cat_file(path, start=begin, end=end)  # by name: the order differs between file systems
        if len(data) != end - begin:
            raise ValueError(f"{self.urls[shard]} is shorter than it was.")
        return data

    def _parse(self, number: int, kind: int, text: bytes) -> Any:
        try:
            return None if kind == _NONE else parse_caption(text, self.caption_column if kind == _JSON else None)
        except ValueError as error:
            raise ValueError(f"The caption of {self.name(number)} cannot be read: {error}") from error

    def _place(self, number: int) -> tuple[int, int]:
        """The shard of an example, and its row in the index."""
        shard = int(np.searchsorted(self._starts, number, "right")) - 1
        return shard, number - int(self._starts[shard])

    def name(self, number: int) -> str:
        """The shard and the member of an example's image, for people to read."""
        shard, row = self._place(number)
        offset = int(self.indices[shard][row][0])
        try:
            for member in _members(self.urls[shard]):
                if member.offset_data == offset:
                    return f"{member.name} of {self.urls[shard]}"
        except Exception:  # as in `_reading`
            pass
        return f"{row} of {self.urls[shard]}"

    def check_captions(self) -> None:
        """Refuse shards in which images have no caption. Of the .json only some are read.

        Raises:
            ValueError: naming the first of them.
        """
        missing = np.flatnonzero(np.concatenate([index[:, 4] == _NONE for index in self.indices]))
        if len(missing):
            names = first_few([self.name(int(number)) for number in missing[:6]])
            raise ValueError(
                f"`train_shards` must hold a .txt or .json beside every image, got none for {len(missing)} of "
                f"{len(self)}: {names}."
            )
        without = []
        for number in np.linspace(0, len(self) - 1, min(16, len(self)), dtype=np.int64).tolist():
            with suppress(ValueError):  # a damaged one is named, or skipped, when it is reached
                if captions_of(self.caption(number)):
                    return
                without.append(number)
        if without:
            _, text = self._stored_caption(without[0])
            raise ValueError(
                f"`caption_column` {self.caption_column!r} must hold a caption in the .json beside each image, got "
                f"none in that of {self.name(without[0])}: its keys are {first_few(sorted(json.loads(text)))}."
            )

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What tells the shards from others: names, sizes and places of all that they hold."""
        digest = hashlib.sha256()
        for url, index in zip(self.urls, self.indices, strict=True):
            digest.update(url.rsplit("/", 1)[-1].encode())
            digest.update(index.tobytes())
        return {"rows": len(self), "shards": len(self.urls), "names and places": digest.hexdigest()[:16]}

    def _index(self, url: str) -> np.ndarray:
        with _reading(url):
            fs, path = fsspec.core.url_to_fs(url)
            key = json.dumps([_LAYOUT, url, os.path.abspath(url), fs.size(path), fs.ukey(path), self.caption_column])
            folder = Path(constants.HF_HOME) / "glide-pipelines" / "shards"
            cached = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
            if not cached.exists():
                if not _is_local(url):
                    _check_ranges(fs, path, url)
                index = _make_index(url)
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_file(cached) as temporary, temporary.open("wb") as file:
                    np.save(file, index)
            return np.load(cached, mmap_mode="r")


def _check_ranges(fs: Any, path: str, url: str) -> None:
    """Refuse a server of which only whole files can be had, by its last byte."""
    with fs.open(path, "rb") as file:
        try:
            file.seek(-1, os.SEEK_END)
            file.read(1)
        except ValueError as error:
            kept = f"filecache::{url} keeps it on the disk"
            raise ValueError(f"its server sends it as a whole only, and no part of it; {kept}") from error


def _members(url: str) -> Iterator[tarfile.TarInfo]:
    with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
        for member in shard:
            if member.isfile():
                yield member


def _make_index(url: str) -> np.ndarray:
    """For each example of a shard, the offset and size of its image and of its caption, and the caption's kind."""
    rows = []
    for image, caption in tar_examples(_members(url)):
        text = caption or image
        kind = _NONE if caption is None else _JSON if is_json(caption) else _TEXT
        rows.append((image.offset_data, image.size, text.offset_data, text.size if caption else 0, kind))
    return np.array(rows, np.int64).reshape(-1, 5)


class ShardWriter:
    """Writes examples into `000000.tar`, `000001.tar` and so on, in webdataset's layout.

    Args:
        folder (`Path`): An empty folder.
        shard_size (`int`): Examples in a shard.
    """

    def __init__(self, folder: Path, shard_size: int) -> None:
        self.folder, self.shard_size = folder, shard_size
        self.count = 0
        self._shard: tarfile.TarFile | None = None

    def add(self, image: bytes, ending: str, captions: str | list[str]) -> None:
        """Add an image, as the bytes of a file with this ending (such as `".png"`): one caption as `.txt`, several as
        `.json`."""
        if self._shard is None:
            self._shard = tarfile.TarFile(self.folder / f"{self.count // self.shard_size:06}.tar", "w")
        text = captions if isinstance(captions, str) else json.dumps({"text": captions}, ensure_ascii=False)
        kind = ".txt" if isinstance(captions, str) else ".json"
        for name, data in ((ending, image), (kind, text.encode("utf-8"))):
            member = tarfile.TarInfo(f"{self.count:09}{name}")
            member.size = len(data)
            self._shard.addfile(member, io.BytesIO(data))
        self.count += 1
        if self.count % self.shard_size == 0:
            self.close()

    def close(self) -> None:
        """End the last shard."""
        if self._shard is not None:
            self._shard.close()
        self._shard = None
