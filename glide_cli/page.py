"""The page of `glide app`: its tabs, fields and buttons, and how it is served."""

from __future__ import annotations

import argparse
import base64
import html
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import gradio as gr
from diffusers import DiffusionPipeline
from gradio.components import Component
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorDataBlobs
from gradio.data_classes import FileData
from PIL import Image, ImageChops

from glide_pipelines.shapes import BACKGROUNDS, COLOURS, SHAPES

from . import options
from .errors import UserError
from .loading import count_steps, silence_libraries
from .output import colour_space, make_grid
from .studio import (
    MAX_FILE_SIZE,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_PROMPT,
    MAX_REQUESTS,
    MAX_SMALL_PIXELS,
    MAX_STEPS,
    TASKS,
    NotesHandler,
    Progress,
    Studio,
    load_studio,
    open_photo,
)


# What a model of each world knows, and prompts to begin with.
WORLDS = {
    "shapes": (
        f"This model knows coloured shapes and nothing else: one to three of {', '.join(SHAPES)}, in "
        f"{', '.join(COLOURS)}, on {', '.join(BACKGROUNDS)}.",
        [
            "a red circle above a blue square",
            "a small yellow cross to the left of a cyan triangle",
            "a large purple diamond on a black background",
            "a green star",
        ],
    ),
    "emoji": (
        "This model knows 1,333 emoji by their names, on a white or a coloured background.",
        ["a taxi", "a slice of pizza", "a smiling face with sunglasses", "a red heart on a blue background"],
    ),
}
OWN_SCHEDULER = "the model's own"
PAINT = "#ff0080"  # seen on every background of the shapes world
INK = ["#000000", "#e6194b", "#ff8c00", "#ffd700", "#2ca02c", "#1f77ff", "#8a2be2", "#00bcd4", "#ffffff"]
VIEW_SIZE = 800  # pixels of the longer side: images are painted over at this size, whatever their own
# What editors send ahead of their requests, and a stranger might send without end.
MAX_PAINTINGS = 16
MAX_LAYERS = 4
MAX_LAYER_SIZE = 4 * 2**20  # bytes
CSS = """
.live img, .results { width: min(100%, 60vh) !important; margin: 8px auto 0; }
.live .bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); }
.live .bar div { height: 100%; border-radius: 3px; background: var(--color-accent); }
.live p { margin: 0 0 4px; overflow-wrap: anywhere; }
.live .error { color: var(--error-text-color, #b91c1c); font-weight: 600; }
.live .note { opacity: 0.85; }
.results .grid-wrap { max-height: none !important; overflow-y: auto !important; }
@media (max-width: 700px) { .result { min-height: 100vh; } }
"""
# A phone shows the columns one below the other: it goes down to the one of the result, which fills its screen.
SHOW_RESULT = "() => {{ innerWidth < 700 && document.getElementById('{}').scrollIntoView({{behavior: 'smooth'}}) }}"


# -- images from the browser -------------------------------------------------------------------------------------------


class RecentBlobs(dict[str, EditorDataBlobs]):
    """What an editor sent ahead of its request; the oldest goes where there is too much."""

    def __setitem__(self, key: str, value: EditorDataBlobs) -> None:
        super().__setitem__(key, value)
        while len(self) > MAX_PAINTINGS:
            del self[next(iter(self))]


def read_sent(file: Any, flatten_on_white: bool = False) -> Image.Image | None:
    """An image that an editor or a client sent. (gradio decodes whatever comes.)"""
    if file is None:
        return None
    source, name = (file.path, file.orig_name) if isinstance(file, FileData) else (io.BytesIO(file), None)
    with gradio_errors():
        return open_photo(source, name or "The image").convert("RGBA")


def read_small(file: Any) -> Image.Image | None:
    """As `read_sent`, of what is to be enlarged."""
    if file is None or file.path is None:
        return None
    with gradio_errors():
        return open_photo(file.path, file.orig_name or "The image", MAX_SMALL_PIXELS)


