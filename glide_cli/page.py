"""The page of `glide app`: what it does with a pipeline, its fields and buttons, and how it is served."""

from __future__ import annotations

import argparse
import logging
import secrets
from typing import Any

import gradio as gr
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageChops

from glide_pipelines import GLIDEInpaintPipeline
from glide_pipelines.shapes import BACKGROUNDS, COLOURS, SHAPES

from . import options
from .errors import UserError
from .loading import load_pipeline, model_values, silence_libraries, step_values


KNOWN = (
    f"This model knows coloured shapes and nothing else: one to three of {', '.join(SHAPES)}, in {', '.join(COLOURS)}, "
    f"on {', '.join(BACKGROUNDS)}."
)
PROMPTS = [
    "a red circle above a blue square",
    "a green star and a red circle on a white background",
    "a large purple diamond on a black background",
    "a small yellow cross to the left of a cyan triangle",
]
DEFAULT_STEPS = 100  # of the base model, as in the released notebooks
PAINT = "#ff0080"  # seen on every background of the shapes world
PROGRESS = gr.Progress()  # as a parameter's default, the bar of the event that runs
Images = list[tuple[Image.Image, str]]  # of a gallery, each with the words below it


class Studio:
    """What the page does with a pipeline; `upsampling` holds its arguments for the upsampler's steps."""

    def __init__(self, pipe: DiffusionPipeline, upsampling: dict[str, Any]) -> None:
        self.pipe = pipe
        self.upsampling = upsampling

    def draw(
        self,
        prompt: str,
        guidance_scale: float,
        steps: int,
        seed: str,
        num_images: int,
        progress: gr.Progress = PROGRESS,
        **images: Image.Image,
    ) -> Images:
        """Images, each with its seed, which generates it again alone. The text of the first seed may be empty."""

        def report(pipe: DiffusionPipeline, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
            progress((step + 1, pipe.num_timesteps), desc="enlarging" if pipe.stage == "super_res" else "drawing")
            return {}

        if not prompt.strip():
            raise refusal("The prompt is empty: say what the image shall show.")
        first = read_seed(seed)
        seeds = range(first, first + num_images)
        try:
            generated = self.pipe(
                prompt,
                guidance_scale=guidance_scale,
                num_inference_steps=steps,
                num_images_per_prompt=num_images,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                callback_on_step_end=report,
                **self.upsampling,
                **images,
            ).images
        except (TypeError, ValueError) as error:
            raise refusal(str(error)) from error
        return [(image, f"seed {seed}") for image, seed in zip(generated, seeds, strict=True)]

    def edit(
        self,
        painting: dict[str, Any] | None,
        prompt: str,
        guidance_scale: float,
        steps: int,
        seed: str,
        num_images: int,
        progress: gr.Progress = PROGRESS,
    ) -> Images:
        """As `draw`, but of an image, and only where the `painting` of a `gr.ImageEditor` has paint on it."""
        if painting is None or painting["background"] is None:
            raise refusal("There is no image to edit: take one from the other tab, or drop a file into the frame.")
        image = painting["background"].copy()
        mask = Image.new("L", image.size)
        for layer in painting["layers"]:
            mask = ImageChops.lighter(mask, layer.getchannel("A").point(lambda alpha: 255 * (alpha > 0)))
        if mask.getbbox() is None:
            raise refusal("Nothing is painted over: take the brush, and paint over what shall be repainted.")
        # Photographs are often larger than what the model was trained on, and than what fits into memory.
        height, width = self.pipe.default_size
        image.thumbnail((width, height))
        return self.draw(prompt, guidance_scale, steps, seed, num_images, progress, image=image, mask_image=mask)


def read_seed(text: str) -> int:
    """The seed that the text names, or a new one if it is empty."""
    if not text.strip():
        return secrets.randbelow(2**32)
    try:
        return options.seed(text)
    except argparse.ArgumentTypeError as error:
        raise refusal(f"The seed {error}.") from error


def refusal(message: str) -> gr.Error:
    """A mistake of the visitor's, who reads it on the page; the terminal is spared the traceback."""
    return gr.Error(message, print_exception=False)


class PageHandler(logging.Handler):
    """Shows what the library warns of, such as a prompt that the model does not know, on the page that asked for it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one warning."""
        gr.Warning(record.getMessage())


def take(gallery: gr.Gallery) -> tuple[Image.Image, gr.Tabs]:
    """The image that is chosen, for the editor, and the tab where that is."""
    if not gallery.value:
        raise refusal("There is no image yet.")
    return gallery.value[gallery.selected_index or 0][0], gr.Tabs(selected="Edit")


def add_fields(pipe: DiffusionPipeline, name: str, steps: int) -> tuple[list[gr.components.Component], gr.Button]:
    """The fields of a tab, in the order of `Studio.draw`, and its button."""
    prompt = gr.Textbox(label="Prompt", info="What the whole image shows")
    if pipe.config.prompt_domain == "shapes":
        gr.Markdown(KNOWN)
        gr.Examples(PROMPTS, prompt, label="For example")
    button = gr.Button(name, variant="primary")
    scale = pipe.default_guidance_scale
    fields = [
        prompt,
        gr.Slider(1, max(10, scale), scale, step=0.1, label="Guidance", info="How closely to follow the prompt"),
        gr.Slider(1, max(250, steps), steps, step=1, label="Steps", info="Fewer are faster, more look better"),
        # Text, because a field for numbers cannot be left empty.
        gr.Textbox(label="Seed", info="The same one gives the same image again; empty, a new one each time"),
        gr.Slider(1, 16, 1, step=1, label="How many images"),
    ]
    return fields, button


def build_page(drawer: Studio, editor: Studio, steps: int) -> gr.Blocks:
    """The page; `steps` are those of the base model to begin with."""
    canvas = gr.ImageEditor(
        label="Paint over what shall be repainted",
        type="pil",
        format="png",  # without loss: what is not painted over stays as it is
        sources=("upload", "clipboard"),
        transforms=(),
        layers=False,
        brush=gr.Brush(editor.pipe.default_size[1] // 8, colors=[PAINT], color_mode="fixed"),
        render=False,
    )
    kept = (3600, 86400)  # every hour, what is older than a day goes, and everything at the end
    with gr.Blocks(title="GLIDE", analytics_enabled=False, delete_cache=kept) as page, gr.Tabs() as tabs:
        for name, pipe, action, inputs in (
            ("Draw", drawer.pipe, drawer.draw, []),
            ("Edit", editor.pipe, editor.edit, [canvas]),
        ):
            with gr.Tab(name, id=name), gr.Row():
                with gr.Column():
                    for component in inputs:
                        component.render()
                    fields, button = add_fields(pipe, name, steps)
                with gr.Column():
                    # Not gradio's third button, which uploads an image to a server.
                    buttons = ["download", "fullscreen"]
                    gallery = gr.Gallery(label="Images", type="pil", format="png", buttons=buttons, interactive=False)
                    again = gr.Button("Edit this image")
            gr.on(
                [button.click, fields[0].submit],
                action,
                inputs + fields,
                gallery,
                api_name=name.lower(),
                concurrency_limit=1,
                concurrency_id="model",  # one at a time over both tabs and all visitors
            )
            # Beside the queue: it need not wait, and gradio 6.31 may lose the answers to queued events that overlap.
            again.click(take, gallery, [canvas, tabs], queue=False, api_visibility="private")
    return page


def load_studios(args: argparse.Namespace) -> tuple[Studio, Studio]:
    """What draws and what edits; a model that does both is loaded once."""
    values = model_values(args)
    drawer = editor = load_pipeline(**values)
    if args.inpaint_model is not None or args.model is None:
        values["model"] = args.inpaint_model
        editor = load_pipeline(**values, checkpoint="inpaint", option="--inpaint-model")
    editor = GLIDEInpaintPipeline.from_pipe(editor)
    editor.set_progress_bar_config(disable=True)
    upsampling = step_values(super_res_steps=args.super_res_steps)
    return Studio(drawer, upsampling), Studio(editor, upsampling)


def serve(args: argparse.Namespace) -> None:
    """Load the models, and serve the page until Ctrl-C.

    Raises:
        UserError: if a model or the address is at fault.
    """
    silence_libraries()
    logging.getLogger("glide_pipelines").addHandler(PageHandler())
    launch(build_page(*load_studios(args), args.steps or DEFAULT_STEPS), args.host, args.port)


def launch(page: gr.Blocks, host: str, port: int | None) -> None:
    """Serve a page until Ctrl-C.

    Raises:
        UserError: if the address is not free.
    """
    try:
        page.launch(server_name=host, server_port=port, show_error=True, quiet=True, prevent_thread_lock=True)
    except OSError as error:
        where = f"--host {host} --port {port or 'from 7860 on'}"
        raise UserError(f"{where}: not an address of this computer, or in use") from error
    print(f"The page is at {page.local_url} until Ctrl-C.", flush=True)
    page.block_thread()
