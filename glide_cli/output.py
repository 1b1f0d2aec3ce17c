"""What the commands write: images, grids of images, and captions below them."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm.auto import tqdm

from glide_pipelines.files import atomic_file

from .errors import UserError
from .options import STDOUT, image_format, is_special


FONT = ImageFont.load_default(12)
LINE_HEIGHT = 15  # pixels
FRAME, LAST_FRAME = 50, 2000  # milliseconds


def make_grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Images of one size side by side on white with gaps between them; one image alone is returned as it is.

    Args:
        images (`Sequence[PIL.Image.Image]`): One or more; the last row may be shorter.
        columns (`int`): Images in a row.
    """
    if len(images) == 1:
        return images[0]
    gap = max(images[0].width // 32, 1)
    rows = math.ceil(len(images) / columns)
    cells = [ImageOps.expand(image, (0, 0, gap, gap), "white") for image in images]
    cells += [Image.new("RGB", cells[0].size, "white")] * (rows * columns - len(cells))
    grid = make_image_grid(cells, rows, columns)
    return grid.crop((0, 0, grid.width - gap, grid.height - gap))


def add_captions(images: Sequence[Image.Image], captions: Sequence[str]) -> list[Image.Image]:
    """Each image of one size with its caption below it; the results have one size too."""
    width, height = images[0].size
    texts = [wrap(caption, width - 4) for caption in captions]
    strip = LINE_HEIGHT * max(map(len, texts)) + 6
    captioned = []
    for image, lines in zip(images, texts, strict=True):
        sheet = Image.new("RGB", (width, height + strip), "white")
        sheet.paste(image)
        draw = ImageDraw.Draw(sheet)
        for index, line in enumerate(lines):
            draw.text((width / 2, height + 2 + index * LINE_HEIGHT), line, "black", FONT, anchor="ma")
        draw.rectangle((0, 0, width - 1, height - 1), outline="lightgray")
        captioned.append(sheet)
    return captioned


def wrap(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        line = f"{lines[-1]} {word}".strip()
        if lines[-1] and FONT.getlength(line) > width:
            lines.append(word)
        else:
            lines[-1] = line
    return lines


def colour_space(image: Image.Image | None) -> dict[str, bytes]:
    """What a file needs so that colours taken over from an image look as they do in it.

    Args:
        image (`PIL.Image.Image`, *optional*): As it was opened. A phone's, say, is in Display P3.

    Returns:
        `dict[str, bytes]`: As `PIL.Image.Image.save` and `info` take it; empty where the colours are those of sRGB, as
        without a profile, or of another kind than RGB, which they are converted to.
    """
    profile = None if image is None else image.info.get("icc_profile")
    return {"icc_profile": profile} if profile and profile[16:20] == b"RGB " else {}


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write an image. The file is whole, or as it was before; a link stays one, and a pipe or a device is written to.

    Args:
        image (`PIL.Image.Image`): The image.
        path (`Path`): Where; `-` is stdout.
        options: As `PIL.Image.Image.save` takes them for the format of the file.

    Raises:
        UserError: if it cannot be written.
    """
    options = {"quality": 95, **options}
    try:
        if path == STDOUT or is_special(path):
            data = io.BytesIO()
            image.save(data, image_format(path), **options)
            if path == STDOUT:
                sys.stdout.buffer.write(data.getvalue())
            else:
                path.write_bytes(data.getvalue())
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path.resolve() if path.is_symlink() else path) as temporary:
                image.save(temporary, **options)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Write images one after the other, all enlarged to the size of the last one, which stays longer."""
    *others, last = [frame.resize(frames[-1].size, Image.Resampling.NEAREST) for frame in frames]
    durations = [*[FRAME] * len(others), LAST_FRAME]
    first, *rest = [*others, last]
    save_image(first, path, save_all=True, append_images=rest, duration=durations, loop=0)


@contextmanager
def training_bar(steps: int) -> Iterator[Callable[..., None]]:
    """A progress bar, as a function of the number of a step, its loss, and the shares of right answers by name."""
    with tqdm(total=steps, mininterval=5) as bar:

        def report(step: int, loss: float, accuracy: Mapping[str, float] | None = None) -> None:
            bar.update()
            if step % 50 == 0:
                wrong = {name: f"{1 - share:.3f}" for name, share in (accuracy or {}).items()}
                bar.set_postfix(loss=f"{loss:.3f}", **wrong, refresh=False)

        yield report