def keep_blob(editor: gr.ImageEditor, data: AcceptBlobs) -> Any:
    """Keep a layer until its request comes; gradio would keep as many, and as large ones, as a stranger sends."""
    index = data.data["index"]
    if (index and index != "null" and not 0 <= int(index) < MAX_LAYERS) or len(data.files[0][1]) > MAX_LAYER_SIZE:
        raise gr.Error(
            f"An editor may send {MAX_LAYERS} layers of {MAX_LAYER_SIZE >> 20} MB each.", print_exception=False
        )
    return gr.ImageEditor.accept_blobs(editor, data)


@contextmanager
def gradio_errors() -> Iterator[None]:
    """A mistake of the visitor's, as gradio reports it; the terminal is spared the traceback."""
    try:
        yield
    except UserError as error:
        raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error


def take_file(file: str | None) -> Iterator[tuple]:
    """What was dropped: the editor's new image, the photo's path, and what is wrong with it."""
    try:
        view = None if file is None else view_of(open_photo(file, Path(file).name))
    except UserError as error:
        yield None, None, show_error(error)
        raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error
    yield view, file, ""


def view_of(photo: Image.Image) -> Image.Image:
    """A photo at the size that it is painted over at, so that the brush and the way to the server fit every photo."""
    scale = VIEW_SIZE / max(photo.size)
    width, height = (max(1, round(length * scale)) for length in photo.size)
    view = photo.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    view = view.convert("RGBA")  # it goes there as PNG, which holds no CMYK
    view.info.clear()
    view.info.update(colour_space(photo))
    return view


def painted(painting: dict[str, Any] | None, photo: str | None) -> tuple[Image.Image, Image.Image]:
    """The photo, at its own size, and the mask, at that of the editor."""
    if painting is None or painting["background"] is None:
        raise UserError("There is no image to edit: drop a file, or take one from another tab.")
    mask = Image.new("L", painting["background"].size)
    for layer in painting["layers"]:
        mask = ImageChops.lighter(mask, layer.getchannel("A").point(lambda alpha: 255 * (alpha > 0)))
    if mask.getbbox() is None:
        raise UserError("Nothing is painted over: take the brush, and paint over what shall be repainted.")
    return (painting["background"] if photo is None else open_photo(photo, Path(photo).name)), mask


def sketched(painting: dict[str, Any] | None) -> Image.Image:
    """What is painted, with what it is painted on."""
    if painting is None or painting["composite"] is None or painting["composite"].convert("RGB").getcolors(1):
        raise UserError("There is no sketch: paint one, or drop a file.")
    return painting["composite"]


# -- what the page shows -----------------------------------------------------------------------------------------------


def show(progress: Progress) -> str:
    """How far a request is, as HTML: in words, as a bar, and as the estimate of the image."""
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in progress.notes)
    text = f'<p role="status">{html.escape(progress.text)}</p>'
    if progress.done:
        return text + notes
    image = ""
    if progress.images:
        data = io.BytesIO()
        make_grid(progress.images, 2).save(data, "JPEG", quality=90)
        encoded = base64.b64encode(data.getvalue()).decode()
        image = f'<img alt="The estimate so far" src="data:image/jpeg;base64,{encoded}">'
    bar = f'<div class="bar" role="progressbar"><div style="width: {progress.share:.1%}"></div></div>'
    return text + bar + notes + image


def captions(progress: Progress) -> list[tuple[Image.Image, str]]:
    """The images of a gallery, each with its seed below it."""
    return [(image, f"seed {seed}") for image, seed in zip(progress.images, progress.seeds, strict=True)]


def show_error(error: Exception) -> str:
    """A mistake, which stays on the page until the next request."""
    return f'<p class="error" role="alert">{html.escape(str(error))}</p>'


