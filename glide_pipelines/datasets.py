"""Captioned images of a `datasets` dataset, for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import datasets


def load_captioned_rows(
    dataset_name: str | None, data_dir: str | None, image_column: str, caption_column: str, split: str | None = None
) -> datasets.Dataset:
    """The rows of a captioned `datasets` dataset.

    Args:
        dataset_name (`str`, *optional*): A dataset on the Hub.
        data_dir (`str`, *optional*): A folder of images with a `metadata.jsonl`, in place of `dataset_name`.
        image_column, caption_column (`str`): Columns that it must have.
        split (`str`, *optional*): Which part of it; by default the only one there is.

    Returns:
        `datasets.Dataset`: one row or more.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if there is no such split or column, or no row.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            "A dataset of images needs the extra `train` (in a clone: `pip install -e '.[train]'`)."
        ) from error

    rows = load_dataset("imagefolder" if dataset_name is None else dataset_name, data_dir=data_dir, split=split)
    if split is None:  # all of them, by name
        if len(rows) > 1:
            raise ValueError(f"`split` must be one of {', '.join(rows)}, got None.")
        rows = next(iter(rows.values()))
    check_rows(rows, image_column, caption_column)
    return rows


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


def check_captions(values: Sequence[object], caption_column: str) -> None:
    """Refuse a dataset in which rows have no caption: a null, an empty list, or no text.

    Args:
        values (`Sequence`): The caption column, one value for each row.
        caption_column (`str`): Its name.

    Raises:
        ValueError: naming the column and the first such rows.
    """
    missing = [index for index, value in enumerate(values) if not captions_of(value)]
    if missing:
        raise ValueError(
            f"`caption_column` {caption_column!r} must hold a caption for every image, got none in "
            f"{len(missing)} of {len(values)} rows: {first_few(missing)}."
        )


def first_few(items: Sequence[Any]) -> str:
    """The first five items at most, for an error message."""
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")
