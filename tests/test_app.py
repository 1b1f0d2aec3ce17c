"""The app: what its visitors get, how they share the machine, and what is refused."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time

import numpy as np
import pytest
import torch
from disks import disk
from editing import MASK, PICTURE, picture
from image_files import bomb, damaged_exif, png
from PIL import Image, PngImagePlugin
from tiny import tiny_inpaint_pipeline, tiny_pipeline

from glide_cli import command_parser, main, studio
from glide_cli.errors import UserError
from glide_cli.loading import world_of
from glide_cli.studio import Job, NotesHandler, Studio, Turns, open_photo, pipelines_by_task
from glide_pipelines import shapes_checkpoint
from glide_pipelines.metadata import JSON_CHUNK, read_metadata


TIMEOUT = 60  # seconds


@pytest.fixture(scope="module")
def gr():
    reason = 'the app needs the extra `app` (in a clone: `pip install ".[app]"`)'
    return pytest.importorskip("gradio", reason=reason)


@pytest.fixture(scope="module")
def page(gr):
    from glide_cli import page

    return page


@pytest.fixture(scope="module")
def models():
    return {"tiny": pipelines_by_task(tiny_pipeline(), tiny_inpaint_pipeline())}


@pytest.fixture
def tiny(models, monkeypatch) -> Studio:
    """A studio of small random models; every step is shown."""
    monkeypatch.setattr(studio, "PREVIEW_INTERVAL", -1)
    return Studio(models, {"steps": 2, "super_res_steps": 2})


def ask(tiny: Studio, task: str = "Draw", visitor: str = "anna", session: str = "tab", **changes):
    order = {"model": "tiny", "prompt": "a star", "steps": 2, "seed": "7"}
    return tiny.sample(task, visitor, session, **order | changes)


def final(progress) -> studio.Progress:
    *_, last = progress
    assert last.done
    return last


def wait_until(condition) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_the_estimate_is_shown_at_every_step_and_then_the_image(tiny):
    seen = list(ask(tiny, num_images=2))
    texts = ["Waiting for a turn.", *(f"Sampling: step {i} of 4" for i in (1, 2))]
    assert [progress.text for progress in seen] == [
        *texts, "Enlarging: step 3 of 4", "Enlarging: step 4 of 4", "Seeds 7 to 8."
    ]  # fmt: skip
    assert [[image.size for image in progress.images] for progress in seen[1:]] == [[(8, 8)] * 2] * 2 + [
        [(32, 32)] * 2
    ] * 3
    assert [progress.share for progress in seen[1:5]] == [0.25, 0.5, 0.75, 1]
    assert [progress.done for progress in seen] == [False] * 5 + [True]


def test_the_image_is_the_pipelines_and_its_seed_makes_it_again_alone(tiny, models):
    first, second = final(ask(tiny, num_images=2, guidance_scale=3.0, negative_prompt="a square")).images
    expected = models["tiny"]["Draw"](
        "a star",
        negative_prompt="a square",
        guidance_scale=3.0,
        num_inference_steps=2,
        super_res_num_inference_steps=2,
        generator=torch.Generator().manual_seed(8),
    ).images[0]
    (alone,) = final(ask(tiny, seed="8", guidance_scale=3.0, negative_prompt="a square")).images
    assert alone.tobytes() == expected.tobytes() != first.tobytes() != second.tobytes()
    assert np.abs(np.asarray(alone, float) - np.asarray(second, float)).mean() < 0.1


def test_no_seed_is_another_one_each_time_and_is_told(tiny):
    seeds = {final(ask(tiny, seed=seed)).seeds for seed in ("", " ", None)}
    assert len(seeds) == 3


def test_a_scheduler_is_taken_for_one_request(tiny, models):
    before = models["tiny"]["Draw"].scheduler
    assert final(ask(tiny, scheduler="ddim")).images[0].tobytes() != final(ask(tiny)).images[0].tobytes()
    assert models["tiny"]["Draw"].scheduler is before


def test_glide_generates_an_image_of_the_app_again(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = studio.load_studio(parse("--model", model, "--super-res-steps", "2", "--super-res-scheduler", "ddim"))
    options = {"model": model, "guidance_scale": 4.0, "negative_prompt": "a square", "scheduler": "dpm-solver++"}
    saved(final(ask(ours, **options)).images[0], "drawn.png")
    assert main(["--like", "drawn.png", "-o", "again.png", "--device", "cpu"]) == 0
    assert pixels("drawn.png") == pixels("again.png")
    PICTURE.save("small.png")
    saved(final(ask(ours, "Enlarge", model=model, image=PICTURE, scheduler="ddpm")).images[0], "large.png")
    assert main(["--like", "large.png", "--image", "small.png", "-o", "again.png", "--device", "cpu"]) == 0
    assert pixels("large.png") == pixels("again.png")


def test_an_edit_of_the_app_remembers_that_its_image_was_sent(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    edited = final(
        ask(studio.load_studio(parse("--model", model)), "Edit", model=model, image=PICTURE, mask_image=MASK)
    )
    saved(edited.images[0], "edited.png")
    assert main(["--like", "edited.png", "-o", "again.png"]) == 2
    assert "there is no file 'the image sent to glide app'" in capsys.readouterr().err
    PICTURE.save("image.png"), MASK.save("mask.png")
    given = ("--image", "image.png", "--mask", "mask.png", "--device", "cpu")
    assert main(["--like", "edited.png", *given, "-o", "again.png"]) == 0
    assert pixels("edited.png") == pixels("again.png")


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def saved(image: Image.Image, path: str) -> None:
    """As gradio saves it."""
    chunks = PngImagePlugin.PngInfo()
    for name, text in image.info.items():
        chunks.add_text(name, text)
    image.save(path, pnginfo=chunks)


def test_an_edit_has_the_size_of_the_photo_and_changes_the_hole_alone(tiny):
    photo = PICTURE.resize((96, 96))
    edited = np.asarray(final(ask(tiny, "Edit", image=photo, mask_image=MASK)).images[0])
    hole = np.asarray(MASK.resize(photo.size, Image.Resampling.BICUBIC)) >= 128
    np.testing.assert_array_equal(edited[~hole], np.asarray(photo)[~hole])
    assert (edited[hole] != np.asarray(photo)[hole]).any()


def test_an_edit_is_in_the_colour_space_of_its_photo(tiny):
    photo = PICTURE.copy()
    photo.info["icc_profile"] = bytes(16) + b"RGB " + bytes(108)
    (edited,) = final(ask(tiny, "Edit", image=photo, mask_image=MASK)).images
    assert edited.info["icc_profile"] == photo.info["icc_profile"]


def test_a_sketch_and_an_enlargement(tiny):
    assert final(ask(tiny, "Sketch", image=picture(200, 400), strength=0.5)).images[0].size == (32, 16)
    assert final(ask(tiny, "Enlarge", image=picture(8, 12))).images[0].size == (48, 32)


def test_stop_gives_the_image_as_far_as_it_is_and_makes_room(tiny):
    progress = ask(tiny, steps=250)
    next(progress), next(progress)
    tiny.turns.stop(session="another tab")
    next(progress)
    tiny.turns.stop(session="tab")
    last = final(progress)
    assert "Stopped at step" in last.text and last.share < 0.5
    assert last.images[0].size == (32, 32) and not last.images[0].info, "it cannot be generated again"
    assert len(tiny.turns) == 0


def test_what_nobody_looks_at_any_more_stops(tiny):
    progress = ask(tiny, steps=250)
    next(progress), next(progress)
    begin = time.monotonic()
    progress.close()
    wait_until(lambda: len(tiny.turns) == 0)
    print(f"free after {time.monotonic() - begin:.2f} s")
    assert final(ask(tiny)).images


def test_what_waits_is_stopped_too(tiny):
    tiny.turns.join(Job("berta", "other"))  # has the turn, and keeps it
    progress = ask(tiny)
    next(progress)
    tiny.turns.stop(session="tab")
    last = final(progress)
    assert last.text == "Stopped before the first step." and not last.images


def test_a_request_that_fails_makes_room(tiny, models, monkeypatch):
    monkeypatch.setattr(type(models["tiny"]["Draw"]), "encode_prompt", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(ask(tiny))
    assert len(tiny.turns) == 0


def test_a_prompt_that_the_model_does_not_know_is_told(monkeypatch):
    monkeypatch.setattr(logging.getLogger("glide_pipelines"), "handlers", [NotesHandler()])
    shapes = studio.load_studio(parse("--model", "shapes", "--super-res-steps", "1"))
    order = {"model": "shapes", "steps": 1}
    assert final(shapes.sample("Draw", "anna", "tab", prompt="a red circle", **order)).notes == ()
    (note,) = final(shapes.sample("Draw", "anna", "tab", prompt="a corgi", **order)).notes
    assert "knows only its world of coloured shapes" in note


# -- sharing the machine -----------------------------------------------------------------------------------------------


def test_a_long_request_does_not_block_another_visitor(tiny):
    long = ask(tiny, steps=250)
    next(long), next(long)
    assert final(ask(tiny, visitor="berta", session="hers")).images
    assert next(long).share < 1 and len(tiny.turns) == 1
    long.close()


def test_visitors_take_their_steps_in_turn_and_each_ones_requests_one_after_the_other():
    turns, taken = Turns(), []
    jobs = {name: Job(name[0], name) for name in ("a1", "a2", "b1")}
    for job in jobs.values():
        turns.join(job)

    def run(name):
        turns.wait(jobs[name])
        for _ in range(3):
            taken.append(name)
            turns.pass_on(jobs[name])
        turns.leave(jobs[name])

    threads = [threading.Thread(target=run, args=[name]) for name in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert taken == ["a1", "b1"] * 3 + ["a2"] * 3


def test_one_visitor_cannot_take_all_places():
    turns = Turns()
    for _ in range(studio.MAX_REQUESTS_EACH):
        turns.join(Job("anna", "tab"))
    with pytest.raises(UserError, match="You have 4 requests here already"):
        turns.join(Job("anna", "another tab"))
    for index in range(studio.MAX_REQUESTS - studio.MAX_REQUESTS_EACH):
        turns.join(Job(f"visitor {index}", "tab"))
    with pytest.raises(UserError, match="16 requests are here already"):
        turns.join(Job("zoe", "tab"))
    assert len(turns) == studio.MAX_REQUESTS


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("Draw", {"prompt": " "}, "The prompt is empty"),
        ("Draw", {"prompt": "x" * 1001}, "The prompt must be a text of at most 1000 characters"),
        ("Draw", {"prompt": 5}, "The prompt must be a text"),
        ("Draw", {"negative_prompt": "x" * 1001}, "The negative prompt must be a text"),
        ("Draw", {"seed": "seven"}, "The seed must be a whole number from 0 to .*, got 'seven'"),
        ("Draw", {"steps": 0}, "The number of steps must be a number from 1 to 250, got 0"),
        ("Draw", {"steps": 251}, "The number of steps must be a number from 1 to 250, got 251"),
        ("Draw", {"steps": 2.5}, "The number of steps must be a whole number"),
        ("Draw", {"num_images": 5}, "The number of images must be a number from 1 to 4"),
        ("Draw", {"steps": 10**400}, "The number of steps must be a number from 1 to 250"),
        ("Draw", {"guidance_scale": float("nan")}, "Guidance must be a number from 0 to 30"),
        ("Draw", {"guidance_scale": "much"}, "Guidance must be a number"),
        ("Draw", {"model": "/etc"}, "The model must be one of tiny"),
        ("Draw", {"scheduler": "os.system"}, "The scheduler must be one of ddpm"),
        ("Sketch", {"image": PICTURE, "strength": 2}, "The strength must be a number from 0 to 1"),
        ("Edit", {"image": PICTURE, "mask_image": Image.new("L", (32, 32))}, "nothing to repaint"),
        (
            "Enlarge",
            {"image": Image.new("RGB", (257, 256))},
            "The image has 257 x 256 pixels; 65,536 in all",
        ),
    ],
)
def test_a_request_is_checked_before_any_network_runs(tiny, models, task, change, words):
    networks = [part for part in models["tiny"][task].components.values() if isinstance(part, torch.nn.Module)]
    hooks = [network.register_forward_pre_hook(lambda *_: pytest.fail("a network ran")) for network in networks]
    with pytest.raises(UserError, match=words):
        list(ask(tiny, task, **change))
    for hook in hooks:
        hook.remove()
    assert len(tiny.turns) == 0


def test_a_model_without_an_upsampler_cannot_enlarge():
    pipe = tiny_pipeline(upsampler=False)
    with pytest.raises(UserError, match="tiny has no upsampler"):
        next(ask(Studio({"tiny": pipelines_by_task(pipe, pipe)}), "Enlarge", image=PICTURE))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bomb(60_000, 60_000), "holiday.png has too many pixels|holiday.png has 60000 x 60000 pixels"),
        (bomb(6000, 5000), "holiday.png has 6000 x 5000 pixels; 25,000,000 in all are allowed here"),
        (b"Dear model", "holiday.png cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "holiday.png cannot be read as an image"),
        (b"", "holiday.png cannot be read as an image"),
        (png(PICTURE)[:500], "holiday.png cannot be read as an image"),
    ],
    ids=["bomb", "large", "text", "postscript", "empty", "cut short"],
)
def test_a_bad_file_is_named_and_not_decoded(data, words, tmp_path, monkeypatch):
    if b"IDAT" in data and b"IEND" in data:
        monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    (tmp_path / "holiday.png").write_bytes(data)
    with pytest.raises(UserError, match=words):
        open_photo(tmp_path / "holiday.png", "holiday.png")


def test_whatever_a_decoder_raises_names_the_file(tmp_path):
    (tmp_path / "holiday.png").write_bytes(damaged_exif())
    with pytest.raises(UserError, match=r"holiday\.png cannot be read as an image"):
        open_photo(tmp_path / "holiday.png", "holiday.png")


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holiday.png is no longer here"):
        open_photo(tmp_path / "holiday.png", "holiday.png")


def test_a_photo_of_sixteen_bits_keeps_its_brightness(tmp_path):
    Image.fromarray(np.full((20, 30), 30_000, np.uint16)).save(tmp_path / "scan.png")
    photo = open_photo(tmp_path / "scan.png", "scan.png").convert("RGBA")  # as the page shows it
    assert photo.getpixel((4, 4)) == (117, 117, 117, 255)


def test_a_photo_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    picture(20, 30).save(tmp_path / "photo.jpg", exif=exif)
    assert open_photo(tmp_path / "photo.jpg", "photo.jpg").size == (20, 30)


# -- the page ----------------------------------------------------------------------------------------------------------


def painting(image: Image.Image = PICTURE, *masks: Image.Image) -> dict:
    """What a `gr.ImageEditor` gives: the image, and a transparent layer with paint on it for each mask."""
    layers = []
    for mask in masks:
        layers.append(Image.new("RGBA", mask.size, "#ff0080"))
        layers[-1].putalpha(mask)
    return {"background": image.convert("RGBA"), "layers": layers, "composite": image.convert("RGBA")}


def test_paint_makes_the_mask_of_a_photo_at_its_own_size(page, tmp_path):
    picture(1200, 1600).save(tmp_path / "photo.png")
    view, path, _ = next(page.take_file(str(tmp_path / "photo.png")))
    assert view.size == (800, 600) and page.view_of(PICTURE).size == (800, 800), "the brush fits all of them"
    mask = Image.new("L", view.size)
    mask.paste(1, (10, 10, 20, 20))  # the faintest paint is paint
    photo, painted = page.painted(painting(view, Image.new("L", view.size), mask), path)
    assert photo.size == (1600, 1200) and painted.getbbox() == (10, 10, 20, 20)


@pytest.mark.parametrize("mode", ["CMYK", "LA", "P", "1"])
def test_a_photo_of_any_mode_can_be_painted_over(page, mode, tmp_path):
    picture(30, 40).convert(mode).save(tmp_path / "photo.tif")
    view, _, _ = next(page.take_file(str(tmp_path / "photo.tif")))
    view.save(tmp_path / "view.png")  # as it goes to the browser
    assert view.size == (800, 600)


@pytest.mark.parametrize("given", [None, {"background": None, "layers": [], "composite": None}, painting()])
def test_nothing_to_edit(page, given):
    with pytest.raises(UserError, match=r"no image to edit|Nothing is painted over"):
        page.painted(given, None)


def test_no_sketch(page):
    empty = Image.new("RGBA", (800, 800), "white")
    for given in (None, {"background": None, "layers": [], "composite": empty}):
        with pytest.raises(UserError, match="There is no sketch"):
            page.sketched(given)
    assert page.sketched(painting(picture(400, 600))).size == (600, 400)


def test_a_bad_file_is_told_where_it_is_dropped(gr, page, tmp_path):
    (tmp_path / "<b>.png").write_bytes(b"Dear model")
    told = page.take_file(str(tmp_path / "<b>.png"))
    _, _, words = next(told)
    assert 'class="error"' in words and "&lt;b&gt;.png cannot be read" in words
    with pytest.raises(gr.Error):
        next(told)


def test_what_a_visitor_wrote_is_text_on_the_page(page):
    progress = studio.Progress("<script>", notes=("<img>",), images=(PICTURE,), share=0.5)
    shown = page.show(progress)
    assert "&lt;script&gt;" in shown and "&lt;img&gt;" in shown and shown.count("<img") == 1


def components(app, **wanted) -> list:
    return [block for block in app.blocks.values() if wanted.items() <= vars(block).items()]


def test_the_page_begins_with_what_the_model_recommends(page, models):
    app = page.build_page(Studio(models, {"steps": 25, "super_res_steps": 9}))
    assert [slider.value for slider in components(app, label="Steps")] == [25, 25, 25, 9]
    assert [slider.value for slider in components(app, label="Guidance")] == [3.0, 5.0, 3.0]
    for known, _ in page.WORLDS.values():
        assert not components(app, value=known)[0].parent.visible, "it is of neither world"
    (tabs,) = (block for block in app.blocks.values() if isinstance(block, page.gr.Tabs))
    assert all(isinstance(child, page.gr.Tab) for child in tabs.children), "gradio 6.31 shows a tab twice otherwise"


def test_the_page_sends_nothing_away(page, tiny):
    app = page.build_page(tiny)
    assert app.analytics_enabled is False
    galleries = components(app, label="Images")
    assert len(galleries) == 4
    assert all(set(gallery.buttons) == {"download", "fullscreen"} for gallery in galleries), "not to be shared"


def test_blobs_are_few(gr, page, tiny):
    app = page.build_page(tiny)
    editor, _ = (block for block in app.blocks.values() if isinstance(block, gr.ImageEditor))

    def send(key, index, blob=b"paint"):
        data = {"type": "layer", "index": index, "file": b"", "id": key}
        return editor.accept_blobs(page.AcceptBlobs(data=data, files=[("file", blob)]))

    for key in range(100):
        send(str(key), 0)
    assert list(editor.blob_storage) == [str(key) for key in range(100 - page.MAX_PAINTINGS, 100)]
    for sent in (("many", 10**9), ("large", 0, bytes(page.MAX_LAYER_SIZE + 1))):
        with pytest.raises(gr.Error, match="4 layers of 4 MB"):
            send(*sent)
    with pytest.raises(gr.Error, match="pixels"):
        editor.convert_and_format_image(bomb(60_000, 60_000))


@pytest.fixture
def serve(page, tmp_path, monkeypatch):
    """A function that serves a studio to this computer and returns its address and a client."""
    client_of = pytest.importorskip("gradio_client", reason="gradio brings it")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    running = []

    def serve(studio):
        app = page.build_page(studio)
        url = page.start(app, "127.0.0.1")
        client = client_of.Client(url, download_files=str(tmp_path / "got"), verbose=False, analytics_enabled=False)
        running.extend((client.close, app.close))
        return url, client

    yield serve
    for close in running:
        close()


OPTIONS = ("", 3.0, 2, "", "7", 1)  # negative prompt, guidance, steps, scheduler, seed, number


def test_a_client_draws_and_edits(serve, gr, tiny, tmp_path):
    import gradio_client

    _, client = serve(tiny)
    _, drawn = client.predict("tiny", "a star", *OPTIONS, api_name="/draw")[:2]
    (entry,) = drawn["value"] if isinstance(drawn, dict) else drawn
    assert entry["caption"] == "seed 7"
    (expected,) = final(ask(tiny, guidance_scale=3.0)).images
    with Image.open(entry["image"]) as image:
        np.testing.assert_array_equal(image, expected, "it comes without loss")
        assert read_metadata(image)["seed"] == 7, "and says how it was generated"
    with pytest.raises(gradio_client.exceptions.AppError, match="The prompt is empty"):
        client.predict("tiny", " ", *OPTIONS, api_name="/draw")
    (tmp_path / "bomb.png").write_bytes(bomb(60_000, 60_000))
    sent = {"background": gradio_client.handle_file(tmp_path / "bomb.png"), "layers": [], "composite": None}
    with pytest.raises(gradio_client.exceptions.AppError, match=r"bomb\.png has"):
        client.predict("tiny", sent, "a star", *OPTIONS, api_name="/edit")
    given = painting(PICTURE.resize((96, 96)), MASK.resize((96, 96)))
    for name, image in (("photo.png", given["background"]), ("paint.png", given["layers"][0])):
        image.save(tmp_path / name)
    sent["background"] = gradio_client.handle_file(tmp_path / "photo.png")
    sent["layers"] = [gradio_client.handle_file(tmp_path / "paint.png")]
    _, edited = client.predict("tiny", sent, "a star", *OPTIONS, api_name="/edit")[:2]
    (entry,) = edited["value"] if isinstance(edited, dict) else edited
    with Image.open(entry["image"]) as image:
        assert image.size == (96, 96)


def test_a_file_that_is_too_large_is_not_taken(serve, tiny):
    import httpx

    url, _ = serve(tiny)
    large = httpx.post(
        f"{url}gradio_api/upload", files={"files": ("a.png", bytes(studio.MAX_FILE_SIZE + 1))}, timeout=60
    )
    small = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", bytes(9))}, timeout=60)
    assert large.status_code == 413 and small.status_code == 200


def test_on_a_full_disk_a_visitor_is_told_and_the_server_goes_on(serve, tiny, tmp_path):
    import gradio_client
    import httpx

    def draw():
        return client.predict("tiny", "a star", *OPTIONS, api_name="/draw")

    def upload():
        return httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", bytes(100_000))}, timeout=60).is_success

    with disk(tmp_path / "served", 2**20):
        url, client = serve(tiny)
        filler = tmp_path / "served" / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(2**21))
        with pytest.raises(gradio_client.exceptions.AppError, match="No space left on device"):
            draw()
        assert not upload()
        assert len(tiny.turns) == 0
        filler.unlink()
        assert draw() and upload()


# -- the command line --------------------------------------------------------------------------------------------------


def parse(*words: str):
    return command_parser("app").parse_args(["--device", "cpu", *words])


def test_the_models(model):
    one = studio.load_studio(parse("--model", model, "--other-models", "shapes"))
    assert list(one.models) == [model, "shapes"]
    own, shapes = one.models.values()
    assert own["Edit"].mode == "implicit" and own["Edit"].unet is own["Draw"].unet is own["Sketch"].unet
    assert shapes["Edit"].mode == "fine-tuned"
    both = studio.load_studio(parse("--model", model, "--inpaint-model", str(shapes_checkpoint("inpaint"))))
    pipes = both.models[model]
    assert pipes["Draw"].config.prompt_domain is None and pipes["Edit"].mode == "fine-tuned"


def test_by_default_both_models_that_ship_are_there(page):
    ours = studio.load_studio(parse())
    assert [(name, pipes["Edit"].mode) for name, pipes in ours.models.items()] == [
        ("emoji", "fine-tuned"),
        ("shapes", "fine-tuned"),
    ]
    app = page.build_page(ours)
    assert components(app, label="Model")[0].visible
    for world, (known, prompts) in page.WORLDS.items():
        assert components(app, value=known)[0].parent.visible == (world == "emoji")
        assert world_of(prompts) == world, "the model would warn of its own examples"
    with page.gr.Blocks(), page.gr.Tabs():
        choose = page.chooser(ours, page.add_tab(ours, "Draw"))
        enlarge = page.chooser(ours, page.add_tab(ours, "Enlarge"))
    steps, guidance, *columns = choose("shapes")
    assert (steps, guidance) == (100, 2.0) and [column.visible for column in columns] == [True, False]
    draw = ours.models["shapes"]["Draw"]
    draw.scheduler.register_to_config(trained_timesteps=[999, 640, 400, 200])
    assert choose("shapes")[0] == 4, "a few-step student has its own number"
    assert enlarge("shapes") == 27, "gradio takes the value of a single output as it is"


def test_by_default_only_this_computer_is_served_with_the_notebooks_steps(page, model, monkeypatch):
    served = []
    monkeypatch.setattr(page, "launch", lambda *given: served.append(given))
    monkeypatch.setattr(logging.getLogger("glide_pipelines"), "handlers", [])
    assert main(["app", "--device", "cpu", "--model", model]) == 0
    ((app, host, port),) = served
    assert host == "127.0.0.1" and port is None
    assert [slider.value for slider in components(app, label="Steps")] == [100, 100, 100, 27]


def test_fast(page, model):
    fast = studio.load_studio(parse("--model", "emoji", "--other-models", model, "--fast"))
    app = page.build_page(fast)
    # A sketch steers the samples, and the model recommends nothing there.
    assert [slider.value for slider in components(app, label="Steps")] == [2, 2, 10, 2]
    with page.gr.Blocks(), page.gr.Tabs():
        assert page.chooser(fast, page.add_tab(fast, "Draw"))(model)[0] == 10
    for name, scheduler in (("emoji", "GLIDEDDIMScheduler"), (model, "DPMSolverMultistepScheduler")):
        assert {type(pipe.super_res_scheduler).__name__ for pipe in fast.models[name].values()} == {scheduler}
    info = final(ask(fast, model=model)).images[0].info
    record = json.loads(info[JSON_CHUNK])
    expected = {"steps": 2, "super_res_steps": 10, "super_res_scheduler": "sde-dpm-solver++"}
    assert expected.items() <= record.items()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "fast27"], "--steps: must be a number"),
        (["--port", "65536"], "--port: must be a whole number from 1 to 65535"),
        (["--model", "nosuch"], "--model nosuch: no such folder"),
        (["--other-models", "nosuch"], "--other-models nosuch: no such folder"),
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
    assert_one_line(capsys, 'The app needs the extra `app` (in a clone: `pip install ".[app]"`).')


def assert_one_line(capsys, words: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("glide app: error: ") and words in err and err.count("\n") == 1
