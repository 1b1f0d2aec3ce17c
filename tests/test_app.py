"""The page that draws and edits in a browser: what its buttons do, what it says, and that it serves them."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from editing import HOLE, MASK, PICTURE, picture
from PIL import Image
from tiny import tiny_pipeline

from glide_cli import command_parser, main, options
from glide_pipelines import GLIDEPipeline, shapes_checkpoint
from glide_pipelines.shapes import knows


QUICK = (2.0, 2)  # guidance, steps


@pytest.fixture(scope="module")
def gr():
    return pytest.importorskip("gradio", reason="the app needs the extra `app` (in a clone: `pip install -e '.[app]'`)")


@pytest.fixture(scope="module")
def page(gr):
    from glide_cli import page

    return page


def parse(*words: str):
    return command_parser("app").parse_args(["--device", "cpu", *words])


@pytest.fixture(scope="module")
def studios(page):
    """Of the checkpoints that ship."""
    return page.load_studios(parse("--super-res-steps", "2"))


def painting(image: Image.Image = PICTURE, *masks: Image.Image) -> dict:
    """What a `gr.ImageEditor` gives: the picture, and a transparent layer with paint on it for each mask."""
    layers = []
    for mask in masks:
        layers.append(Image.new("RGBA", mask.size, "#ff0080"))
        layers[-1].putalpha(mask)
    return {"background": image.convert("RGBA"), "layers": layers, "composite": None}


def same(first: Image.Image, second: Image.Image) -> bool:
    """But for rounding, of a few pixels: a batch is computed in another order than a picture alone."""
    return np.abs(np.asarray(first, float) - np.asarray(second, float)).mean() < 0.1


# -- what the buttons do -----------------------------------------------------------------------------------------------


def test_a_seed_draws_the_same_pictures_again_each_of_them_alone_too(studios):
    drawer, _ = studios
    drawn = drawer.draw("a red circle", *QUICK, "7", 3)
    assert [words for _, words in drawn] == ["seed 7", "seed 8", "seed 9"]
    assert not same(drawn[0][0], drawn[1][0])
    assert drawer.draw("a red circle", *QUICK, "7", 3) == drawn
    ((alone, _),) = drawer.draw("a red circle", *QUICK, "8", 1)
    assert same(alone, drawn[1][0])


def test_a_picture_is_the_one_of_the_pipeline(studios):
    ((drawn, _),) = studios[0].draw("a red circle", *QUICK, "7", 1)
    pipe = GLIDEPipeline.from_pretrained(shapes_checkpoint())
    steps = {"num_inference_steps": 2, "super_res_num_inference_steps": 2}
    assert pipe("a red circle", **steps, guidance_scale=2.0, generator=torch.Generator().manual_seed(7)).images == [
        drawn
    ]


def test_no_seed_is_another_one_each_time_and_is_shown(studios):
    drawer, _ = studios
    (first,), (second,) = (drawer.draw("a star", *QUICK, seed, 1) for seed in ("", " "))
    assert first[1] != second[1]
    assert drawer.draw("a star", *QUICK, first[1].removeprefix("seed "), 1) == [first]


def test_an_edit_changes_what_is_painted_over_and_nothing_else(studios):
    _, editor = studios
    other = Image.new("L", MASK.size)
    other.paste(1, (22, 22, 30, 30))  # the faintest paint is paint
    holes = HOLE | (np.asarray(other) > 0)
    edited = editor.edit(painting(PICTURE, MASK, other), "a green star", *QUICK, "3", 2)
    assert [words for _, words in edited] == ["seed 3", "seed 4"]
    before = np.asarray(PICTURE)
    for image, _ in edited:
        after = np.asarray(image)
        np.testing.assert_array_equal(after[~holes], before[~holes])
        assert (after[HOLE] != before[HOLE]).any() and (after[22:30, 22:30] != before[22:30, 22:30]).any()


def test_a_photograph_is_made_as_small_as_the_model_draws(studios):
    _, editor = studios
    photograph = picture(400, 600)
    mask = Image.new("L", photograph.size)
    mask.paste(255, (0, 0, 200, 200))
    given = painting(photograph, mask)
    ((edited, _),) = editor.edit(given, "a green star", *QUICK, "3", 1)
    assert edited.size == (128, 85)
    small = photograph.convert("RGBA")
    small.thumbnail((128, 128))
    np.testing.assert_array_equal(np.asarray(edited)[:, 64:], np.asarray(small)[:, 64:, :3])
    assert given["background"].size == photograph.size, "the next try needs it"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"painting": None}, "no image to edit"),
        ({"painting": {"background": None, "layers": [], "composite": None}}, "no image to edit"),
        ({"painting": painting()}, "Nothing is painted over"),
        ({"painting": painting(PICTURE, Image.new("L", PICTURE.size))}, "Nothing is painted over"),
        ({"prompt": " "}, "The prompt is empty"),
        ({"seed": "seven"}, "The seed must be a whole number from 0 to .*, got 'seven'"),
        ({"steps": 0}, "`num_inference_steps` must"),
        ({"guidance_scale": "much"}, "`guidance_scale` must be a number"),
    ],
)
def test_a_mistake_is_told_in_words(gr, studios, change, words):
    _, editor = studios
    order = {"prompt": "a star", "guidance_scale": 2.0, "steps": 2, "seed": "", "num_images": 1}
    with pytest.raises(gr.Error, match=words):
        editor.edit(**{"painting": painting(PICTURE, MASK), **order, **change})


def test_the_bar_moves_through_both_stages(studios):
    told = []
    studios[0].draw("a star", *QUICK, "", 1, lambda steps, desc: told.append((steps, desc)))
    assert told == [((1, 4), "drawing"), ((2, 4), "drawing"), ((3, 4), "enlarging"), ((4, 4), "enlarging")]


def test_a_prompt_that_the_model_does_not_know_is_told_on_the_page(page, studios, monkeypatch):
    told = []
    monkeypatch.setattr(page.gr, "Warning", told.append)
    monkeypatch.setattr(logging.getLogger("glide_pipelines"), "handlers", [page.PageHandler()])
    studios[0].draw("a red circle", *QUICK, "", 1)
    assert told == []
    studios[0].draw("a corgi", *QUICK, "", 1)
    assert len(told) == 1 and "knows only its world of coloured shapes" in told[0]


def test_the_chosen_picture_is_taken_to_the_editor(gr, page):
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red")
    gallery = SimpleNamespace(value=[(first, "seed 1"), (second, "seed 2")], selected_index=None)
    for gallery.selected_index, chosen in ((None, first), (0, first), (1, second)):
        taken, tabs = page.take(gallery)
        assert taken is chosen and tabs.selected == "Edit"
    with pytest.raises(gr.Error, match="no image yet"):
        page.take(SimpleNamespace(value=None, selected_index=None))


# -- the page ----------------------------------------------------------------------------------------------------------


def components(app, **wanted) -> list:
    return [block for block in app.blocks.values() if wanted.items() <= vars(block).items()]


def test_the_page_begins_with_what_the_checkpoint_recommends(page, studios):
    app = page.build_page(*studios, steps=25)
    assert [slider.value for slider in components(app, label="Guidance")] == [2.0, 2.0]
    assert [slider.value for slider in components(app, label="Steps")] == [25, 25]
    assert len(components(app, value=page.KNOWN)) == 2
    assert all(knows(prompt) for prompt in page.PROMPTS)


def test_another_model_is_not_said_to_know_shapes(page):
    studio = page.Studio(tiny_pipeline(), {})
    assert not components(page.build_page(studio, studio, steps=25), value=page.KNOWN)


def test_the_page_sends_nothing_away(page, studios):
    app = page.build_page(*studios, steps=25)
    assert app.analytics_enabled is False
    galleries = components(app, label="Images")
    assert len(galleries) == 2
    assert all(set(gallery.buttons) == {"download", "fullscreen"} for gallery in galleries), "not to be shared"


def test_what_the_browser_needs(gr, page, studios, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    app = page.build_page(*studios, steps=25)
    (tabs,) = (block for block in app.blocks.values() if isinstance(block, gr.Tabs))
    assert all(isinstance(child, gr.Tab) for child in tabs.children), "gradio 6.31 shows a tab twice otherwise"
    assert sorted(event.api_name for event in app.fns.values() if event.queue) == ["draw", "edit"], "answers get lost"
    galleries = components(app, label="Images")
    assert all(gallery.interactive is False for gallery in galleries), "nothing is uploaded there"
    (canvas,) = (block for block in app.blocks.values() if isinstance(block, gr.ImageEditor))
    with Image.open(canvas.postprocess(PICTURE).background.path) as image:
        np.testing.assert_array_equal(image, PICTURE, "it comes without loss")


@pytest.fixture(scope="module")
def gradio_client(gr):
    return pytest.importorskip("gradio_client", reason="gradio brings it")


@pytest.fixture
def serve(page, gradio_client, tmp_path, monkeypatch):
    """A function that serves a page on this computer and returns a client of it."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    running = []

    def serve(drawer, editor):
        app = page.build_page(drawer, editor, steps=2)
        _, url, _ = app.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
        client = gradio_client.Client(url, download_files=str(tmp_path / "got"), verbose=False, analytics_enabled=False)
        running.extend((client.close, app.close))
        return client

    yield serve
    for close in running:
        close()


