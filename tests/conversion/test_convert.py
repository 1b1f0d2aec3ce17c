"""From files to a folder that the pipeline opens, and back."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image
from recorded import recorded_state_dict, write_glide_vocabulary, write_recorded_checkpoint
from safetensors.torch import load_file
from small import HEAD_DIM, OPTIONS, PAIRS, arguments, script, small_networks
from tiny import tiny_call

import glide_cli
from glide_pipelines import GLIDEDDIMScheduler, GLIDEDDPMScheduler, GLIDEInpaintPipeline, GLIDEPipeline
from glide_pipelines.conversion import (
    RELEASED_FILES,
    ConversionError,
    convert,
    convert_diffusers_to_glide,
    convert_glide_to_diffusers,
)


@pytest.fixture(scope="module")
def folder(files, pair, tmp_path_factory):
    """A converted pair."""
    return convert_pair(files, pair, tmp_path_factory.mktemp("converted") / "glide")


def convert_pair(files, pair, dump_path, **options):
    base, upsampler = (files / f"{kind}.pt" for kind in pair)
    options = {"tokenizer": files / "tokenizer"} | OPTIONS | options
    return convert_glide_to_diffusers(base, dump_path, upsampler, **options)


def test_the_folder_holds_the_networks(files, folder, pair):
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is (GLIDEInpaintPipeline if "inpaint" in pair[0] else GLIDEPipeline)
    for prefix, seed, kind in (("", 0, pair[0]), ("super_res_", 1, pair[1])):
        unet, text_encoder = small_networks(kind, seed=seed)
        for network, original in ((f"{prefix}unet", unet), (f"{prefix}text_encoder", text_encoder)):
            converted = getattr(pipe, network)
            weights = original.state_dict()
            assert converted.state_dict().keys() == weights.keys()
            assert all(torch.equal(tensor, weights[key]) for key, tensor in converted.state_dict().items())
        assert dict(getattr(pipe, f"{prefix}unet").config)["attention_head_dim"] == HEAD_DIM
        config = getattr(pipe, f"{prefix}text_encoder").config
        assert config.pad_token_id == config.eos_token_id == 257
    assert (pipe.unet.config.sample_size, pipe.super_res_unet.config.sample_size) == (16, 32)


def test_the_folder_is_what_the_pipeline_itself_would_save(folder, tmp_path):
    DiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path)
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.name != "README.md"}
    assert paths == {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    for path in paths:
        if path.suffix == ".json":
            ours, theirs = (json.loads((root / path).read_text()) for root in (folder, tmp_path))
            assert ours == {key: value for key, value in theirs.items() if key != "_name_or_path"}, path


def test_schedulers_are_those_of_the_release(folder, pair):
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe.scheduler) is GLIDEDDPMScheduler
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert type(pipe.super_res_scheduler) is (GLIDEDDPMScheduler if "inpaint" in pair[0] else GLIDEDDIMScheduler)
    assert pipe.super_res_scheduler.config.beta_schedule == "linear"


def test_the_converted_pipeline_generates(folder, pair):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    image = {}
    if "inpaint" in pair[0]:
        image = {"image": np.zeros((32, 32, 3), np.float32), "mask_image": np.ones((32, 32), np.float32)}
    assert pipe(**tiny_call(**image)).images.shape == (1, 32, 32, 3)


def test_a_base_model_alone(files, tmp_path):
    folder = convert_glide_to_diffusers(files / "base.pt", tmp_path / "glide", tokenizer=files / "tokenizer", **OPTIONS)
    pipe = GLIDEPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.super_res_unet is pipe.super_res_text_encoder is pipe.super_res_scheduler is None
    assert pipe(**tiny_call()).images.shape == (1, 16, 16, 3)
    assert [file.name for file in convert_diffusers_to_glide(folder, tmp_path / "back")] == ["base.pt"]
    card = (folder / "README.md").read_text()
    assert "super_res_unet" not in card
    assert "steps of the upsampler" not in card


def test_the_way_back_is_exact(files, folder, pair, tmp_path):
    written = convert_diffusers_to_glide(folder, tmp_path / "back")
    assert written == [tmp_path / "back" / RELEASED_FILES[kind] for kind in pair]
    assert sorted(written) == sorted((tmp_path / "back").iterdir())
    for file, kind in zip(written, pair, strict=True):
        original, result = (torch.load(path, weights_only=True) for path in (files / f"{kind}.pt", file))
        assert list(result) == list(original)
        for key, tensor in original.items():
            assert result[key].dtype == tensor.dtype
            assert torch.equal(result[key], tensor), key
        # Each tensor with its own bytes, once.
        assert file.stat().st_size == pytest.approx((files / f"{kind}.pt").stat().st_size, rel=0.01)


def test_what_the_folder_is_fine_tuned_to_goes_back_too(folder, pair, tmp_path):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.unet.mid_block.attentions[0].to_k.weight.data += 1
    pipe.save_pretrained(tmp_path / "tuned")
    file, _ = convert_diffusers_to_glide(tmp_path / "tuned", tmp_path / "back")
    before, after = (
        torch.load(path / RELEASED_FILES[pair[0]], weights_only=True)["middle_block.1.qkv.weight"]
        for path in (convert_diffusers_to_glide(folder, tmp_path / "before")[0].parent, file.parent)
    )
    change = (after - before).unflatten(0, (-1, 3, HEAD_DIM))
    torch.testing.assert_close(change[:, 1], torch.ones_like(change[:, 1]))
    assert not change[:, [0, 2]].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_and_variant(files, tmp_path, dtype):
    folder = convert_pair(files, PAIRS[0], tmp_path / "glide", dtype=dtype, variant="half")
    weights = sorted(path.name for path in folder.rglob("*.safetensors"))
    assert weights == ["diffusion_pytorch_model.half.safetensors"] * 2 + ["model.half.safetensors"] * 2
    for path in folder.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {getattr(torch, dtype)}
    pipe = GLIDEPipeline.from_pretrained(folder, variant="half", dtype=getattr(torch, dtype))
    assert pipe.unet.dtype == pipe.text_encoder.dtype == getattr(torch, dtype)
    with pytest.raises(ConversionError, match=r"`model_path` \(.*glide\): "):
        convert_diffusers_to_glide(folder, tmp_path / "back")
    file, _ = convert_diffusers_to_glide(folder, tmp_path / "back", variant="half")
    original = torch.load(files / "base.pt", weights_only=True)
    for key, tensor in torch.load(file, weights_only=True).items():
        assert torch.equal(tensor, original[key].to(getattr(torch, dtype)).float())


def test_half_precision_files_are_stored_as_asked(files, tmp_path):
    state_dict = torch.load(files / "base.pt", weights_only=True)
    torch.save({key: tensor.half() for key, tensor in state_dict.items()}, tmp_path / "half.pt")
    folder = convert_glide_to_diffusers(
        tmp_path / "half.pt", tmp_path / "glide", tokenizer=files / "tokenizer", **OPTIONS
    )
    assert {tensor.dtype for tensor in load_file(folder / "unet/diffusion_pytorch_model.safetensors").values()} == {
        torch.float32
    }


def test_files_from_before_the_zip_format(files, folder, pair, tmp_path):
    for kind in pair:
        state_dict = torch.load(files / f"{kind}.pt", weights_only=True)
        torch.save(state_dict, tmp_path / f"{kind}.pt", _use_new_zipfile_serialization=False)
    shutil.copytree(files / "tokenizer", tmp_path / "tokenizer")
    old = convert_pair(tmp_path, pair, tmp_path / "glide")
    for path in folder.rglob("*.safetensors"):
        assert path.read_bytes() == (old / path.relative_to(folder)).read_bytes()


def test_an_empty_folder_is_filled(files, tmp_path):
    (tmp_path / "empty").mkdir()
    folder = convert_pair(files, PAIRS[0], tmp_path / "empty")
    assert folder == tmp_path / "empty"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert (folder / "model_index.json").is_file()


def test_missing_parents_are_made(files, tmp_path):
    assert convert_pair(files, PAIRS[0], tmp_path / "a" / "b").is_dir()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o777


def test_the_model_card(files, folder, pair):
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "mit"
    assert data["pipeline_tag"] == "text-to-image"
    assert data["library_name"] == "diffusers"
    assert "glide" in data["tags"]
    assert ("inpainting" in data["tags"]) == ("inpaint" in pair[0])
    for kind in pair:
        assert f"| `{kind}.pt` | `{hashlib.sha256((files / f'{kind}.pt').read_bytes()).hexdigest()}` |" in card.text
    assert "pip install" in card.text.split("## Use\n\n```bash\n")[1].split("```python")[0]
    for fact in ("`" + pair[0] + ".pt`", "16 x 16", "32 x 32", "people", "hate symbols", "Research", "MIT"):
        assert fact in card.text
    unet, text_encoder = small_networks(pair[0])
    assert f"{unet.num_parameters():,}" in card.text
    assert f"{text_encoder.num_parameters():,}" in card.text
    assert "{" not in card.text


def test_the_card_s_example_runs(files, pair, tmp_path, monkeypatch):
    convert_pair(files, pair, tmp_path / "my glide", dtype="bfloat16", variant="bf16")
    code = ModelCard.load(tmp_path / "my glide" / "README.md").text.split("```python\n")[1].split("```")[0]
    code = code.replace(".images[0]", ", num_inference_steps=1, super_res_num_inference_steps=1).images[0]", 1)
    code = code.replace("), num_inference", ", num_inference", 1)
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    Image.new("RGB", (32, 32), "white").save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["edited" if "inpaint" in pair[0] else "image"].size == (32, 32)
    assert names["pipe"].unet.dtype == names["pipe"].super_res_text_encoder.dtype == torch.bfloat16


def test_push_to_hub(files, tmp_path, monkeypatch):
    calls = []

    def create_repo(repo_id, **kwargs):
        calls.append(("create", repo_id))
        return type("Url", (), {"repo_id": f"somebody/{repo_id}"})

    def upload_folder(repo_id, folder_path, **kwargs):
        calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(convert, "create_repo", create_repo)
    monkeypatch.setattr(convert, "upload_folder", upload_folder)
    folder = convert_pair(files, PAIRS[0], tmp_path / "glide", push_to_hub="glide")
    assert calls == [("create", "glide"), ("upload", "somebody/glide", sorted(path.name for path in folder.iterdir()))]
    assert 'from_pretrained("glide")' in ModelCard.load(folder / "README.md").text


def test_a_failing_upload_leaves_the_folder(files, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("401\nnot logged in")

    monkeypatch.setattr(convert, "create_repo", refuse)
    with pytest.raises(ConversionError, match=r"^`push_to_hub` \(me/glide\): the upload failed \(401\); .* complete$"):
        convert_pair(files, PAIRS[0], tmp_path / "glide", push_to_hub="me/glide")
    assert GLIDEPipeline.from_pretrained(tmp_path / "glide")


def test_the_scripts(files, tmp_path, capsys):
    given = {"checkpoint_path": files / "base.pt", "super_res_checkpoint_path": files / "upsample.pt"}
    given |= {"tokenizer": files / "tokenizer", "dump_path": tmp_path / "glide"} | OPTIONS
    script("convert_glide_to_diffusers").main(arguments(**given, dtype="float16", variant="fp16"))
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'glide'}\n"
    assert (tmp_path / "glide/unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    script("convert_diffusers_to_glide").main(
        arguments(model_path=tmp_path / "glide", dump_path=tmp_path / "back", variant="fp16")
    )
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'back/base.pt'}\nWrote {tmp_path / 'back/upsample.pt'}\n"


def test_the_command(files, tmp_path, capsys):
    """`glide convert`, in both directions, with hyphens and underscores."""
    given = {"checkpoint-path": files / "base.pt", "tokenizer": files / "tokenizer", "dump_path": tmp_path / "glide"}
    assert glide_cli.main(["convert", *arguments(**given, **OPTIONS)]) == 0
    given = {"model-path": tmp_path / "glide", "dump-path": tmp_path / "back"}
    assert glide_cli.main(["convert", *arguments(**given)]) == 0
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'glide'}\nWrote {tmp_path / 'back/base.pt'}\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dump-path": "x"}, "one of the arguments --checkpoint-path"),
        ({"model-path": "x", "checkpoint-path": "y", "dump-path": "z"}, "not allowed with argument"),
        (
            {"model-path": "x", "dump-path": "z", "dtype": "float16"},
            "--dtype is not for converting back (--model-path)",
        ),
        ({"model-path": "none", "dump-path": "z"}, "`model_path` (none): a folder that a GLIDE pipeline was saved to"),
    ],
)
def test_the_command_names_what_is_wrong(tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    assert glide_cli.main(["convert", *arguments(**given)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("glide convert: error: ") and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_recorded_pair_through_the_script(recordings, tmp_path):
    """The whole way: released layout, script, folder, pipeline, against the original's numbers."""
    script("convert_glide_to_diffusers").main(
        arguments(
            checkpoint_path=write_recorded_checkpoint(recordings, "base", tmp_path),
            super_res_checkpoint_path=write_recorded_checkpoint(recordings, "upsample", tmp_path),
            tokenizer=write_glide_vocabulary(tmp_path / "tokenizer", size=512, merges={}),
            dump_path=tmp_path / "glide",
            attention_head_dim=16,
            text_num_attention_heads=4,
            image_size=16,
            super_res_image_size=64,
        )
    )
    pipe = GLIDEPipeline.from_pretrained(tmp_path / "glide")
    for prefix, kind in (("", "base"), ("super_res_", "upsample")):
        recorded = load_file(recordings / f"{kind}.safetensors")
        conditions = {"low_res": recorded["low_res"]} if prefix else {}
        with torch.no_grad():
            hidden = getattr(pipe, f"{prefix}text_encoder")(recorded["tokens"], recorded["mask"]).last_hidden_state
            unet = getattr(pipe, f"{prefix}unet")
            output = unet(recorded["sample"], recorded["timesteps"], hidden, **conditions).sample
        np.testing.assert_allclose(hidden, recorded["text_hidden"], atol=2e-5, rtol=0)
        np.testing.assert_allclose(output, recorded["output"], atol=2e-5, rtol=0)
    for file, name in zip(
        convert_diffusers_to_glide(tmp_path / "glide", tmp_path / "back"), ("base", "upsample"), strict=True
    ):
        original, result = recorded_state_dict(recordings, name), torch.load(file, weights_only=True)
        assert list(result) == list(original)
        assert all(torch.equal(result[key], tensor) for key, tensor in original.items())