@dataclass
class Tab:
    """The components of a tab that others need.

    Attributes:
        task (`str`): One of `TASKS`.
        file (`gr.File`, *optional*): Where a file is dropped that is painted over.
        inputs (`dict[str, Component]`): What the request is made of, by the names of [`Studio.sample`].
        live, gallery (`Component`): How far the request is; its images.
        drawn (`gr.State`): The prompt of the images that the gallery shows.
        button, stop (`gr.Button`): Begin, and end.
        onward (`gr.Row`): Shown with the images; it holds `send`.
        send (`dict[str, gr.Button]`): Each takes an image on to the tab of its name.
        examples (`dict[str, gr.Column]`): Prompts to begin with, by the world that a model must know.
    """

    task: str
    file: gr.File | None
    inputs: dict[str, Component]
    live: gr.HTML
    gallery: gr.Gallery
    drawn: gr.State
    button: gr.Button
    stop: gr.Button
    onward: gr.Row
    send: dict[str, gr.Button]
    examples: dict[str, gr.Column]


def build_page(studio: Studio) -> gr.Blocks:
    """The page of a studio."""
    names = list(studio.models)
    kept = (600, 7200)  # every ten minutes, what is older than two hours goes, and everything at the end
    with gr.Blocks(title="GLIDE", analytics_enabled=False, delete_cache=kept) as page:
        model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        with gr.Tabs() as tabs:
            parts = {task: add_tab(studio, task) for task in TASKS}
        for tab in parts.values():
            connect(studio, model, tabs, tab, parts)
    return page


def add_tab(studio: Studio, task: str) -> Tab:
    """Lay out a tab. A phone shows its columns one below the other, so the button stands last in the first."""
    pipes = next(iter(studio.models.values()))
    inputs: dict[str, Component] = {}
    with gr.Tab(task, id=task), gr.Row():
        with gr.Column(min_width=320):
            drawn, file = gr.State(""), None
            if task in ("Edit", "Sketch"):
                file = gr.File(label="Drop an image", file_types=["image"], height=124)
                inputs["painting"] = add_editor(task)
                inputs["photo"] = gr.State()
            elif task == "Enlarge":
                inputs["image"] = add_photo()
            inputs["prompt"] = gr.Textbox(
                label="Prompt", placeholder="What the whole image shows", max_length=MAX_PROMPT
            )
            examples: dict[str, gr.Column] = {}
            for world, (known, prompts) in WORLDS.items() if task == "Draw" else ():
                with gr.Column(visible=known_world(pipes) == world) as examples[world]:
                    gr.Examples(prompts, inputs["prompt"], label="For example")
                    gr.Markdown(known)
            with gr.Accordion("Options", open=False):
                inputs |= add_options(studio, task, pipes.get(task, pipes["Draw"]))
            button = gr.Button(task, variant="primary")
        with gr.Column(min_width=320, elem_classes="result", elem_id=f"{task.lower()}-result"):
            stop = gr.Button("Stop", variant="stop", visible=False)
            live = gr.HTML(elem_classes="live", label="Progress")
            gallery = gr.Gallery(
                label="Images",
                type="filepath",
                format="png",  # without loss
                columns=2,
                object_fit="contain",
                # Not gradio's third button, which uploads an image to a server.
                buttons=["download", "fullscreen"],
                interactive=False,
                visible=False,
                elem_classes="results",
            )
            with gr.Row(visible=False) as onward:
                send = {
                    target: gr.Button(f"{target} this", size="sm", min_width=80) for target in TASKS if target != "Draw"
                }
    return Tab(task, file, inputs, live, gallery, drawn, button, stop, onward, send, examples)


def add_editor(task: str) -> gr.ImageEditor:
    """Where a photo is painted over, or a sketch is painted."""
    edits = task == "Edit"
    editor = gr.ImageEditor(
        # On an empty canvas gradio would ask for the brush first.
        None if edits else Image.new("RGB", (VIEW_SIZE, VIEW_SIZE), "white"),
        label="Paint over what shall be repainted" if edits else "Paint a sketch",
        type="pil",
        format="png",  # without loss: what is not painted over stays as it is
        sources=(),  # a canvas would send a photo back as a bitmap, twice: a file goes up as it is
        transforms=(),
        layers=False,
        brush=gr.Brush(
            VIEW_SIZE // 16 if edits else VIEW_SIZE // 32, colors=[PAINT] if edits else [*INK], color_mode="fixed"
        ),
        canvas_size=(512, 512),
        buttons=[],
        height=360,
    )
    # Not a subclass, beside which gradio would write a file into this package.
    keep = server(partial(keep_blob, editor))
    vars(editor).update(blob_storage=RecentBlobs(), convert_and_format_image=read_sent, accept_blobs=keep)
    return editor