def test_a_visitor_draws_and_edits(serve, gradio_client, studios, tmp_path):
    client = serve(*studios)
    drawn = client.predict("a red circle", *QUICK, "7", 2, api_name="/draw")
    assert [entry["caption"] for entry in drawn] == ["seed 7", "seed 8"]
    ((first, _), _) = studios[0].draw("a red circle", *QUICK, "7", 2)
    with Image.open(drawn[0]["image"]) as image:
        np.testing.assert_array_equal(image, first, "it comes without loss")

    given = painting(first, MASK.resize(first.size))
    given["layers"][0].save(tmp_path / "layer.png")
    sent = {"background": gradio_client.handle_file(drawn[0]["image"]), "layers": [], "composite": None}
    with pytest.raises(gradio_client.exceptions.AppError, match="Nothing is painted over"):
        client.predict(sent, "a green star", *QUICK, "3", 1, api_name="/edit")
    sent["layers"] = [gradio_client.handle_file(tmp_path / "layer.png")]
    (edited,) = client.predict(sent, "a green star", *QUICK, "3", 1, api_name="/edit")
    with Image.open(edited["image"]) as image:
        ((here, words),) = studios[1].edit(given, "a green star", *QUICK, "3", 1)
        np.testing.assert_array_equal(image, here)
    assert edited["caption"] == words


