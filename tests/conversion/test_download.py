"""Downloads: resumed, checked, and never half a file taken for a whole one."""

import functools
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import cached_assets_path
from huggingface_hub.utils import enable_progress_bars
from small import OPTIONS, arguments, script, small_state_dict, write_checkpoint, write_tokenizer

from glide_pipelines import GLIDEPipeline
from glide_pipelines.conversion import RELEASED_FILES, ConversionError, download_checkpoint
from glide_pipelines.conversion.download import find_checkpoint


class Server(ThreadingHTTPServer):
    """Serves `content` under every address, and misbehaves on request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.status = 200
        self.announce = True  # the length of the file
        self.ranges = True  # whether a Range is answered
        self.cut_after = None  # bytes of a body after which the connection breaks, once per entry
        self.after = None  # called after each answer
        self.asked = []  # (method, path, start)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.reply(body=False)

    def do_GET(self):
        self.reply(body=True)

    def reply(self, body):
        server, content = self.server, self.server.content
        start = 0
        if server.ranges and "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        server.asked.append((self.command, self.path, start))
        if start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(server.status)
        if server.announce:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if body:
            self.send(content[start:])
        if server.after is not None:
            server.after(self.command)

    def send(self, part):
        server = self.server
        if server.cut_after:
            part = part[: server.cut_after.pop(0)]
            self.close_connection = True
        self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    write_checkpoint(tmp_path)
    server.content = (tmp_path / "base.pt").read_bytes()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # bytes written at a time
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that downloads go to."""
    path = functools.partial(cached_assets_path, assets_dir=tmp_path / "cache")
    monkeypatch.setattr("glide_pipelines.conversion.download.cached_assets_path", path)
    return path("glide_pipelines", "openai", "dec-2021")


def held(cache):
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_a_download(server, cache, capfd, monkeypatch):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # show the progress bar though this is no terminal
    # A command line that another test called in this process may have silenced both.
    enable_progress_bars()
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "level", logging.WARNING)
    file = download_checkpoint(server.url + "base.pt")
    assert file == cache / "base.pt"
    assert file.read_bytes() == server.content
    assert held(cache) == ["base.pt"]
    assert "base.pt: 100%" in capfd.readouterr().err


def test_what_is_there_is_not_fetched_again(server, cache):
    download_checkpoint(server.url + "base.pt")
    server.asked.clear()
    assert download_checkpoint(server.url + "base.pt") == cache / "base.pt"
    assert not server.asked


def test_a_connection_that_breaks_is_taken_up_again(server, cache):
    server.cut_after = [1000, 5000]
    file = download_checkpoint(server.url + "base.pt")
    assert file.read_bytes() == server.content
    assert [start for method, _, start in server.asked if method == "GET"] == [0, 1000, 6000]


def test_the_next_call_goes_on_where_the_last_one_failed(server, cache):
    server.cut_after = [1000] + [0] * 20
    with pytest.raises(ConversionError, match=r"downloading http.*base.pt failed \(.*resume from 0 MB"):
        download_checkpoint(server.url + "base.pt")
    assert held(cache) == ["base.pt.incomplete"]
    assert (cache / "base.pt.incomplete").read_bytes() == server.content[:1000]
    server.cut_after = None
    server.asked.clear()
    assert download_checkpoint(server.url + "base.pt").read_bytes() == server.content
    assert ("GET", "/base.pt", 1000) in server.asked
    assert held(cache) == ["base.pt"]


@pytest.fixture
def interrupted(server, cache):
    """What a download left that broke off after 1000 bytes."""
    server.cut_after = [1000] + [0] * 20
    with pytest.raises(ConversionError):
        download_checkpoint(server.url + "base.pt")
    server.cut_after = None
    server.asked.clear()
    return cache / "base.pt.incomplete"


def test_a_download_stopped_at_its_last_byte(server, cache, interrupted):
    interrupted.write_bytes(server.content)
    assert download_checkpoint(server.url + "base.pt").read_bytes() == server.content
    assert {method for method, _, _ in server.asked} == {"HEAD"}


def test_a_server_that_cannot_resume_sends_everything_again(server, cache, interrupted):
    server.ranges = False
    assert download_checkpoint(server.url + "base.pt").read_bytes() == server.content


def test_a_rest_that_is_longer_than_the_file_is_thrown_away(server, cache, interrupted):
    interrupted.write_bytes(b"x" * (len(server.content) + 1))
    assert download_checkpoint(server.url + "base.pt").read_bytes() == server.content
    assert held(cache) == ["base.pt"]


