"""OpenAI's released checkpoints by name, kept in the Hugging Face cache."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import cached_assets_path
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, hf_raise_for_status, http_backoff

from .errors import ConversionError
from .reading import open_checkpoint


RELEASE_URL = "https://openaipublic.blob.core.windows.net/diffusion/dec-2021/"
RELEASED_FILES = {
    "base": "base.pt",
    "upsample": "upsample.pt",
    "base-inpaint": "base_inpaint.pt",
    "upsample-inpaint": "upsample_inpaint.pt",
    "clip-text-enc": "clip_text_enc.pt",
    "clip-image-enc": "clip_image_enc.pt",
}
# The announced size is that of the bytes that are sent, so they must not be compressed.
_HEADERS = {"Accept-Encoding": "identity"}


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The file of a checkpoint: one on disk, or one of OpenAI's by name, downloaded on first use.

    Args:
        name_or_path (`str` or `Path`): A path, or `"base"`, `"upsample"`, `"base-inpaint"`, `"upsample-inpaint"`,
            `"clip-text-enc"` or `"clip-image-enc"` (where a file of that name is in the working directory, that file).

    Returns:
        `Path`: a path that was given is returned as it is, whether there is a file or not.

    Raises:
        ConversionError: for a link, or if the download fails; what has arrived is kept, and the next call resumes it.
    """
    name = str(name_or_path)
    if name in RELEASED_FILES and not Path(name).is_file():
        return download_checkpoint(RELEASE_URL + RELEASED_FILES[name])
    if name.startswith(("https://", "http://")):
        raise ConversionError("links are not followed: download the file, and give its path")
    return Path(name_or_path).expanduser()


def download_checkpoint(url: str) -> Path:
    """Download a checkpoint to the Hugging Face cache, with a progress bar, unless it is there already.

    The file has its name only once all of it has arrived and it opens as a checkpoint of GLIDE, whose parts have
    checksums (but in the format of torch before 1.6, which OpenAI's files are not). What an interrupted download has
    left is gone on with.

    Args:
        url (`str`): Its address. The last part is the name of the file in the cache.

    Returns:
        `Path`: the file, under `$HF_HOME/assets/glide_pipelines`.

    Raises:
        ConversionError: if the server cannot be reached, sends less than it announced, or sends something other than a
            checkpoint.
    """
    file = cached_assets_path("glide_pipelines", namespace="openai", subfolder="dec-2021") / url.rsplit("/", 1)[1]
    incomplete = file.with_name(file.name + ".incomplete")
    # Of two processes that want the same file one downloads it and the other waits.
    with WeakFileLock(file.with_name(file.name + ".lock")):
        if file.exists():
            return file
        try:
            _fetch(url, incomplete, file.name)
        except Exception as error:  # whatever the network, the server or the disk did
            arrived = incomplete.stat().st_size if incomplete.exists() else 0
            raise ConversionError(
                f"downloading {url} failed ({' '.join(str(error).split())}); run it again to resume from "
                f"{arrived / 1e6:.0f} MB, or give the path of a file"
            ) from error
        try:
            open_checkpoint(incomplete)
        except ConversionError as error:
            incomplete.unlink()
            raise ConversionError(f"{url} sent something other than a checkpoint ({error}); it was removed") from error
        return incomplete.rename(file)


def _fetch(url: str, incomplete: Path, title: str) -> None:
    """Download what a file lacks."""
    size = _size(url)
    with open(incomplete, "ab") as stream:
        if stream.tell() > size:  # no rest of this file
            stream.seek(0)
            stream.truncate()
        # It asks for nothing where all of it is there, and tells when less arrives than was announced.
        http_get(
            url,
            stream,
            resume_size=stream.tell(),
            expected_size=size,
            headers=_HEADERS,
            displayed_filename=title,
        )
        stream.flush()
        os.fsync(stream.fileno())


def _size(url: str) -> int:
    answer = http_backoff("HEAD", url, headers=_HEADERS, max_retries=2)
    hf_raise_for_status(answer)
    if not answer.headers.get("Content-Length", "").isdecimal():
        raise OSError("the server does not tell the size of the file")
    return int(answer.headers["Content-Length"])
