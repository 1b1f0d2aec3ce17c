"""Draw and edit pictures in a browser.

    python examples/app.py

serves a page to this computer until Ctrl-C; `--host 0.0.0.0` serves it to the whole network, say to a classroom. It
sends no usage statistics, and draws one request at a time.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
from typing import Any

import torch
from PIL import Image, ImageChops

import glide_cli
from glide_pipelines import GLIDEInpaintPipeline, GLIDEPipeline, shapes_checkpoint
from glide_pipelines.cli import load_pipeline, silence_libraries, steps_arguments
from glide_pipelines.pipelines.pipeline_utils import DEFAULT_TIMESTEPS, GLIDEPipelineBase
from glide_pipelines.shapes import BACKGROUNDS, COLOURS, SHAPES


try:
    import gradio as gr
except ImportError:
    print("app.py: error: The app needs the extra `app` (in a clone: `pip install -e '.[app]'`).", file=sys.stderr)
    sys.exit(2)

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
PAINT = "#ff0080"  # seen on every background of the shapes world
PROGRESS = gr.Progress()  # as a parameter's default, the bar of the event that runs
Pictures = list[tuple[Image.Image, str]]  # of a gallery, each with the words below it


class Studio:
    """What the page does with a pipeline; `upsampling` holds its arguments for the upsampler's steps."""

    def __init__(self, pipe: GLIDEPipelineBase, upsampling: dict[str, Any]) -> None:
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
        **pictures: Image.Image,
    ) -> Pictures:
        """Pictures, each with its seed, which draws it again alone; the first one's may be given, as to `glide`."""

        def report(pipe: GLIDEPipelineBase, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
            progress((step + 1, pipe.num_timesteps), desc="enlarging" if pipe.stage == "super_res" else "drawing")
            return {}

        if not prompt.strip():
            raise refusal("The prompt is empty: say what the picture shall show.")
        first = read_seed(seed)
        seeds = range(first, first + num_images)
        try:
            images = self.pipe(
                prompt,
                guidance_scale=guidance_scale,
                num_inference_steps=steps,
                num_images_per_prompt=num_images,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                callback_on_step_end=report,
                **self.upsampling,
                **pictures,
            ).images
        except (TypeError, ValueError) as error:
            raise refusal(str(error)) from error
        return [(image, f"seed {seed}") for image, seed in zip(images, seeds, strict=True)]

    def edit(
        self,
        painting: dict[str, Any] | None,
        prompt: str,
        guidance_scale: float,
        steps: int,
        seed: str,
        num_images: int,
        progress: gr.Progress = PROGRESS,
    ) -> Pictures:
        """As `draw`, but of a picture, and only where the `painting` of a `gr.ImageEditor` has paint on it."""
        if painting is None or painting["background"] is None:
            raise refusal("There is no picture to edit: take one from the other tab, or drop a file into the frame.")
        picture = painting["background"].copy()
        mask = Image.new("L", picture.size)
        for layer in painting["layers"]:
            mask = ImageChops.lighter(mask, layer.getchannel("A").point(lambda alpha: 255 * (alpha > 0)))
        if mask.getbbox() is None:
            raise refusal("Nothing is painted over: take the brush, and paint over what shall be drawn anew.")
        # Photographs are often larger than what the model was trained on, and than what fits into memory.
        height, width = self.pipe.default_size
        picture.thumbnail((width, height))
        pictures = {"image": picture, "mask_image": mask}
        return self.draw(prompt, guidance_scale, steps, seed, num_images, progress, **pictures)


def read_seed(text: str) -> int:
    """The seed that the text names, or a new one if it is empty."""
    if not text.strip():
        return secrets.randbelow(2**32)
    try:
        return glide_cli.seed(text)
    except argparse.ArgumentTypeError as error:
        raise refusal(f"The seed {error}.") from error


def refusal(message: str) -> gr.Error:
    """An error of the visitor's, who reads it on the page; the terminal is spared the traceback."""
    return gr.Error(message, print_exception=False)


class PageHandler(logging.Handler):
    """Shows what the library warns of, such as a prompt that the model does not know, on the page that asked for it."""

    def emit(self, record: logging.LogRecord) -> None:
        gr.Warning(record.getMessage())


def take(gallery: gr.Gallery) -> tuple[Image.Image, gr.Tabs]:
    """The picture that is chosen, for the editor, and the tab where that is."""
    if not gallery.value:
        raise refusal("There is no picture yet.")
    return gallery.value[gallery.selected_index or 0][0], gr.Tabs(selected="Edit")


def add_fields(pipe: GLIDEPipelineBase, name: str, steps: int) -> tuple[list[gr.components.Component], gr.Button]:
    """The fields of a tab, in the order of `Studio.draw`, and its button."""
    prompt = gr.Textbox(label="Prompt", info="What the whole picture shows")
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
        gr.Textbox(label="Seed", info="The same one draws the same picture again; empty, a new one each time"),
        gr.Slider(1, 16, 1, step=1, label="How many pictures"),
    ]
    return fields, button


