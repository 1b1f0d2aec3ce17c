"""Enlarging: the second stage alone, whole and in tiles."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from editing import picture, quiet, refused
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from tiny import tiny_call, tiny_components, tiny_pipeline, tiny_unet

from glide_pipelines import (
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
)
from glide_pipelines.sampling.tiles import TiledUNet


@pytest.fixture(scope="module")
def enlarger():
    return quiet(GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline()))


def enlarge(pipe, image, **changes):
    return pipe(
        **{
            "prompt": "red",
            "image": image,
            "super_res_num_inference_steps": 2,
            "generator": torch.Generator().manual_seed(0),
            "output_type": "np",
        }
        | changes
    ).images


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (30, 9)])
def test_four_times_as_large(enlarger, height, width):
    assert enlarge(enlarger, picture(height, width)).shape == (1, 4 * height, 4 * width, 3)


def test_as_large_as_the_upsampler_of_the_pipeline_was_trained_to_make_it(tmp_path):
    parts = tiny_components() | {"super_res_unet": tiny_unet(in_channels=6, sample_size=16)}
    pair = GLIDEPipeline(**parts)
    pair.save_pretrained(tmp_path / "pair")
    shared = GLIDESuperResolutionPipeline.from_pipe(pair)
    shared.save_pretrained(tmp_path / "alone")
    opened = [GLIDESuperResolutionPipeline.from_pretrained(tmp_path / name) for name in ("pair", "alone")]
    for pipe in (shared, *opened):
        assert enlarge(quiet(pipe), picture(8, 8)).shape == (1, 16, 16, 3)


def test_the_enlargement_is_that_of_the_upsampler_that_is_given(tmp_path):
    tiny_pipeline(upsampler=False).save_pretrained(tmp_path / "base")
    tiny_pipeline().save_pretrained(tmp_path / "pair")
    names = ("super_res_unet", "super_res_text_encoder", "super_res_scheduler")
    parts = {name: part for name, part in tiny_pipeline().components.items() if name in names}
    parts["super_res_unet"] = tiny_unet(in_channels=6, sample_size=16)  # twice the base's 8
    for folder in ("base", "pair"):
        opened = GLIDESuperResolutionPipeline.from_pretrained(tmp_path / folder, **parts)
        assert opened.scale_factor == 2
    assert GLIDESuperResolutionPipeline.from_pretrained(tmp_path / "pair", enlargement=3).scale_factor == 3


def test_the_base_of_a_pair_stays_closed(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "unet" not in GLIDESuperResolutionPipeline.from_pretrained(tmp_path).components


def test_no_more_is_drawn_than_is_needed(enlarger):
    """The large picture is padded to what the network and the enlargement divide, and no further."""
    seen = []
    hook = enlarger.super_res_unet.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[-2:]))
    try:
        enlarge(enlarger, picture(5, 7), tile_size=22)
        enlarge(enlarger, picture(8, 8), tile_size=18)
    finally:
        hook.remove()
    assert set(seen[:2]) == {(20, 22)} and set(seen[4:]) == {(18, 18)}


def test_lora_weights_are_the_upsampler_s(tmp_path):
    pipe = quiet(GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline()))
    small = picture(8, 8)
    expected = enlarge(pipe, small)
    unet = tiny_unet(6, 32, 3)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    GLIDESuperResolutionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(unet))
    pipe.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors")
    assert pipe.get_active_adapters()
    assert not np.allclose(enlarge(pipe, small), expected, atol=1e-3)
    pipe.unload_lora_weights()
    np.testing.assert_allclose(enlarge(pipe, small), expected, atol=1e-5)


def test_the_standard_names_of_arguments(enlarger):
    """Those of the second stage of a pair mean the same, and one of both is enough."""
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    embeds = enlarger.encode_prompt("a red circle")[2]
    small, common = picture(8, 8), {"output_type": "np"}
    short = enlarger(image=small, prompt_embeds=embeds, latents=noise, num_inference_steps=2, **common).images
    names = {"super_res_prompt_embeds": embeds, "super_res_latents": noise, "super_res_num_inference_steps": 2}
    np.testing.assert_array_equal(enlarger(image=small, **names, **common).images, short)
    spaced = enlarger("a red circle", image=small, latents=noise, timesteps="2", **common).images
    np.testing.assert_allclose(spaced, short, atol=1e-5)
    with pytest.raises(ValueError, match="Pass either `latents` or `super_res_latents`, not both"):
        enlarger("red", image=small, latents=noise, super_res_latents=noise)


def test_a_gradient_steers_it(enlarger):
    small = picture(8, 8)
    brighter = enlarge(enlarger, small, cond_fn=lambda x_t, timestep: torch.full_like(x_t, 5.0))
    assert brighter.mean() > enlarge(enlarger, small).mean() + 0.01


def test_it_is_the_second_stage_of_text_to_image(enlarger):
    """Fed the base stage's picture, with the same noise, it draws what the whole pipeline draws."""
    pipe, small = tiny_pipeline(), {}

    def keep(pipe, step, timestep, tensors):
        if pipe.stage == "base":
            small["image"] = tensors["latents"]
        return {}

    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = pipe(**tiny_call(super_res_latents=noise, callback_on_step_end=keep)).images
    # Through 8 bit, as the pipeline itself does.
    result = enlarge(enlarger, small["image"].clamp(-1, 1), prompt="a red circle", super_res_latents=noise)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_consistency_keeps_the_small_picture(enlarger):
    """Reduced again, the large picture is the small one, however bad the upsampler is; and no pipeline forgets it."""
    small = picture(8, 8).resize((8, 8), Image.Resampling.BILINEAR)

    def difference(pipe):
        large = enlarge(pipe, small)[0].reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
        return np.abs(large - np.asarray(small) / 255).mean()

    whole = GLIDEPipeline(**tiny_pipeline().components, low_res_consistency=True)
    consistent = quiet(GLIDESuperResolutionPipeline.from_pipe(whole))
    assert difference(consistent) < 0.5 * difference(enlarger)


