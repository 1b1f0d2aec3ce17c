"""Captioned images, of a folder or a `datasets` dataset, for training and evaluation."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import posixpath
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from PIL import Image

from .images import load_images


if TYPE_CHECKING:
    import datasets
    import pyarrow


logger = logging.getLogger(__name__)
_SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
_SPLITS["held_out"] = "held_out"  # what `prepare_data` sets aside

# Splits to measure on, in order of preference.
HELD_OUT_SPLITS = ("held_out", "validation", "test")


def load_captioned_rows(
    dataset_name: str | None,
    data_dir: str | None,
    image_column: str,
    caption_column: str,
    split: str | Sequence[str] | None = None,
    all_listed: bool = False,
) -> datasets.Dataset:
    """The rows of a captioned dataset.

    Args:
        dataset_name (`str`, *optional*): A dataset on the Hub.
        data_dir (`str`, *optional*): A folder, in place of `dataset_name`: of images with a `metadata.jsonl` or `.csv`
            that names them (`file_name`), or with `name.txt` beside `name.png`; of parquet files; of tar shards in
            webdataset's layout; or what `save_to_disk` wrote. Folders `train`, `test` and `validation` in it are
            splits.
        image_column, caption_column (`str`): Columns that it must have.
        split (`str` or `Sequence[str]`, *optional*): Which part of it, such as `"train"` or `"train[:100]"`; of several
            names the first that is there, or else an only part that is not held out. By default the only one.
        all_listed (`bool`, defaults to `False`): Refuse images of a folder that no metadata names, in place of a
            warning.

    Returns:
        `datasets.Dataset`: one row or more.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if there is no such split, file or column, or no row.
    """
    try:
        from datasets import ReadInstruction, load_dataset
    except ImportError as error:
        raise ImportError(
            'A dataset of images needs the extra `train` or `eval` (in a clone: `pip install ".[train]"`).'
        ) from error

    parts: Any
    if data_dir is None:
        parts = load_dataset(dataset_name)
    else:
        parts = _read_folder(Path(data_dir), image_column, caption_column, all_listed)
        if not parts:
            with suppress(ValueError, FileNotFoundError):  # it finds no image
                parts = load_dataset("imagefolder", data_dir=data_dir)
            if all(caption_column not in rows.column_names for rows in parts.values()):
                held = sorted(entry.name for entry in Path(data_dir).iterdir())
                raise ValueError(
                    f"`caption_column` {caption_column!r} is in no file of {data_dir}: it must hold a metadata.jsonl "
                    "or metadata.csv, or a name.txt beside each name.png, in the folder itself or in its folders train "
                    f"and test; there are {first_few(held) or 'no files'}."
                )
    if not isinstance(split, str):
        split = _choose_split(parts, split)
    name, bracket, _ = (split or "").partition("[")
    if name not in parts:
        raise ValueError(f"`split` must be one of {', '.join(map(str, parts))}, got {split!r}.")
    rows = parts[name]
    if bracket:
        for part in ReadInstruction.from_spec(split).to_absolute({name: len(rows)}):
            rows = rows.select(range(part.from_, part.to))
    check_rows(rows, image_column, caption_column)
    return rows


def _choose_split(names: Iterable[str], wanted: Sequence[str] | None) -> str | None:
    """The first split of those wanted that is there, or the only one, unless it is held out and others are wanted."""
    names = [*names]
    for name in wanted or ():
        if name in names:
            return name
    if len(names) == 1 and (wanted is None or names[0] not in HELD_OUT_SPLITS):
        return names[0]
    if wanted is None:
        return None
    raise ValueError(f"The dataset has no split {' or '.join(wanted)}, but {', '.join(names)}.")


def _read_folder(folder: Path, image_column: str, caption_column: str, all_listed: bool) -> dict[str, datasets.Dataset]:
    """The splits of a folder, whose images are not opened. Empty if it is none of the layouts known here.

    (`datasets` walks an image folder once for each of its 66 patterns.)
    """
    import datasets

    if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():  # by save_to_disk
        saved = datasets.load_from_disk(str(folder))
        return dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    own = _read_part(folder, caption_column, all_listed)
    if own is not None:
        return _split_by_folder(own, folder)
    below = {
        entry.name: part
        for entry in sorted(folder.iterdir())
        if entry.name in _SPLITS
        and entry.is_dir()
        and (part := _read_part(entry, caption_column, all_listed)) is not None
    }
    if below:
        return {_SPLITS[name]: part for name, part in below.items()}
    for ending in (".parquet", ".tar"):
        files: dict[str, list[str]] = {}
        for path in sorted([*folder.glob(f"*{ending}"), *folder.glob(f"*/*{ending}")]):
            word = path.name.removesuffix(ending).replace("_", "-").split("-")[0]
            name = word if word in _SPLITS else path.parent.name if path.parent != folder else "train"
            files.setdefault(_SPLITS.get(name, "train"), []).append(str(path))
        if files and ending == ".tar":
            return {name: _read_tars(paths, image_column, caption_column) for name, paths in files.items()}
        if files:
            parts = datasets.load_dataset("parquet", data_files=files)
            return {name: _find_images(rows, image_column, files[name][0]) for name, rows in parts.items()}
    return {}


def _find_images(rows: datasets.Dataset, image_column: str, file: str) -> datasets.Dataset:
    """With paths of images that lie relative to the parquet file that names them."""
    import datasets

    if rows.features.get(image_column) not in (datasets.Value("string"), datasets.Value("large_string")):
        return rows
    names, folder = rows[image_column][:], os.path.dirname(file)
    if not os.path.isfile(os.path.join(folder, names[0] or "")):
        return rows
    paths = [os.path.join(folder, name) if name else name for name in names]
    return rows.remove_columns(image_column).add_column(image_column, paths)


def _split_by_folder(rows: datasets.Dataset, folder: Path) -> dict[str, datasets.Dataset]:
    """One metadata file may name the images of several splits."""
    if not any((folder / name).is_dir() for name in _SPLITS):
        return {"train": rows}
    start = len(str(folder)) + 1
    numbers: dict[str, list[int]] = {}
    for number, path in enumerate(rows.data.column(0).to_pylist()):
        numbers.setdefault(_SPLITS.get(path["path"][start:].split("/")[0], "train"), []).append(number)
    return {name: rows.select(chosen) for name, chosen in numbers.items()}


def _read_tars(paths: list[str], image_column: str, caption_column: str) -> datasets.Dataset:
    """The images and captions of tar shards, which are copied into the cache of `datasets`."""
    import datasets

    listed = any(isinstance(caption, list) for path in paths for _, caption in _read_tar(path, caption_column, False))
    text = datasets.Value("string")
    columns = {image_column: datasets.Image(), caption_column: datasets.List(text) if listed else text}
    # By size and time the cache tells a shard from one that was written anew.
    files = tuple((path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths)
    rows: datasets.Dataset = datasets.Dataset.from_generator(
        _tar_rows, datasets.Features(columns), gen_kwargs={"files": files, "columns": tuple(columns), "listed": listed}
    )
    return rows


def _tar_rows(
    files: tuple[tuple[str, int, int], ...], columns: tuple[str, str], listed: bool
) -> Iterator[dict[str, Any]]:
    for path, _, _ in files:
        for image, caption in _read_tar(path, columns[1]):
            yield dict(zip(columns, (image, captions_of(caption) if listed else caption), strict=True))


def _read_tar(path: str, caption_column: str, images: bool = True) -> Iterator[tuple[dict[str, Any] | None, Any]]:
    """Each image of a tar shard, as `datasets` stores it, and its caption or captions."""
    name = ""
    try:
        with tarfile.open(path, "r:") as shard:

            def data(member: tarfile.TarInfo) -> bytes:
                return cast(IO[bytes], shard.extractfile(member)).read()

            for image, text in tar_examples(shard):
                name = f"{image.name} of "
                caption = None if text is None else parse_caption(data(text), caption_column if is_json(text) else None)
                yield {"path": image.name, "bytes": data(image)} if images else None, caption
    except (OSError, ValueError, tarfile.TarError) as error:
        raise ValueError(f"{name}{path} cannot be read: {error}") from error


def tar_examples(members: Iterable[tarfile.TarInfo]) -> list[tuple[tarfile.TarInfo, tarfile.TarInfo | None]]:
    """The image of each example of a tar shard in webdataset's layout, and its caption: a `.txt`, or else a `.json`.

    The members of an example have one name, up to its first dot, or, where no image has such a name, up to the last
    (`Dr. No.png`). They may lie apart, as where `tar` packed a folder in the order of the disk. A second member of a
    kind begins another example.
    """
    found = []
    seen = [member for member in members if member.isfile() and not posixpath.basename(member.name).startswith(".")]
    for example in _by_name(seen, _split_at_first_dot):
        whole = any(map(_is_image, example))
        for parts in [example] if whole else _by_name(example.values(), posixpath.splitext):
            images = [member for ending, member in parts.items() if _is_image(ending)]
            if images:
                found.append((images[0], parts.get(".txt", parts.get(".json"))))
    return found


def _by_name(
    members: Iterable[tarfile.TarInfo], split: Callable[[str], tuple[str, str]]
) -> list[dict[str, tarfile.TarInfo]]:
    """The members that share a name, by what comes after it."""
    last: dict[str, dict[str, tarfile.TarInfo]] = {}
    found = []
    for member in members:
        name, ending = split(member.name)
        if name not in last or ending.lower() in last[name]:
            last[name] = {}
            found.append(last[name])
        last[name][ending.lower()] = member
    return found


def _split_at_first_dot(path: str) -> tuple[str, str]:
    """`folder/0001.seg.png` to `folder/0001` and `.seg.png`."""
    folder, file = posixpath.split(path)
    name, dot, ending = file.partition(".")
    return posixpath.join(folder, name), dot + ending


def _is_image(ending: str) -> bool:
    return ending in Image.registered_extensions()


def is_json(member: tarfile.TarInfo) -> bool:
    """Whether a caption of [`tar_examples`] is a `.json`."""
    return member.name.lower().endswith(".json")


def parse_caption(data: bytes, json_key: str | None) -> Any:
    """The caption in the bytes of a text file, or, with a key, the caption or captions that a JSON file has for it.

    Raises:
        ValueError: if they cannot be read.
    """
    if json_key is None:
        return data.decode("utf-8-sig").strip()
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError(f"it must be an object of JSON, got {type(values).__name__}.")
    return values.get(json_key)


def _read_part(folder: Path, caption_column: str, all_listed: bool) -> datasets.Dataset | None:
    """The images that a metadata file or text files beside them caption, by their paths; None without captions."""
    import datasets
    import pyarrow as pa

    table = _read_metadata(folder, caption_column)
    if table is None:
        table = _read_sidecars(folder, caption_column)
    if table is None:
        return None
    # As `datasets` names them: `file_name` is of `image`, `mask_file_name` of `mask`.
    files = {name: name.removesuffix("file_name").removesuffix("_") or "image" for name in _file_columns(table)}
    if len({*table.column_names, *files.values()}) < table.num_columns + len(files):
        return None
    found = _find_files(folder, {name: table[name].to_pylist() for name in files}, all_listed)
    for name, image in files.items():
        paths = [os.path.join(folder, file) for file in found[name]]  # of an absolute name it is that name
        table = table.drop_columns([name]).add_column(0, image, pa.array(paths, pa.string()))
    # Without a fingerprint `datasets` would hash the whole table.
    fingerprint = hashlib.sha256(os.urandom(16)).hexdigest()[:16]
    rows = datasets.Dataset(datasets.table.InMemoryTable(pa.table(table)), fingerprint=fingerprint)
    for image in files.values():
        rows = rows.cast_column(image, datasets.Image())
    return rows


def _file_columns(table: pyarrow.Table) -> list[str]:
    return [name for name in table.column_names if name == "file_name" or name.endswith("_file_name")]


def _read_metadata(folder: Path, caption_column: str) -> pyarrow.Table | None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json

    jsonl = folder / "metadata.jsonl"
    path = jsonl if jsonl.is_file() else folder / "metadata.csv"
    if not path.is_file():
        return None
    try:
        if path == jsonl:
            block = pyarrow.json.ReadOptions(block_size=16 << 20)
            table = pyarrow.json.read_json(path, read_options=block)
        else:
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                header = file.readline()
            # Spreadsheets separate by a semicolon where a comma is the decimal mark.
            delimiter = max(",;\t", key=header.count)
            names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
            strings = pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in ("file_name", caption_column)}
            )
            layout = pyarrow.csv.ParseOptions(newlines_in_values=True, delimiter=delimiter)
            lines = pyarrow.csv.ReadOptions(column_names=names, skip_rows=1)
            table = pyarrow.csv.read_csv(path, lines, convert_options=strings, parse_options=layout)
    except pa.ArrowInvalid as error:
        form = "lines of JSON, an object for each image" if path == jsonl else "CSV"
        raise ValueError(f"{path} cannot be read as {form}, in UTF-8: {error}") from error
    while table.num_rows and not any(table.slice(table.num_rows - 1).to_pylist()[0].values()):
        table = table.slice(0, table.num_rows - 1)  # a spreadsheet writes empty rows below its last one
    if table.num_rows == 0:
        raise ValueError(f"{path} holds no row.")
    for name in _file_columns(table):
        files = table[name].to_pylist()
        if not pa.types.is_string(table[name].type) or not all(files):
            row = next((row for row, file in enumerate(files) if not file), 0)
            raise ValueError(f"{path} must name a file in each row, as `{name}`; row {row} names none.")
    if not any(name.endswith(("file_name", "file_names")) for name in table.column_names):
        raise ValueError(f"{path} must have a column `file_name`, got {', '.join(table.column_names)}.")
    return table if _file_columns(table) else None


def _read_sidecars(folder: Path, caption_column: str) -> pyarrow.Table | None:
    import pyarrow as pa

    endings = Image.registered_extensions()
    entries = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    texts = {os.path.splitext(name)[0]: name for name in entries if name.lower().endswith(".txt")}
    if not texts:
        return None
    images = [name for name in entries if os.path.splitext(name)[1].lower() in endings]
    named = [name for name in images if os.path.splitext(name)[0] in texts]
    if not named:
        return None
    if len(named) < len(images):
        missing = sorted(set(images) - set(named))
        raise ValueError(
            f"{folder} must hold a .txt beside every image, got none for {len(missing)}: {first_few(missing)}."
        )
    if alone := sorted(texts.keys() - {os.path.splitext(name)[0] for name in named}):
        logger.warning(
            f"{len(alone)} of the {len(texts)} .txt files in {folder} have no image beside them that can be read: "
            f"{first_few([texts[name] for name in alone])}."
        )
    captions = []
    for name in named:
        try:
            text = folder / texts[os.path.splitext(name)[0]]
            captions.append(text.read_text(encoding="utf-8-sig").strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"The caption of {folder / name} is not UTF-8: {error}") from error
    return pa.table({"file_name": named, caption_column: captions})


def _find_files(folder: Path, columns: dict[str, list[str]], all_listed: bool) -> dict[str, list[str]]:
    """The names of files as the folder has them. Refuse those that are not there; warn of images that no row names, or
    refuse them too."""
    there: set[str] = set()
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.relpath(place, folder) + os.sep if place != str(folder) else ""
        there.update(prefix + name for name in files if not name.startswith("."))
    found = {column: list(names) for column, names in columns.items()}
    for column, names in found.items():
        absent = [row for row, name in enumerate(names) if name not in there and not (folder / name).is_file()]
        spellings = {_spelling(name): name for name in there} if absent else {}
        missing = [row for row in absent if _spelling(names[row]) not in spellings]
        if missing:
            raise ValueError(
                f"The metadata of {folder} names {len(missing)} files that are not there, as `{column}`: "
                f"{first_few([names[row] for row in missing])}; the first is in row {missing[0]}."
            )
        for row in absent:
            names[row] = spellings[_spelling(names[row])]
    listed = set().union(*found.values())
    listed |= {os.path.relpath(folder / name, folder) for name in listed - there}
    endings = Image.registered_extensions()
    images = {name for name in there if os.path.splitext(name)[1].lower() in endings}
    if more := sorted(images - listed):
        problem = (
            f"{len(more)} of the {len(images)} images in {folder} are in no row of its metadata: {first_few(more)}."
        )
        if all_listed:
            raise ValueError(problem)
        logger.warning(problem)
    return found


def _spelling(name: str) -> str:
    """One of the spellings of a file's name: Windows has other slashes, and a Mac takes accents for letters."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def undecoded(rows: datasets.Dataset, image_column: str) -> datasets.Dataset:
    """The same rows, with images as they are stored: see [`open_image`]."""
    import datasets

    if isinstance(rows.features[image_column], datasets.Image):
        return rows.cast_column(image_column, datasets.Image(decode=False))
    return rows


