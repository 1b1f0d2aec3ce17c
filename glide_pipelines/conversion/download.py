"""OpenAI's released checkpoints by name, kept in the Hugging Face cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import cached_assets_path
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, hf_raise_for_status, http_backoff

from .errors import ConversionError
from .reading import file_sha256, open_checkpoint


RELEASE_URL = "https://openaipublic.blob.core.windows.net/diffusion/dec-2021/"
RELEASED_FILES = {
    "base": "base.pt",
    "upsample": "upsample.pt",
    "base-inpaint": "base_inpaint.pt",
    "upsample-inpaint": "upsample_inpaint.pt",
    "clip-text-enc": "clip_text_enc.pt",
    "clip-image-enc": "clip_image_enc.pt",
}
# By the same names, where the SHA-256 of the file is known. OpenAI has published none.
RELEASED_SHA256: dict[str, str] = {}
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
        return download_checkpoint(RELEASE_URL + RELEASED_FILES[name], RELEASED_SHA256.get(name))
    if name.startswith(("https://", "http://")):
        raise ConversionError("links are not followed: download the file, and give its path")
    return Path(name_or_path).expanduser()


def download_checkpoint(url: str, sha256: str | None = None) -> Path:
    """Download a checkpoint to the Hugging Face cache, with a progress bar, unless it is there already.

    The file has its name only once all of it has arrived and it opens as a checkpoint of GLIDE. An interrupted
    download is resumed only while the server still has the same file, by its ETag or its date of change.

    Args:
        url (`str`): Its address. The last part is the name of the file in the cache.
        sha256 (`str`, *optional*): What the SHA-256 of the file must be, in hexadecimal.

    Returns:
        `Path`: the file, under `$HF_HOME/assets/glide_pipelines`.

    Raises:
        ConversionError: if the server cannot be reached, changes the file during the download, sends less than it
            announced, or sends something other than a checkpoint.
    """
    file = cached_assets_path("glide_pipelines", namespace="openai", subfolder="dec-2021") / url.rsplit("/", 1)[1]
    # Of two processes that want the same file one downloads it and the other waits.
    with WeakFileLock(file.with_name(file.name + ".lock")):
        if file.exists():
            return file
        try:
            incomplete = _fetch(url, file)
        except Exception as error:  # whatever the network, the server or the disk did
            arrived = sum(path.stat().st_size for path in _incomplete_files(file))
            raise ConversionError(
                f"downloading {url} failed ({' '.join(str(error).split())}); run it again to resume from "
                f"{arrived / 1e6:.0f} MB, or give the path of a file"
            ) from error
        try:
            if sha256 is not None and (found := file_sha256(incomplete)) != sha256.lower():
                raise ConversionError(f"its SHA-256 is {found}, not {sha256}")
            open_checkpoint(incomplete)
        except ConversionError as error:
            incomplete.unlink()
            raise ConversionError(f"{url} sent something other than a checkpoint ({error}); it was removed") from error
        return incomplete.rename(file)


def _fetch(url: str, file: Path) -> Path:
    """Download a file beside its place, going on from what is there of the same version of it."""
    before = _ask(url)
    size, version = _size(before), _version(before)
    # What arrived of one version of the file has a name of its own, so it cannot be mixed with another version.
    digest = hashlib.sha256(f"{version} {size}".encode()).hexdigest()[:16]
    incomplete = file.with_name(f"{file.name}.{digest}.incomplete")
    for path in _incomplete_files(file):
        if path != incomplete or version is None:
            path.unlink()
    # With If-Range the server sends the whole file where it no longer has this version.
    headers = _HEADERS | ({} if version is None else {"If-Range": version})
    with open(incomplete, "ab") as stream:
        http_get(
            url,
            stream,
            resume_size=stream.tell(),
            expected_size=size,
            headers=headers,
            displayed_filename=file.name,
        )
        stream.flush()
        os.fsync(stream.fileno())
    if incomplete.stat().st_size != size:
        raise OSError(f"{incomplete.stat().st_size} bytes arrived, {size} were announced")
    after = _ask(url)
    if (_version(after), _size(after)) != (version, size):
        incomplete.unlink()
        raise OSError("the server changed the file during the download")
    return incomplete


def _incomplete_files(file: Path) -> list[Path]:
    """What interrupted downloads have left of a file."""
    return list(file.parent.glob(f"{file.name}.*incomplete"))


def _ask(url: str) -> Mapping[str, str]:
    """The headers with which the server describes a file."""
    answer = http_backoff("HEAD", url, headers=_HEADERS, max_retries=2)
    hf_raise_for_status(answer)
    return answer.headers


def _size(headers: Mapping[str, str]) -> int:
    if not headers.get("Content-Length", "").isdecimal():
        raise OSError("the server does not tell the size of the file")
    return int(headers["Content-Length"])


def _version(headers: Mapping[str, str]) -> str | None:
    """What If-Range may name: an ETag that holds for every byte, else the date of the last change."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