@pytest.mark.parametrize(("height", "width", "tiles"), [(8, 8, 1), (16, 20, 9), (32, 40, 35)])
def test_large_pictures_are_drawn_in_tiles(enlarger, height, width, tiles):
    """What the network sees, and so its memory, does not grow with the picture."""
    sizes = []
    hook = enlarger.super_res_unet.register_forward_pre_hook(lambda m, args: sizes.append(tuple(args[0].shape)))
    try:
        enlarge(enlarger, picture(height, width))
    finally:
        hook.remove()
    assert set(sizes) == {(1, 3, 32, 32)} and len(sizes) == 2 * tiles


def test_tiles_leave_no_seams(enlarger):
    """Between tiled and untiled the difference is no larger on the lines where tiles begin than elsewhere.

    With tiles that all weigh the same up to their edges it is larger: 0.111 against 0.093.
    """
    image = Image.fromarray(np.tile(np.linspace(0, 255, 16, dtype=np.uint8)[:, None, None], (1, 16, 3)))
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    whole = enlarge(enlarger, image, super_res_latents=noise, tile_size=64)[0]
    tiled = enlarge(enlarger, image, super_res_latents=noise, tile_size=32, tile_overlap=16)[0]
    difference = np.abs(np.diff(tiled - whole, axis=1)).mean(axis=(0, 2))
    lines = [start - 1 for start in (16, 32, 48)]
    elsewhere = np.delete(difference, lines)
    assert difference[lines].mean() <= elsewhere.mean()