def image_names(rows: datasets.Dataset, image_column: str) -> list[str]:
    """The name of each row's file, without its folder; empty where there is none. No image is read."""
    flat = undecoded(rows.select_columns([image_column]), image_column).flatten()
    column = next((name for name in (f"{image_column}.path", image_column) if name in flat.column_names), None)
    if column is None or flat.features[column].dtype not in ("string", "large_string"):
        return [""] * len(rows)
    return [os.path.basename(path or "") for path in flat[column][:]]


def open_image(value: object) -> Image.Image:
    """The image of a row, as 8-bit RGB.

    Args:
        value: An image, a file's path, its bytes, or a `dict` of `bytes` and `path`.

    Raises:
        ValueError: if it cannot be read.
    """
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if not isinstance(value, bytes | str | Image.Image):
        raise ValueError(f"it must be an image, a path or the bytes of a file, got {type(value).__name__}.")
    try:
        if not isinstance(value, Image.Image):
            value = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)
        [image] = load_images("image", value)
    except Exception as error:  # decoders raise what they like: struct.error, zlib.error, IndexError, ...
        reason = str(error).removeprefix("`image` cannot be read: ").partition(" <_io.")[0]
        raise ValueError(reason) from error
    return image


def dataset_fingerprint(names: Sequence[str], captions: Sequence[object], columns: Sequence[str]) -> dict[str, Any]:
    """What tells a dataset from another: the number of rows, the columns, and a hash of file names and captions."""
    digest = hashlib.sha256()
    for name, value in zip(names, captions, strict=True):
        digest.update(repr((name, value)).encode("utf-8", "surrogatepass"))
    return {"rows": len(names), "columns": sorted(columns), "names and captions": digest.hexdigest()[:16]}


