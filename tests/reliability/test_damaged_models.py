"""A model that is damaged, or not what its config says, is refused by file and tensor, not filled up at random."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny import tiny_clip, tiny_clip_pipeline, tiny_pipeline
from transformers import AutoModel

from glide_pipelines import (
    CLIPGuidedPipeline,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
    GLIDETextEncoder,
    GLIDEUNet2DConditionModel,
    NoisedCLIPModel,
)


MODELS = {
    "text_encoder": GLIDETextEncoder,
    "unet": GLIDEUNet2DConditionModel,
    "clip_model": NoisedCLIPModel,
}
PIPELINES = [
    CLIPGuidedPipeline,
    DiffusionPipeline,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "pipe"
    tiny_clip_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def saved(whole, tmp_path):
    """A pipeline of every kind of model, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "pipe"))


def weights(folder):
    return next(folder.glob("*.safetensors"))


def damage(folder, change):
    path = weights(folder)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def set_config(path, **changes):
    """Fields of a JSON file, by their dotted names."""
    config = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split(".")
        inner = config
        for key in outer:
            inner = inner[key]
        inner[last] = value
    path.write_text(json.dumps(config))


@pytest.fixture(params=MODELS)
def part(request):
    return request.param


def refuses(part, path, message):
    """The model at a path, or whose file that is."""
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}") as caught:
        MODELS[part].from_pretrained(path if path.is_dir() else path.parent)
    assert "\n" not in str(caught.value)


def a_tensor(folder):
    return max(name for name in load_file(weights(folder)) if name.endswith("bias"))


def test_a_missing_tensor(saved, part):
    name = a_tensor(saved / part)
    damage(saved / part, lambda tensors: tensors.pop(name))
    refuses(part, saved / part, f"'{name}' is missing from the weights")


def test_weights_of_something_else(saved, part):
    save_file({"foreign": torch.zeros(2)}, weights(saved / part), {"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(str(saved / part))):
        MODELS[part].from_pretrained(saved / part)


def test_an_unknown_tensor(saved, part):
    damage(saved / part, lambda tensors: tensors.update(extra=torch.zeros(1)))
    refuses(part, saved / part, "'extra' is unknown to the model")


@pytest.mark.parametrize("name", ["text_model.final_layer_norm.weigth", "vision_model.extra", "logit_scale.extra"])
def test_an_unknown_tensor_in_a_tower_of_clip(saved, name):
    damage(saved / "clip_model", lambda tensors: tensors.update({name: torch.zeros(1)}))
    refuses("clip_model", saved / "clip_model", f"'{name}' is unknown to the model")


def test_a_tensor_of_another_shape(saved, part):
    name = a_tensor(saved / part)
    damage(saved / part, lambda tensors: tensors.update({name: tensors[name].repeat_interleave(2, 0)}))
    refuses(part, saved / part, f"'{name}' has the shape")


@pytest.fixture
def no_luck(monkeypatch):
    """Memory that nobody filled is NaN, not what happened to stand there."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_a_tensor_of_another_shape_is_sampled_anew(saved, part, low_cpu_mem_usage, no_luck):
    name = max(name for name, tensor in load_file(weights(saved / part)).items() if tensor.ndim > 1)
    damage(saved / part, lambda tensors: tensors.update({name: tensors[name].repeat_interleave(2, 0)}))
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True, "dtype": torch.float16}
    model, info = MODELS[part].from_pretrained(saved / part, low_cpu_mem_usage=low_cpu_mem_usage, **options)
    assert [entry[0] for entry in info["mismatched_keys"]] == [name]
    parameter = model.get_parameter(name)
    assert parameter.dtype == torch.float16 and parameter.requires_grad
    assert parameter.isfinite().all() and parameter.std() > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_weight_that_is_not_finite(saved, part, value, dtype):
    name = a_tensor(saved / part)
    damage(saved / part, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    with pytest.raises(ValueError, match=f"{re.escape(str(saved / part))}: '{name}' holds NaN or infinity"):
        MODELS[part].from_pretrained(saved / part, dtype=dtype)


def test_a_file_that_is_cut_short(saved, part):
    path = weights(saved / part)
    path.write_bytes(path.read_bytes()[:-100])
    refuses(part, path, "is cut short or damaged")


def test_a_config_that_is_none(saved, part):
    (saved / part / "config.json").write_text("[1, 2]")
    refuses(part, saved / part / "config.json", "must hold a JSON object, not a list")


def test_what_cannot_be_made_leaves_torch_as_it_was(saved, part):
    """diffusers sets torch's default dtype to that of the model, and where that fails does not set it back."""
    field = {"unet": "act_fn", "text_encoder": "hidden_act", "clip_model": "text_config.hidden_act"}[part]
    set_config(saved / part / "config.json", **{field: "none"})
    with pytest.raises((ValueError, KeyError)):
        MODELS[part].from_pretrained(saved / part, dtype=torch.float16)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("text_encoder", "num_hidden_layers", 4000),
        ("text_encoder", "vocab_size", 10**9),
        ("text_encoder", "max_position_embeddings", 10**9),
        ("text_encoder", "intermediate_size", 10**6),
        ("text_encoder", "num_attention_heads", 0),
        ("unet", "layers_per_block", 4000),
        ("unet", "layers_per_block", [4000, 1]),
        ("unet", "block_out_channels", [8, 32]),
        ("unet", "block_out_channels", [8] * 4000),
        ("unet", "sample_size", 0),
        ("unet", "sample_size", [8, 0]),
        ("unet", "sample_size", None),
        ("unet", "norm_num_groups", 0.5),
        ("unet", "attention_head_dim", 0),
        ("unet", "norm_num_groups", 0),
        ("unet", "time_embedding_dim", 10**9),
        ("clip_model", "text_config.num_hidden_layers", 4000),
        ("clip_model", "vision_config.num_hidden_layers", 4000),
        ("clip_model", "vision_config.num_train_timesteps", 10**8),
        ("clip_model", "vision_config.patch_size", 1),
        ("clip_model", "projection_dim", 10**7),
    ],
)
def test_a_size_that_the_weights_do_not_have(saved, part, field, value):
    """Told at once, from the header of the weights: nothing of that size is made."""
    config = saved / part / "config.json"
    set_config(config, **{field: value})
    refuses(part, config, re.escape(field.split(".")[-1]))