def build_app(drawer: Studio, editor: Studio, steps: int) -> gr.Blocks:
    """The page; `steps` are those of the base model to begin with."""
    canvas = gr.ImageEditor(
        label="Paint over what shall be drawn anew",
        type="pil",
        format="png",  # without loss: what is not painted over stays as it is
        sources=("upload", "clipboard"),
        transforms=(),
        layers=False,
        brush=gr.Brush(editor.pipe.default_size[1] // 8, colors=[PAINT], color_mode="fixed"),
        render=False,
    )
    kept = (3600, 86400)  # every hour, what is older than a day goes, and everything at the end
    with gr.Blocks(title="GLIDE", analytics_enabled=False, delete_cache=kept) as app, gr.Tabs() as tabs:
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
                    # Not gradio's third button, which uploads a picture to a server.
                    buttons = ["download", "fullscreen"]
                    gallery = gr.Gallery(label="Pictures", type="pil", format="png", buttons=buttons, interactive=False)
                    again = gr.Button("Edit this picture")
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
    return app


def load_studios(args: argparse.Namespace) -> tuple[Studio, Studio]:
    """What draws and what edits; a model that does both is loaded once."""

    def load(model: str | None) -> GLIDEPipeline:
        return load_pipeline(argparse.Namespace(**vars(args) | {"model": model}, no_upsample=False, quiet=True))

    drawer = editor = load(args.model)
    if args.inpaint_model is not None or args.model is None:
        try:
            editor = load(args.inpaint_model or str(shapes_checkpoint("inpaint")))
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(None, str(error).replace("--model", "--inpaint-model")) from error
    editor = GLIDEInpaintPipeline.from_pipe(editor)
    editor.set_progress_bar_config(disable=True)
    upsampling = steps_arguments(argparse.Namespace(steps=None, super_res_steps=args.super_res_steps))
    return Studio(drawer, upsampling), Studio(editor, upsampling)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = glide_cli.Parser(description=__doc__)
    glide_cli.add_model_options(parser)
    shipped = "the one that ships; with --model that one, which then repaints in the implicit mode"
    parser.add_argument("--inpaint-model", metavar="MODEL", help=f"for the tab that edits (default: {shipped})")
    glide_cli.add_sampling_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve (default: %(default)s)")
    port = glide_cli.checked(int, lambda value: 0 < value < 2**16, "a whole number from 1 to 65535")
    parser.add_argument("--port", type=port, help="default: the first free one from 7860 on")
    args = parser.parse_args(argv)
    if isinstance(args.steps, str):
        parser.error(f"--steps: must be a number, which the page can change, got {args.steps}")
    return args


def serve(app: gr.Blocks, host: str, port: int | None) -> None:
    """Until Ctrl-C."""
    try:
        app.launch(server_name=host, server_port=port, show_error=True, quiet=True, prevent_thread_lock=True)
    except OSError as error:
        where = f"--host {host} --port {port or 'from 7860 on'}"
        raise argparse.ArgumentError(None, f"{where}: not an address of this computer, or in use") from error
    print(f"The page is at {app.local_url} until Ctrl-C.", flush=True)
    app.block_thread()


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code, as `glide_cli.exit_code` does."""

    def run() -> None:
        args = parse_args(argv)
        silence_libraries()
        logging.getLogger("glide_pipelines").addHandler(PageHandler())
        app = build_app(*load_studios(args), args.steps or int(DEFAULT_TIMESTEPS))
        serve(app, args.host, args.port)

    return glide_cli.exit_code("app.py", run)


if __name__ == "__main__":
    sys.exit(main())
