"""What the editing pipelines share: components, saving, errors of unreadable files."""

import io

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from editing import MASK, PICTURE, picture, quiet, refused
from PIL import Image
from tiny import tiny_pipeline

from glide_pipelines import (
    GLIDEDDIMScheduler,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
)


def test_a_file_that_cannot_be_read_is_named():
    truncated = io.BytesIO()
    PICTURE.resize((200, 200)).save(truncated, "PNG")
    truncated = truncated.getvalue()[:20000]
    for cls in (GLIDEInpaintPipeline, GLIDEImg2ImgPipeline, GLIDESuperResolutionPipeline):
        pipe = quiet(cls.from_pipe(tiny_pipeline()))
        mask = {"mask_image": MASK} if cls is GLIDEInpaintPipeline else {}
        with refused(pipe, ValueError, "`image` cannot be read: "):
            pipe("red", image=Image.open(io.BytesIO(truncated)), **mask)
        if mask:
            with refused(pipe, ValueError, "`mask_image` cannot be read: "):
                pipe("red", image=PICTURE, mask_image=Image.open(io.BytesIO(truncated)))


def test_pipelines_compose():
    """Text to image, SDEdit, enlarging and implicit inpainting share a checkpoint's components."""
    pipe = tiny_pipeline()
    for cls in (GLIDEImg2ImgPipeline, GLIDEInpaintPipeline, GLIDESuperResolutionPipeline, GLIDEPipeline):
        other = cls.from_pipe(pipe)
        assert other.super_res_unet is pipe.super_res_unet
    assert GLIDEPipeline.from_pipe(GLIDEInpaintPipeline.from_pipe(pipe)).unet is pipe.unet
    assert isinstance(GLIDEInpaintPipeline.from_pipe(pipe).super_res_scheduler, GLIDEDDIMScheduler)


def test_numbers_of_numpy_are_numbers():
    quick = {"prompt": "red", "super_res_num_inference_steps": 1}
    enlarger = quiet(GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline()))
    tiles = {"tile_size": np.int64(32), "tile_overlap": np.int64(4)}
    assert enlarger(image=PICTURE, **tiles, **quick).images[0].size == (128, 128)
    inpaint = quiet(GLIDEInpaintPipeline.from_pipe(tiny_pipeline()))
    crop = {"padding_mask_crop": np.int64(4), "num_inference_steps": 1}
    assert inpaint(image=PICTURE, mask_image=MASK, **crop, **quick).images[0].size == (32, 32)


@pytest.mark.parametrize("cls", [GLIDEImg2ImgPipeline, GLIDESuperResolutionPipeline])
def test_the_other_pipelines_save_and_load(cls, tmp_path):
    pipe = quiet(cls.from_pipe(tiny_pipeline()))
    pipe.save_pretrained(tmp_path)
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is cls

    small = picture(8, 8)
    steps = {"super_res_num_inference_steps": 2} | ({} if "unet" not in pipe.components else {"num_inference_steps": 2})

    def draw(pipe):
        seeded = torch.Generator().manual_seed(0)
        return pipe("red", image=small, generator=seeded, output_type="np", **steps).images

    np.testing.assert_allclose(draw(loaded), draw(pipe), atol=5e-4)
