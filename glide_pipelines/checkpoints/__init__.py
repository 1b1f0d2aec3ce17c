"""The small checkpoints that ship with the package: folders of the shapes world, and a folder for each other world."""

from pathlib import Path


ROOT = Path(__file__).parent


def pretrained_checkpoint(world: str, name: str = "text-to-image") -> Path:
    """The folder of a checkpoint that ships with the package.

    Args:
        world (`str`): What the model knows, such as `"shapes"`.
        name (`str`, defaults to `"text-to-image"`): Which model of that world.

    Returns:
        `Path`: for `from_pretrained`.

    Raises:
        ValueError: if it does not ship; it lists what does.
    """
    worlds = _shipped()
    if world not in worlds:
        listed = "; ".join(f"{world} ({', '.join(sorted(folders))})" for world, folders in sorted(worlds.items()))
        raise ValueError(f"`world` must be one of those whose checkpoints ship, {listed or 'none'}, got {world!r}.")
    if name not in worlds[world]:
        allowed = ", ".join(map(repr, sorted(worlds[world])))
        raise ValueError(f"`name` must be one of {allowed}, got {name!r}.")
    return worlds[world][name]


def shapes_checkpoint(name: str = "text-to-image") -> Path:
    """The folder of a checkpoint of the shapes world that ships with the package.

    Args:
        name (`str`, defaults to `"text-to-image"`): Which one.

    Returns:
        `Path`: for `from_pretrained`.

    Raises:
        ValueError: if there is no checkpoint of that name.
    """
    return pretrained_checkpoint("shapes", name)


def _shipped() -> dict[str, dict[str, Path]]:
    """The folders of the checkpoints, by world and name."""
    worlds: dict[str, dict[str, Path]] = {}
    for folder in (path for path in ROOT.iterdir() if path.is_dir()):
        if _is_checkpoint(folder):
            worlds.setdefault("shapes", {})[folder.name] = folder
        elif inner := {path.name: path for path in folder.iterdir() if _is_checkpoint(path)}:
            worlds[folder.name] = inner
    return worlds


def _is_checkpoint(folder: Path) -> bool:
    # A pipeline's folder has the first, that of a single model the second.
    return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()