class SlowPipeline:
    """Draws black, and counts how many draw at once."""

    config = SimpleNamespace(prompt_domain=None)
    default_guidance_scale = 3.0
    default_size = (8, 8)
    lock = threading.Lock()
    at_work = most = 0

    def __call__(self, prompt, num_images_per_prompt, **call):
        cls = type(self)
        with self.lock:
            cls.at_work += 1
            cls.most = max(cls.most, cls.at_work)
        time.sleep(0.5)
        with self.lock:
            cls.at_work -= 1
        return SimpleNamespace(images=[Image.new("RGB", (8, 8))] * num_images_per_prompt)


def test_one_order_is_drawn_after_the_other(serve, gradio_client, page, tmp_path):
    client = serve(page.Studio(SlowPipeline(), {}), page.Studio(SlowPipeline(), {}))
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "red.png")
    red = gradio_client.handle_file(tmp_path / "red.png")
    orders = []
    for _ in range(2):
        orders.append(client.submit("a star", *QUICK, "", 1, api_name="/draw"))
        sent = {"background": red, "layers": [red], "composite": None}
        orders.append(client.submit(sent, "a star", *QUICK, "", 1, api_name="/edit"))
    assert all(len(order.result(timeout=60)) == 1 for order in orders)
    assert SlowPipeline.most == 1


# -- the command line --------------------------------------------------------------------------------------------------


def test_the_models(page, studios, model):
    drawer, editor = studios
    assert editor.pipe.mode == "fine-tuned"
    drawer, editor = page.load_studios(parse("--model", model))
    assert editor.pipe.mode == "implicit" and editor.pipe.unet is drawer.pipe.unet
    both = ["--model", model, "--inpaint-model", str(shapes_checkpoint("inpaint"))]
    drawer, editor = page.load_studios(parse(*both))
    assert drawer.pipe.config.prompt_domain is None and editor.pipe.mode == "fine-tuned"


def test_by_default_only_this_computer_is_served_with_the_notebooks_steps(page, model, monkeypatch):
    served = []
    monkeypatch.setattr(page, "launch", lambda *given: served.append(given))
    monkeypatch.setattr(logging.getLogger("glide_pipelines"), "handlers", [])
    assert main(["app", "--device", "cpu", "--model", model]) == 0
    ((app, host, port),) = served
    assert host == "127.0.0.1" and port is None
    assert [slider.value for slider in components(app, label="Steps")] == [100, 100]


def test_fast(page, model):
    args = parse("--model", model, "--fast")
    assert args.steps == 10
    for studio in page.load_studios(args):
        assert type(studio.pipe.super_res_scheduler).__name__ == "DPMSolverMultistepScheduler"
        assert studio.upsampling == {"super_res_num_inference_steps": options.FAST["super_res_steps"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "fast27"], "--steps: must be a number"),
        (["--port", "65536"], "--port: must be a whole number from 1 to 65535"),
        (["--model", "nosuch"], "--model nosuch: no such folder"),
        (["--inpaint-model", "nosuch"], "--inpaint-model nosuch: no such folder"),
        (["--device", "toaster"], "--device toaster: "),
    ],
)
def test_bad_options(page, options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page, "launch", lambda *_: pytest.fail("it served"))
    assert main(["app", "--device", "cpu", *options]) == 2
    assert_one_line(capsys, words)


def test_a_port_in_use(page, model, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["app", "--device", "cpu", "--model", model, "--port", port]) == 2
    assert_one_line(capsys, f"--host 127.0.0.1 --port {port}: not an address of this computer, or in use")


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 2
    assert_one_line(capsys, "The app needs the extra `app` (in a clone: `pip install -e '.[app]'`).")


def assert_one_line(capsys, words: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("glide app: error: ") and words in err and err.count("\n") == 1