@pytest.mark.parametrize(
    ("part", "field"), [("text_encoder", "layer_norm_eps"), ("clip_model", "text_config.layer_norm_eps")]
)
def test_a_norm_without_its_number(saved, part, field):
    set_config(saved / part / "config.json", **{field: None})
    refuses(part, saved / part, "layer_norm_eps")


@pytest.mark.parametrize("field", ["norm_eps", "freq_shift", "resnet_out_scale_factor", "dropout"])
@pytest.mark.parametrize("value", [None, "1", [1], float("nan")])
def test_a_number_that_is_none(saved, field, value):
    """With which diffusers makes the model, and fails once it runs."""
    config = saved / "unet" / "config.json"
    set_config(config, **{field: value})
    refuses("unet", config, f"`{field}` must be a finite number, got")


def test_an_index_that_leaves_its_folder(saved, part):
    path = weights(saved / part)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(path), f"../{part}/../../{path.name}")}
    shutil.copy(path, saved.parent / path.name)
    (path.parent / f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()
    refuses(part, saved / part, "which is no file of its folder")


def test_auto_model_checks_too(saved):
    damage(saved / "text_encoder", lambda tensors: tensors.pop("padding_embedding"))
    with pytest.raises(ValueError, match="text_encoder: 'padding_embedding' is missing"):
        AutoModel.from_pretrained(saved / "text_encoder")


@pytest.mark.parametrize("opener", PIPELINES)
@pytest.mark.parametrize("part", ["super_res_text_encoder", "super_res_unet"])
def test_every_pipeline_checks_its_models(saved, opener, part):
    name = a_tensor(saved / part)
    damage(saved / part, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"{part}: '{name}' is missing"):
        opener.from_pretrained(saved)


def test_shards_and_variants_load(tmp_path):
    pipe = tiny_pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    loaded = GLIDEPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    torch.testing.assert_close(loaded.unet.state_dict(), pipe.unet.state_dict())
    first = min((tmp_path / "unet").glob("*.safetensors"))
    tensors = load_file(first)
    name = min(tensors)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, first, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{first.name}: '{name}' is missing"):
        GLIDEPipeline.from_pretrained(tmp_path, variant="fp16")


def test_a_whole_model_says_nothing(tmp_path, caplog):
    tiny_clip().save_pretrained(tmp_path)
    assert torch.equal(NoisedCLIPModel.from_pretrained(tmp_path).logit_scale, tiny_clip().logit_scale)
    assert not caplog.records