def check_rows(rows: datasets.Dataset, image_column: str, caption_column: str) -> None:
    """Refuse rows that lack a column, and a dataset without rows.

    Raises:
        ValueError: naming what is missing.
    """
    for name, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column not in rows.column_names:
            raise ValueError(f"`{name}` must be one of {', '.join(rows.column_names)}, got {column!r}.")
    if len(rows) == 0:
        raise ValueError("The dataset is empty.")


def captions_of(value: object) -> list[str]:
    """The captions in one row's value of the caption column: a string, the strings of a list, or none."""
    values = value if isinstance(value, list) else [value]
    return [caption for caption in values if isinstance(caption, str)]


def check_captions(values: Sequence[object], caption_column: str, names: Sequence[str] | None = None) -> None:
    """Refuse a dataset in which rows have no caption: a null, an empty list, or no text.

    Args:
        values (`Sequence`): The caption column, one value for each row.
        caption_column (`str`): Its name.
        names (`Sequence[str]`, *optional*): Of the rows' images, for the error.

    Raises:
        ValueError: naming the column and the first such rows.
    """
    missing = [index for index, value in enumerate(values) if not captions_of(value)]
    if missing:
        rows = [f"{index} ({names[index]})" if names and names[index] else str(index) for index in missing[:6]]
        raise ValueError(
            f"`caption_column` {caption_column!r} must hold a caption for every image, got none in "
            f"{len(missing)} of {len(values)} rows: {first_few(rows)}."
        )