def test_a_file_that_changes_while_it_is_resumed(server, cache, tmp_path):
    """What arrives is a mixture, which the checksums in the file find."""
    write_checkpoint(tmp_path, seed=1)
    content = (tmp_path / "base.pt").read_bytes()
    assert len(content) == len(server.content) and content != server.content
    server.cut_after = [len(content) // 2]

    def change(method):
        if method == "GET":
            server.content = content

    server.after = change
    with pytest.raises(ConversionError, match=r"sent something other than a checkpoint \(the file is damaged"):
        download_checkpoint(server.url + "base.pt")
    assert held(cache) == []
    assert download_checkpoint(server.url + "base.pt").read_bytes() == content


def test_a_server_that_sends_less_than_it_announced(server, cache):
    def shorten(method):
        server.content = server.content[:-1]

    server.after = shorten
    with pytest.raises(ConversionError, match="file should be of size"):
        download_checkpoint(server.url + "base.pt")


def test_a_server_that_does_not_tell_the_length(server, cache):
    server.announce = False
    with pytest.raises(ConversionError, match="the server does not tell the size of the file"):
        download_checkpoint(server.url + "base.pt")


@pytest.mark.parametrize("content", [b"<html>sorry</html>", b"PK\x03\x04 but no more"])
def test_something_else_is_not_kept(server, cache, content):
    server.content = content
    with pytest.raises(ConversionError, match=r"base.pt sent something other than a checkpoint \(.*\); it was removed"):
        download_checkpoint(server.url + "base.pt")
    assert held(cache) == []


def test_a_rest_that_was_damaged_is_not_kept(server, cache, interrupted):
    interrupted.write_bytes(b"x" * (len(server.content) - 10))
    with pytest.raises(ConversionError, match="sent something other"):
        download_checkpoint(server.url + "base.pt")
    assert download_checkpoint(server.url + "base.pt").read_bytes() == server.content


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_of_the_server(server, cache, status):
    server.status = status
    with pytest.raises(
        ConversionError, match=rf"downloading http.*base.pt failed \(.*{status}.*give the path"
    ) as error:
        download_checkpoint(server.url + "base.pt")
    assert "\n" not in str(error.value)
    assert held(cache) == []


def test_no_server(cache):
    with pytest.raises(ConversionError, match="failed"):
        download_checkpoint("http://127.0.0.1:9/base.pt")


def test_two_at_once(server, cache):
    files = []
    threads = [
        threading.Thread(target=lambda: files.append(download_checkpoint(server.url + "base.pt"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files == [cache / "base.pt"] * 3
    assert files[0].read_bytes() == server.content
    assert sum(method == "GET" for method, _, _ in server.asked) == 1


@pytest.mark.parametrize("name", RELEASED_FILES)
def test_names(server, cache, monkeypatch, name):
    monkeypatch.setattr("glide_pipelines.conversion.download.RELEASE_URL", server.url + "diffusion/")
    file = find_checkpoint(name)
    assert file == cache / RELEASED_FILES[name]
    assert server.asked[-1][1] == f"/diffusion/{RELEASED_FILES[name]}"


def test_a_folder_of_that_name_is_no_checkpoint(server, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("glide_pipelines.conversion.download.RELEASE_URL", server.url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert find_checkpoint("base") == cache / "base.pt"


def test_anything_else_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("base.pt") == Path("base.pt")
    assert find_checkpoint("~/base.pt") == Path.home() / "base.pt"
    (tmp_path / "base").touch()
    assert find_checkpoint("base") == Path("base")
    with pytest.raises(ConversionError, match="links are not followed: download the file, and give its path"):
        find_checkpoint("https://example.org/base.pt")


def test_conversion_by_name(server, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("glide_pipelines.conversion.download.RELEASE_URL", server.url)
    options = {"tokenizer": write_tokenizer(tmp_path), "dump_path": tmp_path / "glide"} | OPTIONS
    script("convert_glide_to_diffusers").main(arguments(checkpoint_path="base", **options))
    unet = GLIDEPipeline.from_pretrained(tmp_path / "glide").unet
    assert torch.equal(unet.conv_in.weight, small_state_dict()["input_blocks.0.0.weight"])
    server.status = 404
    capsys.readouterr()
    options["dump_path"] = tmp_path / "again"
    given = arguments(checkpoint_path="base", super_res_checkpoint_path="upsample", **options)
    assert script("convert_glide_to_diffusers").main(given) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "`super_res_checkpoint_path` (upsample): downloading http" in message
    assert not (tmp_path / "again").exists()
