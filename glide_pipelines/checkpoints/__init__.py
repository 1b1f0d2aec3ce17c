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
    # A pipeline's folder has the first, that of a single model the second.
    shipped = sorted({file.parent.name for kind in ("model_index", "config") for file in root.glob(f"*/{kind}.json")})
    if name not in shipped:
        raise ValueError(
            f"`name` must be one of {', '.join(map(repr, shipped)) or 'none (no checkpoint)'}, got {name!r}."
        )
    return root / name
