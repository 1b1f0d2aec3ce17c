"""The small checkpoints that ship with the package."""

from pathlib import Path


def shapes_checkpoint(name: str = "text-to-image") -> Path:
    """The folder of a checkpoint of the shapes world that ships with the package.

    Args:
        name (`str`, defaults to `"text-to-image"`): Which one.

    Returns:
        `Path`: for `from_pretrained`.

    Raises:
        ValueError: if there is no checkpoint of that name.
    """
    root = Path(__file__).parent
    shipped = sorted(folder.name for folder in root.iterdir() if (folder / "model_index.json").is_file())
    if name not in shipped:
        raise ValueError(
            f"`name` must be one of {', '.join(map(repr, shipped)) or 'none (no checkpoint)'}, got {name!r}."
        )
    return root / name
