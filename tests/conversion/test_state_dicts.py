"""The table between GLIDE's tensors and diffusers': complete, in order, and with the right values."""

import pytest
import torch
from recorded import recorded_networks, recorded_state_dict
from safetensors.torch import load_file
from small import CHANNELS, HEAD_DIM, TEXT_HEADS, small_networks, small_state_dict

from glide_pipelines import GLIDETextConfig, GLIDETextEncoder, GLIDEUNet2DConditionModel
from glide_pipelines.conversion.detection import build_stage, detect_kind, stage_kind
from glide_pipelines.conversion.state_dicts import Correspondence, correspondences, read_weights, to_glide


# Parameters of OpenAI's files, text encoder included.
RELEASED = {
    "base": 385_030_726,
    "base-inpaint": 385_037_638,
    "upsample": 398_361_286,
    "upsample-inpaint": 398_368_198,
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_networks_give_the_originals_numbers(recordings, kind):
    unet, text_encoder = recorded_networks(recordings, kind)
    recorded = load_file(recordings / f"{kind}.safetensors")
    conditions = {"low_res": recorded["low_res"]} if unet.is_upsampler else {}
    if unet.is_inpainter:
        conditions |= {"image": recorded["inpaint_image"], "mask": 1 - recorded["inpaint_mask"]}
    with torch.no_grad():
        hidden = text_encoder(recorded["tokens"], recorded["mask"]).last_hidden_state
        projection = unet.class_embedding(hidden[:, -1])
        output = unet(recorded["sample"], recorded["timesteps"], hidden, **conditions).sample
    for value, name in ((hidden, "text_hidden"), (projection, "text_projection"), (output, "output")):
        torch.testing.assert_close(value, recorded[name], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", CHANNELS)
def test_the_way_back_gives_the_original_file(recordings, kind):
    assert_same(to_glide(*recorded_networks(recordings, kind)), recorded_state_dict(recordings, kind))


@pytest.mark.parametrize("kind", CHANNELS)
def test_the_way_back_gives_what_went_in(kind):
    state_dict = small_state_dict(kind, channels=(32, 64, 32), attention_levels=(1, 2), layers=2)
    stage = build_stage(state_dict, HEAD_DIM, TEXT_HEADS)
    table = correspondences(stage.unet, stage.text_encoder)
    for name in ("unet", "text_encoder"):
        weights = read_weights(state_dict, table, name)
        getattr(stage, name).load_state_dict(weights, strict=True, assign=True)
    assert stage_kind(stage) == kind
    assert stage.name == ("super_res" if "upsample" in kind else "base")
    assert_same(to_glide(stage.unet, stage.text_encoder), state_dict)


def test_fused_projections_are_split_head_by_head():
    # Two heads of three channels. GLIDE stores q, k and v of the first head, then those of the second.
    row = Correspondence("qkv.weight", "unet", ("q", "k", "v"), head_dim=3, conv1d=True)
    fused = torch.arange(18.0).reshape(18, 1, 1).expand(18, 5, 1)
    parts = row.split(fused)
    assert {name: part[:, 0].tolist() for name, part in parts.items()} == {
        "q": [0, 1, 2, 9, 10, 11],
        "k": [3, 4, 5, 12, 13, 14],
        "v": [6, 7, 8, 15, 16, 17],
    }
    assert all(part.shape == (6, 5) for part in parts.values())
    assert torch.equal(row.join(parts), fused)


def test_the_order_is_the_originals():
    keys = list(small_state_dict(channels=(32, 64), attention_levels=(1,), layers=1))
    modules = list(dict.fromkeys(".".join(key.split(".")[:2]) for key in keys))
    assert modules == [
        "positional_embedding",
        "padding_embedding",
        "time_embed.0",
        "time_embed.2",
        *(f"input_blocks.{i}" for i in range(4)),
        *(f"middle_block.{i}" for i in range(3)),
        *(f"output_blocks.{i}" for i in range(4)),
        "out.0",
        "out.2",
        "transformer.resblocks",
        "final_ln.weight",
        "final_ln.bias",
        "token_embedding.weight",
        "transformer_proj.weight",
        "transformer_proj.bias",
    ]
    attention = "norm.weight norm.bias qkv.weight qkv.bias encoder_kv.weight encoder_kv.bias"
    assert [key for key in keys if key.startswith("input_blocks.3.1.")][:6] == [
        f"input_blocks.3.1.{name}" for name in attention.split()
    ]


@pytest.mark.parametrize("kind", RELEASED)
def test_the_released_sizes_are_recognised(kind):
    sizes = (
        ((192, 384, 576, 768), (1, 2, 3), 3)
        if kind.startswith("base")
        else ((192, 192, 384, 384, 768, 768), (3, 4, 5), 2)
    )
    config = GLIDEUNet2DConditionModel.glide_config(*sizes, 512, CHANNELS[kind])
    with torch.device("meta"):
        released = to_glide(GLIDEUNet2DConditionModel(**config), GLIDETextEncoder(GLIDETextConfig()))
    assert sum(tensor.numel() for tensor in released.values()) == RELEASED[kind]
    stage = build_stage(released)
    found = {name: stage.unet.config[name] for name in config}
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()} == config
    text = stage.text_encoder.config
    default = GLIDETextConfig()
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(text, name) == getattr(default, name)
    assert text.max_position_embeddings == 128


@pytest.mark.parametrize(
    "sizes",
    [
        {"channels": (32,), "attention_levels": (), "layers": 1},
        {"channels": (32,), "attention_levels": (0,), "layers": 2},
        {"channels": (32, 32, 64), "attention_levels": (0, 2), "layers": 1},
        {"channels": (64, 32), "attention_levels": (1,), "layers": 3, "width": 64, "context": 5, "vocab": 7},
    ],
)
def test_sizes_are_read_from_the_file(sizes):
    unet, text_encoder = small_networks(**sizes)
    stage = build_stage(to_glide(unet, text_encoder), HEAD_DIM, TEXT_HEADS, sample_size=16)
    assert dict(stage.unet.config) == dict(unet.config)
    assert stage.text_encoder.config.to_dict() == text_encoder.config.to_dict()


def test_kinds(recordings):
    for kind in (*CHANNELS, "clip-text-enc", "clip-image-enc"):
        assert detect_kind(recorded_state_dict(recordings, kind)) == kind
    assert detect_kind({"weight": torch.zeros(2)}) is None


def test_networks_that_hold_more_than_glide_are_refused():
    unet, text_encoder = small_networks()
    unet.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"unet is not GLIDE's: 2 unknown tensors, first 'extra.bias'"):
        to_glide(unet, text_encoder)


def assert_same(state_dict, expected):
    assert list(state_dict) == list(expected)
    for key, tensor in expected.items():
        assert state_dict[key].dtype == tensor.dtype, key
        assert torch.equal(state_dict[key], tensor), key