@pytest.mark.parametrize(
    ("tile", "overlap", "step", "length"),
    [(32, 4, 8, 88), (32, 0, 8, 88), (32, 1, 2, 66), (32, 30, 2, 66), (32, 15, 8, 200), (256, 60, 32, 1120)],
)
def test_tiles_overlap_by_what_was_promised(tile, overlap, step, length):
    spans = TiledUNet(None, tile, overlap, step)._spans(length, torch.device("cpu"))
    starts = [start for start, _, _ in spans]
    assert starts[0] == 0 and starts[-1] == length - tile and all(start % step == 0 for start in starts)
    shared = [before + tile - start for before, start in itertools.pairwise(starts)]
    assert overlap <= min(shared) and max(shared) < tile


def test_where_tiles_disagree_the_passage_is_gradual():
    """Three tiles in a row that predict 0, 1 and 2: from column to column no more than the overlap's share of it."""
    predictions = itertools.count()

    def unet(sample, timestep, low_res, **_):
        return UNet2DConditionOutput(torch.full_like(sample, float(next(predictions))))

    unet.config = SimpleNamespace(out_channels=3)
    tiled = TiledUNet(unet, tile_size=32, tile_overlap=16, step=8)
    rows = tiled(torch.zeros(1, 3, 32, 64), torch.zeros(1), low_res=torch.zeros(1, 3, 8, 16)).sample[0, 0]
    assert (rows == rows[0]).all() and rows[0, 0] == 0 and rows[0, -1] == 2 and next(predictions) == 3
    steps = rows[0].diff()
    assert steps.min() >= 0 and steps.max() <= 1 / 16 + 1e-6


def test_each_tile_sees_its_part_of_the_whole_enlargement():
    def unet(sample, timestep, low_res, **_):
        assert low_res.shape == sample.shape
        return UNet2DConditionOutput(low_res)

    unet.config = SimpleNamespace(out_channels=3)
    low_res = torch.randn(1, 3, 13, 10, generator=torch.Generator().manual_seed(0))
    seen = TiledUNet(unet, tile_size=16, tile_overlap=4, step=4)(torch.zeros(1, 3, 52, 40), torch.zeros(1), low_res)
    torch.testing.assert_close(seen.sample, F.interpolate(low_res, (52, 40), mode="bilinear", align_corners=False))


def test_bad_input_to_enlarging(enlarger):
    for changes, message in (
        ({"image": None}, "Pass `image`"),
        ({"image": np.full((8, 8, 3), np.nan)}, "`image` holds NaN"),
        ({"image": [picture(8, 8)] * 2}, "`image` must be one image, as there is one prompt, got 2"),
        (
            {"image": [picture(8, 8), picture(8, 9)], "prompt": ["a", "b"]},
            r"`image` holds images of different sizes \(8 x 8, 8 x 9\); enlarge one size at a time\.",
        ),
        ({"super_res_latents": torch.zeros(1, 3, 8, 8)}, r"`super_res_latents` must have the shape \[1, 3, 32, 32\]"),
        ({"tile_size": 31}, "`tile_size` must be a multiple of 2"),
        ({"tile_overlap": 31}, "`tile_overlap` must be an integer from 0 to 30, which is `tile_size` less 2, got 31"),
        ({"prompt": None}, "Pass `prompt` or `super_res_prompt_embeds`"),
        ({"super_res_timesteps": "x"}, "super_res_timesteps='x'"),
    ):
        with refused(enlarger, ValueError, message):
            enlarge(enlarger, **{"image": picture(8, 8)} | changes)


def test_enlarging_is_not_guided(enlarger):
    assert enlarger.default_guidance_scale == 1.0


@pytest.mark.parametrize("size", [24, 8])
def test_an_upsampler_of_no_whole_number_of_times_is_refused(size):
    components = tiny_components()
    components["unet"].register_to_config(sample_size=16)
    components["super_res_unet"].register_to_config(sample_size=size)
    with pytest.raises(ValueError, match=f"must be a whole number of times the base's 16, got {size}"):
        GLIDEPipeline(**components)("a red circle")