def add_photo() -> gr.Image:
    """Where an image is dropped that shall be enlarged."""
    photo = gr.Image(label="Small image", type="pil", format="png", height=300, buttons=[])
    vars(photo).update(preprocess=read_small)
    return photo


def add_options(studio: Studio, task: str, pipe: DiffusionPipeline) -> dict[str, Component]:
    """What is folded away."""
    own = [(OWN_SCHEDULER, ""), *((name, name) for name in options.SCHEDULERS)]
    fields: dict[str, Component] = {}
    if task != "Enlarge":
        scale = pipe.default_guidance_scale
        fields["negative_prompt"] = gr.Textbox(label="Negative prompt", max_length=MAX_PROMPT)
        fields["guidance_scale"] = gr.Slider(
            1, MAX_GUIDANCE, scale, step=0.1, label="Guidance", info="How closely to follow the prompt"
        )
    if task == "Sketch":
        fields["strength"] = gr.Slider(0.05, 1, 0.8, step=0.05, label="Strength", info="How much of it to repaint")
    fields["steps"] = gr.Slider(
        1,
        MAX_STEPS,
        first_steps(studio, task, pipe),
        step=1,
        label="Steps",
        info="Fewer are faster, more are often better",
    )
    fields["scheduler"] = gr.Dropdown(own, value="", label="Scheduler", info="How a step is taken")
    # Text, because a field for numbers cannot be left empty.
    fields["seed"] = gr.Textbox(
        label="Seed", info="The same one gives the same image again; empty, a new one each time", max_length=20
    )
    fields["num_images"] = gr.Slider(1, MAX_IMAGES, 1, step=1, label="How many images")
    return fields


def first_steps(studio: Studio, task: str, pipe: DiffusionPipeline) -> int:
    """The steps that a slider begins with: those that the command was given, or the model's own."""
    stage, option = ("super_res", "super_res_steps") if task == "Enlarge" else ("base", "steps")
    return min(count_steps(studio.options(pipe).get(option) or pipe.default_steps(stage)), MAX_STEPS)


def connect(studio: Studio, model: gr.Dropdown, tabs: gr.Tabs, tab: Tab, parts: dict[str, Tab]) -> None:
    """Give a tab's buttons their work."""

    def stop(request: gr.Request) -> None:  # all that a tab of the browser asked for
        studio.turns.stop(session=request.session_hash)

    aside: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    outputs = [tab.live, tab.gallery, tab.drawn, tab.stop, tab.onward]
    begins = [tab.button.click, cast(gr.Textbox, tab.inputs["prompt"]).submit]
    gr.on(begins, None, js=SHOW_RESULT.format(f"{tab.task.lower()}-result"))
    gr.on(
        begins,
        responder(studio, tab),
        [model, *tab.inputs.values()],
        outputs,
        api_name=tab.task.lower(),
        concurrency_limit=2 * MAX_REQUESTS,  # the studio refuses what is too much, and shares the machine
        concurrency_id="studio",
        show_progress="hidden",  # the page shows its own
        trigger_mode="once",
    )
    tab.stop.click(stop, **aside)
    if tab.file is not None:
        tab.file.upload(take_file, tab.file, [tab.inputs["painting"], tab.inputs["photo"], tab.live], **aside)
    for target, button in tab.send.items():
        there = parts[target].inputs
        places = [there["painting"], there["photo"]] if "painting" in there else [there["image"]]
        button.click(sender(target), [tab.gallery, tab.drawn], [tabs, there["prompt"], *places], **aside)
    guidance = [tab.inputs[name] for name in ("guidance_scale",) if name in tab.inputs]
    shown = [tab.inputs["steps"], *guidance, *tab.examples.values()]
    model.change(chooser(studio, tab), model, shown, **aside)


# -- what the buttons do -----------------------------------------------------------------------------------------------


