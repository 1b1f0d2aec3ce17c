"""The two packages that the set is made from: a folder, an archive, or fetched with npm."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from .captions import Emoji, plain_codepoint


PICTURES = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES = "emoji-datasource@16.0.0"


@dataclass(frozen=True)
class Package:
    """The files of an npm package.

    Args:
        source (`Path`): The folder or the archive.
        files (`dict[str, Path | bytes]`): Where each lies, or what it holds, by its path inside the package, such as
            `"assets/1f600.webp"`.
    """

    source: Path
    files: dict[str, Path | bytes]

    def read(self, name: str) -> bytes:
        """The content of a file."""
        file = self.files[name]
        return file if isinstance(file, bytes) else file.read_bytes()


def open_package(argument: str, source: str | Path) -> Package:
    """Opens a package.

    Args:
        argument (`str`): What the package is called in error messages.
        source (`str` or `Path`): A `.tgz` of `npm pack`, or the folder of an unpacked or installed package.

    Returns:
        [`Package`]: its files.

    Raises:
        ValueError: if it is neither, or no archive that can be read.
    """
    path = Path(source)
    if path.is_dir():
        # `npm pack` puts everything into "package"; `npm install` does not.
        root = path / "package" if (path / "package").is_dir() else path
        return Package(path, {file.relative_to(root).as_posix(): file for file in root.rglob("*") if file.is_file()})
    if not path.is_file():
        raise ValueError(f"`{argument}` must be a .tgz file or a folder, got {str(source)!r}.")
    try:
        return _read_archive(path)
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        raise ValueError(f"`{argument}` {path} is no .tgz archive: {error}") from error


def fetch_package(argument: str, package: str) -> Package:
    """Fetches a package with npm.

    Args:
        argument (`str`): What to give instead, named in error messages.
        package (`str`): Name and version, such as `"emoji-datasource@16.0.0"`.

    Returns:
        [`Package`]: its files.

    Raises:
        ValueError: if npm is not installed or does not get it.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(f"`{argument}` must be given where npm is not installed: the archive of {package}.")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--pack-destination", folder, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            lines = done.stderr.strip().splitlines() or ["no archive came"]
            raise ValueError(f"`{argument}`: npm could not fetch {package}: {lines[-1]}")
        return _read_archive(archives[0])


def _read_archive(source: Path) -> Package:
    files: dict[str, Path | bytes] = {}
    with tarfile.open(source, "r:gz") as archive:  # Read in one pass, nothing is unpacked.
        for member in archive:
            path = PurePosixPath(member.name)
            if member.isfile() and path.suffix in (".json", ".webp", ".png", "") and "sheets" not in path.parts:
                content = archive.extractfile(member)
                assert content is not None
                files[str(PurePosixPath(*path.parts[1:]))] = content.read()
    return Package(source, files)


def read_emoji(package: Package) -> list[Emoji]:
    """The entries of the emoji data, skin tones included.

    Args:
        package ([`Package`]): emoji-datasource.

    Returns:
        `list[Emoji]`: In the order of the data; each entry before its skin tones. Those of two persons are left out.

    Raises:
        ValueError: if the package holds no such data.
    """
    if "emoji.json" not in package.files:
        raise ValueError(f"`names` {package.source} is not emoji-datasource: it holds no emoji.json.")
    found = []
    try:
        for entry in json.loads(package.read("emoji.json")):
            base = Emoji(
                plain_codepoint(entry["unified"]),
                entry["name"].lower(),
                tuple(entry["short_names"]),
                entry["category"],
                entry["subcategory"],
            )
            found.append(base)
            for tone, variation in entry.get("skin_variations", {}).items():
                if "-" not in tone:
                    codepoint = plain_codepoint(variation["unified"])
                    found.append(replace(base, codepoint=codepoint, skin_tone=tone.lower()))
    except KeyError as error:
        raise ValueError(f"`names` {package.source}: an entry of emoji.json lacks {error}.") from error
    except (TypeError, AttributeError, ValueError) as error:  # no JSON, or JSON of another kind
        raise ValueError(f"`names` {package.source}: emoji.json is damaged: {error}") from error
    return found


def picture_names(package: Package) -> dict[str, str]:
    """Where the picture of each emoji is: paths by code point.

    Raises:
        ValueError: if the package holds no pictures.
    """
    paths = [PurePosixPath(name) for name in sorted(package.files)]
    found = {plain_codepoint(path.stem): str(path) for path in paths if path.suffix in (".webp", ".png")}
    if not found:
        raise ValueError(f"`pictures` {package.source} holds no .webp or .png files.")
    return found


def read_picture(package: Package, name: str) -> Image.Image:
    """A picture with its transparency, in the middle of a square.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        picture = Image.open(io.BytesIO(package.read(name))).convert("RGBA")
    except OSError as error:
        raise ValueError(f"`pictures` {package.source}: {name} is damaged: {error}") from error
    # A few are a little higher than wide, such as the ringed planet.
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