class DatasetExamples:
    """The rows of a `datasets` dataset.

    Args:
        rows (`datasets.Dataset`): See [`load_captioned_rows`].
        image_column, caption_column (`str`): Columns of the dataset.

    Raises:
        ValueError: if there is no such column, or no row.
    """

    def __init__(self, rows: datasets.Dataset, image_column: str = "image", caption_column: str = "text") -> None:
        check_rows(rows, image_column, caption_column)
        self.rows = undecoded(rows, image_column).select_columns([image_column, caption_column])
        self.captions = rows.select_columns([caption_column])
        self.columns = sorted(rows.column_names)
        self.image_column, self.caption_column = image_column, caption_column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        row = self.rows[number]
        return row[self.image_column], row[self.caption_column]

    def caption(self, number: int) -> Any:
        """The caption or captions of a row."""
        return self.captions[number][self.caption_column]

    def check_captions(self) -> None:
        """Refuse rows without a caption: see [`check_captions`].

        Raises:
            ValueError: naming the first of them.
        """
        names = image_names(self.rows, self.image_column)
        check_captions(self.captions[self.caption_column][:], self.caption_column, names)

    def name(self, number: int) -> str:
        """A row by its number and, if there is one, its file."""
        value = self.rows[number][self.image_column]
        path = value.get("path") if isinstance(value, dict) else value
        return f"row {number}" + (f" ({path})" if isinstance(path, str) else "")

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """The number of rows, the columns, and a hash of file names and captions."""
        names = image_names(self.rows, self.image_column)
        return dataset_fingerprint(names, self.captions[self.caption_column][:], self.columns)


def first_few(items: Sequence[Any]) -> str:
    """The first five items at most, for an error message."""
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
