"""Images and captions are checked before anything is trained on them, and written as clean shards."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import GPT2Tokenizer, PreTrainedTokenizerBase

from ..datasets import captions_of, open_image
from ..files import atomic_folder
from ..models.tokenization import check_text, prompt_lengths, train_tokenizer
from .randomness import random_stream
from .shards import ShardWriter
from .sources import Examples


TRAIN, HELD_OUT = "train", "held_out"
MAX_PIXELS = 178_956_970  # twice Pillow's `Image.MAX_IMAGE_PIXELS`, where it takes an image for a bomb

_USUAL_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg"}  # the latter is a camera's JPEG, with more images after the first


class Problem(NamedTuple):
    """What is wrong with an example: its number and name, one of `unreadable`, `too large`, `too small`, `no caption`,
    `duplicate` and `cut caption`, and the particulars."""

    number: int
    name: str
    kind: str
    reason: str


@dataclass
class DataReport:
    """What was found in a dataset.

    Attributes:
        total (`int`): Examples.
        parts (`dict[str, int]`): How many of them are good, to train on (`train`) and set aside (`held_out`).
        problems (`list[Problem]`): The faults, in the order of the examples. A `cut caption` is a remark only: its
            example is good.
        vocab_size, context (`int`, *optional*): Entries of the tokenizer and tokens that it leaves of a caption.
    """

    total: int
    parts: dict[str, int] = field(default_factory=lambda: {TRAIN: 0, HELD_OUT: 0})
    problems: list[Problem] = field(default_factory=list)
    vocab_size: int | None = None
    context: int | None = None

    def __str__(self) -> str:
        train, held_out = self.parts[TRAIN], self.parts[HELD_OUT]
        left_out = self.total - train - held_out
        lines = [f"{self.total} images: {train} to train on, {held_out} held out, {left_out} left out."]
        for kind, count in Counter(problem.kind for problem in self.problems).most_common():
            first = [problem for problem in self.problems if problem.kind == kind][:5]
            lines.append(f"{kind}: {count}")
            lines += [f"  {problem.name}: {problem.reason}" for problem in first]
            if count > len(first):
                lines.append(f"  and {count - len(first)} more")
        if self.context is None:
            lines.append("Without a tokenizer it is not known which captions are too long.")
        elif not any(problem.kind == "cut caption" for problem in self.problems):
            lines.append(f"No caption is longer than {self.context} tokens (tokenizer of {self.vocab_size} entries).")
        return "\n".join(lines)


def prepare_data(
    examples: Examples,
    output_dir: str | Path | None = None,
    held_out: float = 0.0,
    resolution: int | None = None,
    min_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    tokenizer: PreTrainedTokenizerBase | None = None,
    vocab_size: int | None = None,
    context: int = 128,
    shard_size: int = 10_000,
    num_workers: int | None = None,
) -> DataReport:
    """Check every image and caption, and write what is good as tar shards in webdataset's layout, in a random order.

    Args:
        examples (`Examples`): [`DatasetExamples`] or [`TarShards`].
        output_dir (`str` or `Path`, *optional*): A new folder for the shards (`train/000000.tar` and so on), a
            `tokenizer` and `report.jsonl`. Without it nothing is written.
        held_out (`float`, defaults to 0): About this share of the images goes into `held_out`, by a hash of their
            pixels: an image that comes twice is never on both sides, and more data move none across.
        resolution (`int`, *optional*): Scale images whose shorter side is longer down to it, and save them as PNG. By
            default the files stay as they are.
        min_size (`int`, *optional*): An image whose shorter side is shorter is too small; by default `resolution`.
        max_pixels (`int`, defaults to 179 million): An image of more is too large. It is not decoded.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Tells which captions are cut.
        vocab_size (`int`, *optional*): Train one in its place on the captions to train on, of at most so many entries.
        context (`int`, defaults to 128): Its text context, in tokens.
        shard_size (`int`, defaults to 10,000): Images in a shard.
        num_workers (`int`, *optional*): Processes that check; by default one for each core.

    Raises:
        ValueError: if an argument is out of its range or does not go with another, or `output_dir` holds something.
        OSError: if the disk is full. Nothing is left behind.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"`held_out` must be at least 0 and below 1, got {held_out}.")
    for name, value in (("resolution", resolution), ("min_size", min_size), ("shard_size", shard_size)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if vocab_size is not None and (output_dir is None or tokenizer is not None):
        raise ValueError("`vocab_size` needs `output_dir` for the tokenizer, and no other `tokenizer`.")
    if vocab_size is not None and vocab_size < 257:
        raise ValueError(f"`vocab_size` must be at least 257, got {vocab_size}.")
    check = _Check(examples, held_out, resolution, min_size or resolution or 2, max_pixels)
    output = None if output_dir is None else Path(output_dir)
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`output_dir` must be a new folder, and {output_dir} holds something.")
    with nullcontext() if output is None else atomic_folder(output) as folder:
        report = DataReport(len(examples))
        writers = {}
        if folder is not None:
            for part in report.parts:
                (folder / part).mkdir()
                writers[part] = ShardWriter(folder / part, shard_size)
        good: dict[bytes, int] = {}
        parts = bytearray(len(examples))  # 1 to train on, 2 held out
        for number, found in _in_parallel(check, num_workers):
            if isinstance(found, Problem):
                report.problems.append(found)
                continue
            same = good.setdefault(found.digest, number)
            if same != number:
                name = examples.name(number)
                report.problems.append(Problem(number, name, "duplicate", f"of {examples.name(same)}"))
                continue
            report.parts[found.part] += 1
            parts[number] = 1 if found.part == TRAIN else 2
            if writers:
                writers[found.part].add(found.image, found.ending, found.captions)
        for writer in writers.values():
            writer.close()
            if writer.count == 0:
                writer.folder.rmdir()
        if vocab_size is not None and folder is not None:
            training = (number for number, part in enumerate(parts) if part == 1)
            texts = (text for number in training for text in _captions(examples.caption(number)))
            train_tokenizer(folder / "tokenizer", texts, vocab_size, context)
            tokenizer = GPT2Tokenizer.from_pretrained(folder / "tokenizer")
        if tokenizer is not None:
            report.vocab_size, report.context = len(tokenizer), tokenizer.model_max_length
            owners, owned = itertools.tee(
                (number, text)
                for number, part in enumerate(parts)
                if part
                for text in _captions(examples.caption(number))
            )
            lengths = prompt_lengths(tokenizer, (text for _, text in owned))
            for (number, _), length in zip(owners, tqdm(lengths, "Captions", leave=False, mininterval=1), strict=True):
                if length > tokenizer.model_max_length:
                    reason = f"{length} tokens, of which the first {tokenizer.model_max_length} are seen"
                    report.problems.append(Problem(number, examples.name(number), "cut caption", reason))
        report.problems.sort()
        if folder is not None:
            with (folder / "report.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(problem._asdict(), ensure_ascii=False) + "\n" for problem in report.problems)
        return report


class _Checked(NamedTuple):
    """A good example: the part it belongs to, a hash of its pixels and captions, and what is written of it."""

    part: str
    digest: bytes
    image: bytes
    ending: str
    captions: str | list[str]


@dataclass
class _Check(Dataset[tuple[int, "_Checked | Problem"]]):
    """An example by its number: looked at, by one of several processes."""

    examples: Examples
    held_out: float
    resolution: int | None
    min_size: int
    max_pixels: int

    def __getitem__(self, number: int) -> tuple[int, _Checked | Problem]:
        try:
            return number, self._check(number)
        except _Fault as fault:
            return number, Problem(number, self.examples.name(number), *map(str, fault.args))

    def _check(self, number: int) -> _Checked:
        try:
            value, caption = self.examples[number]
            data = _file(value)
        except (OSError, ValueError) as error:
            raise _Fault("unreadable", error) from error
        captions = _captions(caption)
        try:
            for text in captions:
                check_text("caption", text)
        except ValueError as error:
            raise _Fault("no caption", error) from error
        if not captions:
            raise _Fault("no caption", "there is none, or a blank one")
        size, ending = self._header(data)
        try:
            image = open_image(data)
        except ValueError as error:
            raise _Fault("unreadable", error) from error
        pixels = hashlib.blake2b(image.tobytes(), key=repr(size).encode()).digest()
        digest = hashlib.blake2b(repr(captions).encode(), key=pixels, digest_size=16).digest()
        part = HELD_OUT if int.from_bytes(pixels[:8], "big") < self.held_out * 2**64 else TRAIN
        if self.resolution is not None and min(image.size) > self.resolution:
            data, ending = _scaled(image, self.resolution), ".png"
        return _Checked(part, digest, data, ending, captions if isinstance(caption, list) else captions[0])

    def _header(self, data: bytes) -> tuple[tuple[int, int], str]:
        """The size that a file claims, and the ending of its kind; nothing is decoded."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(data)) as image:
                    size, kind = image.size, image.format
        except Image.DecompressionBombError as error:
            raise _Fault("too large", error) from error
        except UnidentifiedImageError as error:
            raise _Fault("unreadable", "it is of no kind of image that Pillow reads") from error
        except Exception as error:  # decoders raise what they like
            raise _Fault("unreadable", error) from error
        if size[0] * size[1] > self.max_pixels:
            raise _Fault("too large", f"{size[0]} x {size[1]} pixels, `max_pixels` is {self.max_pixels}")
        if min(size) < self.min_size:
            raise _Fault("too small", f"{size[0]} x {size[1]} pixels, `min_size` is {self.min_size}")
        return size, _ending(str(kind))


class _Fault(Exception):
    """The kind of a problem, and the particulars."""


def _ending(kind: str) -> str:
    """The usual ending of files of one of Pillow's kinds."""
    known = [ending for ending, name in Image.registered_extensions().items() if name == kind]
    if not known:
        raise _Fault("unreadable", f"a file of Pillow's kind {kind} has no usual ending")
    own = f".{kind.lower()}"
    return _USUAL_ENDINGS.get(kind) or (own if own in known else known[0])


def _file(value: Any) -> bytes:
    """The bytes of a row's image, as a file."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        return Path(value).read_bytes()
    if not isinstance(value, bytes):
        raise ValueError(f"it must be a path or the bytes of a file, got {type(value).__name__}.")
    return value


def _scaled(image: Image.Image, shorter: int) -> bytes:
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(side * scale)) for side in image.size)
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0).save(file, "PNG")
    return file.getvalue()


def _captions(caption: Any) -> list[str]:
    return [text.strip() for text in captions_of(caption) if text.strip()]


def _in_parallel(check: _Check, num_workers: int | None) -> Iterator[tuple[int, _Checked | Problem]]:
    """Every example, in a random order, so that each shard and each part of a report is like any other."""
    order: list[int] = random_stream(0).permutation(len(check.examples)).tolist()
    loader = DataLoader(
        check,
        batch_size=min(32, max(1, len(order) // 64)),
        sampler=order,
        num_workers=(os.cpu_count() or 1) if num_workers is None else num_workers,
        collate_fn=list,
    )
    with tqdm(total=len(order), desc="Images", mininterval=1) as bar:
        for batch in loader:
            yield from batch
            bar.update(len(batch))
