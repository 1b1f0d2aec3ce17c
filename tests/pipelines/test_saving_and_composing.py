"""Pipelines in folders and on the Hub, composed from one another's components, and with LoRA weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import diffusers.configuration_utils
import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import constants
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny import tiny_call, tiny_clip, tiny_components, tiny_pipeline, tiny_tokenizer, tiny_unet

import glide_pipelines
from glide_pipelines import (
    CLIPGuidedPipeline,
    GLIDEDDIMScheduler,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
    GLIDETextEncoder,
    GLIDEUNet2DConditionModel,
)


REPO = "someone/tiny-glide"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "pipe"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected():
    return draw(tiny_pipeline())


def draw(pipe, **changes):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**tiny_call(**changes)).images


# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opener", [GLIDEPipeline, DiffusionPipeline])
def test_save_and_load(saved, expected, opener):
    loaded = opener.from_pretrained(saved)
    assert type(loaded) is GLIDEPipeline
    np.testing.assert_allclose(draw(loaded), expected, atol=5e-4)


def test_the_format_names_the_package_not_its_files(saved):
    """Moving a module inside the package must not break a saved checkpoint."""
    index = json.loads((saved / "model_index.json").read_text())
    libraries = {name: value[0] for name, value in index.items() if isinstance(value, list)}
    assert libraries.pop("tokenizer") == "transformers"
    assert set(libraries.values()) == {"glide_pipelines"}


def test_loading_needs_nothing_but_the_import(saved):
    """In a fresh process, where no class has been used yet."""
    code = (
        "import sys, glide_pipelines; from diffusers import DiffusionPipeline; "
        "print(type(DiffusionPipeline.from_pretrained(sys.argv[1])).__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(saved)],
        capture_output=True,
        text=True,
        cwd=Path(glide_pipelines.__file__).parents[1],
    )
    assert result.stdout.strip() == "GLIDEPipeline", result.stderr


def test_optional_components_stay_none(tmp_path):
    pipe = tiny_pipeline(upsampler=False)
    pipe.save_pretrained(tmp_path)
    loaded = GLIDEPipeline.from_pretrained(tmp_path)
    assert loaded.super_res_unet is None and loaded.super_res_text_encoder is None
    np.testing.assert_allclose(draw(loaded), draw(pipe), atol=5e-4)


def test_the_upsampler_may_be_left_out_on_loading(saved):
    loaded = GLIDEPipeline.from_pretrained(saved, super_res_unet=None)
    assert draw(loaded).shape == (1, 8, 8, 3)


def test_settings_survive(tmp_path):
    GLIDEPipeline(**tiny_components(), prompt_domain="shapes").save_pretrained(tmp_path)
    assert GLIDEPipeline.from_pretrained(tmp_path).config.prompt_domain == "shapes"


def test_variants(tmp_path, expected):
    pipe = tiny_pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert (tmp_path / "text_encoder" / "model.fp16.safetensors").is_file()
    # Float32 unless asked otherwise, whatever the file holds, for the text encoder too.
    loaded = DiffusionPipeline.from_pretrained(tmp_path, variant="fp16")
    assert {loaded.unet.dtype, loaded.text_encoder.dtype, loaded.super_res_unet.dtype} == {torch.float32}
    assert np.abs(draw(loaded) - expected).mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_on_loading(saved, dtype):
    loaded = GLIDEPipeline.from_pretrained(saved, dtype=dtype)
    assert {part.dtype for part in loaded.components.values() if isinstance(part, torch.nn.Module)} == {dtype}


def test_components_load_alone(saved):
    assert isinstance(GLIDEUNet2DConditionModel.from_pretrained(saved, subfolder="unet"), GLIDEUNet2DConditionModel)
    assert isinstance(GLIDETextEncoder.from_pretrained(saved, subfolder="text_encoder"), GLIDETextEncoder)
    assert isinstance(GLIDEDDIMScheduler.from_pretrained(saved, subfolder="super_res_scheduler"), GLIDEDDIMScheduler)


def test_another_scheduler_on_loading(saved):
    scheduler = diffusers.UniPCMultistepScheduler.from_pretrained(saved, subfolder="scheduler")
    assert scheduler.config.beta_schedule == "squaredcos_cap_v2"
    loaded = GLIDEPipeline.from_pretrained(saved, scheduler=scheduler)
    assert np.isfinite(draw(loaded)).all()


# -- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(saved, monkeypatch, tmp_path):
    """The repository as an earlier download leaves it in the cache, and a Hub that answers without a network."""
    commit = "0" * 40
    cached = tmp_path / f"models--{REPO.replace('/', '--')}"
    snapshot = cached / "snapshots" / commit
    shutil.copytree(saved, snapshot)
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(diffusers.pipelines.pipeline_utils, "model_info", model_info(snapshot, commit))
    return tmp_path


def model_info(snapshot, commit):
    from huggingface_hub.hf_api import ModelInfo

    def answer(repo_id, **_):
        files = [{"rfilename": p.relative_to(snapshot).as_posix()} for p in snapshot.rglob("*") if p.is_file()]
        return ModelInfo(id=repo_id, sha=commit, siblings=files, private=False, downloads=0, likes=0, tags=[])

    return answer


@pytest.fixture
def fetched(hub, monkeypatch):
    """The names of the files that are asked of the Hub, one by one, with their revisions."""
    fetched = []

    def hf_hub_download(repo_id, filename, *, cache_dir, revision=None, subfolder=None, **_):
        path = filename if subfolder is None else f"{subfolder}/{filename}"
        fetched.append((path, revision))
        return str(next(hub.glob(f"*/snapshots/*/{path}")))

    for module in (diffusers.pipelines.pipeline_utils, diffusers.configuration_utils):
        monkeypatch.setattr(module, "hf_hub_download", hf_hub_download)
    return fetched


def test_the_upsampler_of_a_pair_on_the_hub(hub, fetched):
    loaded = GLIDESuperResolutionPipeline.from_pretrained(REPO, cache_dir=hub, revision="main")
    assert loaded.scale_factor == 4 and "unet" not in loaded.components
    assert {("unet/config.json", "main"), ("super_res_unet/config.json", "main")} < set(fetched)


@pytest.mark.parametrize("opener", [GLIDEPipeline, DiffusionPipeline, AutoPipelineForText2Image])
def test_loading_from_the_hub(hub, fetched, expected, opener):
    """The download path, which refuses components of classes that diffusers cannot find by name."""
    loaded = opener.from_pretrained(REPO, cache_dir=hub)
    assert {name for name, _ in fetched} == {"model_index.json"}
    assert type(loaded) is GLIDEPipeline
    np.testing.assert_allclose(draw(loaded), expected, atol=5e-4)


def test_push_to_hub_carries_the_whole_folder(tmp_path, monkeypatch):
    pushed = {}
    monkeypatch.setattr(
        diffusers.pipelines.pipeline_utils, "create_repo", lambda repo_id, **_: type("Url", (), {"repo_id": repo_id})
    )

    def upload(self, working_dir, repo_id, **_):
        pushed[repo_id] = {p.relative_to(working_dir).as_posix() for p in Path(working_dir).rglob("*") if p.is_file()}

    monkeypatch.setattr(GLIDEPipeline, "_upload_folder", upload)
    tiny_pipeline().save_pretrained(str(tmp_path / "pipe"), push_to_hub=True, repo_id=REPO)
    assert {"model_index.json", "unet/config.json", "README.md", "tokenizer/tokenizer_config.json"} <= pushed[REPO]


# -- composition ------------------------------------------------------------------------------------------------------


def test_from_pipe_shares_components_as_they_are(expected):
    pipe = tiny_pipeline()
    pipe.super_res_unet.to(torch.bfloat16)
    other = GLIDEPipeline.from_pipe(pipe)
    for name, component in pipe.components.items():
        assert other.components[name] is component
    assert pipe.super_res_unet.dtype == torch.bfloat16 and pipe.unet.dtype == torch.float32
    np.testing.assert_array_equal(draw(other), draw(pipe))


def test_from_pipe_replaces_and_casts():
    pipe = tiny_pipeline()
    scheduler = GLIDEDDIMScheduler(beta_schedule="squaredcos_cap_v2")
    other = GLIDEPipeline.from_pipe(pipe, scheduler=scheduler, super_res_unet=None, dtype=torch.bfloat16)
    assert other.scheduler is scheduler and pipe.scheduler is not scheduler
    assert other.super_res_unet is None and pipe.super_res_unet is not None
    assert other.unet.dtype == torch.bfloat16
    assert GLIDEPipeline.from_pipe(pipe, torch_dtype=torch.float16).unet.dtype == torch.float16


def test_from_pipe_names_what_does_not_fit():
    with pytest.raises(TypeError, match="GLIDEPipeline has no `vae`"):
        GLIDEPipeline.from_pipe(tiny_pipeline(), vae=None)
    bare = diffusers.DDPMPipeline(unet=tiny_unet(), scheduler=GLIDEDDIMScheduler())
    with pytest.raises(
        ValueError, match=r"DDPMPipeline lacks what GLIDEPipeline needs; pass `tokenizer`, `text_encoder`"
    ):
        GLIDEPipeline.from_pipe(bare)


def test_components_and_a_constructor_make_the_same_pipeline(expected):
    pipe = tiny_pipeline()
    np.testing.assert_array_equal(draw(GLIDEPipeline(**pipe.components)), expected)


# -- LoRA -------------------------------------------------------------------------------------------------------------


def lora(model, targets):
    """Adapter weights that change what the model does."""
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    weights = get_peft_model_state_dict(model)
    return {name: 0.5 + tensor for name, tensor in weights.items()}


def test_a_lora_of_a_model_of_another_width_is_refused_in_one_line(tmp_path, capfd):
    unet_lora = lora(tiny_unet(3, 8, 1, block_out_channels=(8, 32)), ["to_q", "to_out.0"])
    GLIDEPipeline.save_lora_weights(tmp_path, unet_lora_layers=unet_lora)
    message = r"^The LoRA is of another model: it adapts 32 channels of `unet`'s .*, which has 16\.$"
    with pytest.raises(ValueError, match=message):
        tiny_pipeline().load_lora_weights(str(tmp_path))
    assert "size mismatch" not in capfd.readouterr().err


def test_lora_weights_load_save_and_unload(tmp_path, expected):
    unet_lora = lora(tiny_unet(3, 8, 1), ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"])
    text_lora = lora(tiny_pipeline().text_encoder, ["q_proj", "k_proj", "v_proj", "out_proj"])
    GLIDEPipeline.save_lora_weights(tmp_path, unet_lora_layers=unet_lora, text_encoder_lora_layers=text_lora)
    pipe = tiny_pipeline()
    pipe.load_lora_weights(str(tmp_path), weight_name="pytorch_lora_weights.safetensors", adapter_name="style")
    changed = draw(pipe)
    assert not np.allclose(changed, expected, atol=1e-3)
    assert pipe.get_list_adapters() == {"unet": ["style"], "text_encoder": ["style"]}
    np.testing.assert_allclose(draw(pipe, cross_attention_kwargs={"scale": 0.0}), expected, atol=1e-4)
    weaker = draw(pipe, cross_attention_kwargs={"scale": 0.5})
    assert not np.allclose(weaker, changed, atol=1e-3) and not np.allclose(weaker, expected, atol=1e-3)
    np.testing.assert_allclose(draw(pipe), changed, atol=1e-5)  # the scale was that call's
    pipe.fuse_lora()
    np.testing.assert_allclose(draw(pipe), changed, atol=1e-3)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-4)


def test_other_pipelines_are_left_alone():
    """Registering with diffusers adds names and changes none."""
    assert diffusers.GLIDEPipeline is GLIDEPipeline
    assert StableDiffusionPipeline.__module__.startswith("diffusers.")


def test_a_checkpoint_may_recommend_a_guidance_scale(tmp_path):
    pipe = tiny_pipeline()
    assert (pipe.default_guidance_scale, GLIDEInpaintPipeline.from_pipe(pipe).default_guidance_scale) == (3.0, 5.0)
    pipe.register_to_config(default_guidance_scale=1.5)
    pipe.save_pretrained(tmp_path)

    loaded = GLIDEPipeline.from_pretrained(tmp_path)
    for task in (GLIDEPipeline, GLIDEImg2ImgPipeline, GLIDEInpaintPipeline):
        assert GLIDEPipeline.from_pipe(task.from_pipe(loaded)).default_guidance_scale == 1.5
    guided = CLIPGuidedPipeline.from_pipe(loaded, clip_model=tiny_clip(), clip_tokenizer=tiny_tokenizer())
    assert guided.default_guidance_scale == 1.0
    assert GLIDEPipeline.from_pipe(guided).default_guidance_scale == 1.5
    draw(loaded, guidance_scale=None)
    assert loaded.guidance_scale == 1.5
    draw(loaded, guidance_scale=4.0)
    assert loaded.guidance_scale == 4.0