def responder(studio: Studio, tab: Tab) -> Callable[..., Iterator[tuple]]:
    """What the button of a tab does: it yields what its outputs show."""
    names = ["model", *tab.inputs]

    def respond(request: gr.Request, *values: Any) -> Iterator[tuple]:
        given = dict(zip(names, values, strict=True))
        try:
            read_images(tab.task, given)
            for progress in studio.sample(tab.task, request.client.host, request.session_hash or "", **given):
                shown = progress.done and bool(progress.images)
                yield (
                    show(progress),
                    gr.Gallery(captions(progress), visible=True, columns=min(len(progress.images), 2))
                    if shown
                    else gr.Gallery(visible=False),
                    given["prompt"] if shown else gr.skip(),
                    gr.Button(visible=not progress.done),
                    gr.Row(visible=shown),
                )
        except Exception as error:
            yield show_error(error), gr.skip(), gr.skip(), gr.Button(visible=False), gr.skip()
            # The page has it; who asked without one gets it too.
            raise gr.Error(str(error), visible=False, print_exception=not isinstance(error, UserError)) from error

    return respond


def read_images(task: str, given: dict[str, Any]) -> None:
    """Make of what an editor gives what a pipeline takes."""
    painting, photo = given.pop("painting", None), given.pop("photo", None)
    if task == "Edit":
        given["image"], given["mask_image"] = painted(painting, photo)
    elif task == "Sketch":
        given["image"] = sketched(painting)
    elif task == "Enlarge" and given["image"] is None:
        raise UserError("There is no image to enlarge: drop a file into the frame, or take one from another tab.")


def sender(target: str) -> Callable[..., tuple]:
    """What takes the chosen image of a gallery, and its prompt, on to another tab."""

    def send(gallery: gr.Gallery, prompt: str) -> tuple:
        if not gallery.value:
            raise gr.Error("There is no image yet.", print_exception=False)
        path = gallery.value[gallery.selected_index or 0][0]
        with Image.open(path) as image:
            places = (path,) if target == "Enlarge" else (view_of(image.copy()), path)
        return gr.Tabs(selected=target), prompt, *places

    return send


def chooser(studio: Studio, tab: Tab) -> Callable[[str], Any]:
    """What a tab shows of a model when it is chosen."""

    def choose(model: str) -> Any:
        pipes = studio.models[model]
        # A model without an upsampler cannot enlarge, and says so when it is asked.
        pipe = pipes.get(tab.task, pipes["Draw"])
        shown: list[Any] = [first_steps(studio, tab.task, pipe)]
        if "guidance_scale" in tab.inputs:
            shown.append(pipe.default_guidance_scale)
        shown += [gr.Column(visible=known_world(pipes) == world) for world in tab.examples]
        return shown if len(shown) > 1 else shown[0]  # as gradio takes the value of a single output

    return choose


def known_world(pipes: dict[str, DiffusionPipeline]) -> str | None:
    """The world that a model knows, such as `"shapes"`; None of a model that takes any prompt."""
    return pipes["Draw"].config.prompt_domain


# -- serving -----------------------------------------------------------------------------------------------------------


def serve(args: argparse.Namespace) -> None:
    """Load the models, and serve the page until Ctrl-C."""
    silence_libraries()
    logging.getLogger("glide_pipelines").addHandler(NotesHandler())
    launch(build_page(load_studio(args)), args.host, args.port)


def start(page: gr.Blocks, host: str, port: int | None = None) -> str:
    """Serve a page in the background, and return its address."""
    page.queue(max_size=2 * MAX_REQUESTS)
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            max_threads=4 * MAX_REQUESTS,  # a request that waits takes one
            max_file_size=MAX_FILE_SIZE,
            css=CSS,
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
        )
    except OSError as error:
        where = f"--host {host} --port {port or 'from 7860 on'}"
        raise UserError(f"{where}: not an address of this computer, or in use") from error
    return url


def launch(page: gr.Blocks, host: str, port: int | None) -> None:
    """Serve a page until Ctrl-C."""
    print(f"The page is at {start(page, host, port)} until Ctrl-C.", flush=True)
    page.block_thread()
