"""A pipeline's folder whose parts are no models, or do not fit each other, is refused in one line that names them."""

import importlib
import json
import shutil
from pathlib import Path

import diffusers
import pytest
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler
from diffusers.utils import import_utils
from test_damaged_models import set_config
from tiny import tiny_components, tiny_pipeline, tiny_tokenizer

import glide_cli
from glide_pipelines import GLIDEDDIMScheduler, GLIDEDDPMScheduler, GLIDEPipeline, GLIDESuperResolutionPipeline


@pytest.fixture
def saved(model, tmp_path):
    return Path(shutil.copytree(model, tmp_path / "pipe"))


def damage_index(folder):
    (folder / "model_index.json").write_text("[]")


def damage_class(folder):
    set_config(folder / "model_index.json", unet=["glide_pipelines", "GLIDEUNet3D"])


def damage_entry(folder):
    set_config(folder / "model_index.json", unet="GLIDEUNet2DConditionModel")


def damage_context(length):
    return lambda folder: set_config(folder / "tokenizer/tokenizer_config.json", model_max_length=length)


def damage_ids(folder):
    """A token whose id is beyond the text encoder's vocabulary."""
    path = folder / "tokenizer/tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["re"] = 300
    path.write_text(json.dumps(content))


def damage_timesteps(number):
    return lambda folder: set_config(folder / "scheduler/scheduler_config.json", num_train_timesteps=number)


def damage_betas(folder):
    betas = [0.01] * 999 + [float("nan")]
    set_config(folder / "scheduler/scheduler_config.json", trained_betas=betas)


def damage_stock_scheduler(folder):
    EulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    set_config(folder / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    damage_timesteps(10**8)(folder)


def damage_guidance(folder):
    set_config(folder / "model_index.json", default_guidance_scale="3")


def damage_size(folder):
    set_config(folder / "unet/config.json", sample_size=0)


DAMAGES = {
    "index": (damage_index, "model_index.json must hold a JSON object, not a list"),
    "class": (damage_class, "model_index.json: `unet` names 'GLIDEUNet3D', which glide_pipelines does not have"),
    "entry": (damage_entry, "model_index.json: `unet` must be a library and a class"),
    "guidance": (damage_guidance, "model_index.json: `default_guidance_scale` must be a finite number, got '3'"),
    "no context": (damage_context(None), "`model_max_length` must be 12, the context of `text_encoder`"),
    "huge context": (damage_context(10**9), "`model_max_length` must be 12, the context of `text_encoder`"),
    "ids": (damage_ids, "token ids up to 300, but `text_encoder` has a vocabulary of 258"),
    "no timesteps": (damage_timesteps(0), "scheduler_config.json: `num_train_timesteps` must be an integer from 1 to"),
    "many timesteps": (damage_timesteps(10**8), "scheduler_config.json: `num_train_timesteps` must be an integer from"),
    "stock scheduler": (damage_stock_scheduler, "scheduler_config.json: `num_train_timesteps` must be an integer"),
    "betas": (damage_betas, "scheduler_config.json: `trained_betas` must lie between 0 and 1"),
    "size": (damage_size, "config.json: `sample_size` must be 1 or more, got 0"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_one_line_names_what_is_wrong(saved, kind):
    damage, message = DAMAGES[kind]
    damage(saved)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        GLIDEPipeline.from_pretrained(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", sorted(set(DAMAGES) - {"index", "class", "entry", "guidance", "stock scheduler"}))
def test_diffusers_own_door_checks_too(saved, kind):
    """What [`DiffusionPipeline`] reads itself, the index, is its own."""
    damage, message = DAMAGES[kind]
    damage(saved)
    with pytest.raises(ValueError, match=message):
        DiffusionPipeline.from_pretrained(saved)


@pytest.mark.parametrize("kind", DAMAGES)
def test_glide_prints_one_line(saved, kind, tmp_path, capsys):
    damage, message = DAMAGES[kind]
    damage(saved)
    assert glide_cli.main(["a red circle", "-o", str(tmp_path / "image.png"), "--model", str(saved)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.count("\n") == 0
    assert not (tmp_path / "image.png").exists()


@pytest.mark.parametrize("path", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", ["", "{", "null", "3", '"a"', "{}", "[" * 100_000, "\0"])
def test_glide_on_json_that_is_none(saved, path, content, tmp_path, capsys):
    if content == "{}" and path.startswith("scheduler"):
        pytest.skip("diffusers takes the defaults for what a config does not say")
    (saved / path).write_text(content)
    code = glide_cli.main(["a", "-o", str(tmp_path / "image.png"), "--model", str(saved), "--steps", "1"])
    assert code == 2 and capsys.readouterr().err.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("name", "package"), [("LMSDiscreteScheduler", "scipy"), ("DPMSolverSDEScheduler", "torchsde")]
)
def test_a_scheduler_names_the_package_that_it_needs(saved, name, package, tmp_path, capsys, monkeypatch):
    """Optional ones of diffusers, which stands in for a scheduler where they are missing."""
    stand_ins = importlib.import_module(f"diffusers.utils.dummy_torch_and_{package}_objects")
    monkeypatch.setattr(diffusers, name, getattr(stand_ins, name))
    message = import_utils.BACKENDS_MAPPING[package][1]
    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, package, (lambda: False, message))
    DDIMScheduler().save_pretrained(saved / "scheduler")
    set_config(saved / "model_index.json", scheduler=["diffusers", name])
    with pytest.raises(ImportError, match=f"{name} requires the {package} library"):
        GLIDEPipeline.from_pretrained(saved)
    assert glide_cli.main(["a red circle", "-o", str(tmp_path / "image.png"), "--model", str(saved)]) == 2
    error = capsys.readouterr().err.strip()
    assert f"{name} requires the {package} library" in error and "\n" not in error


def test_the_upsampler_alone_checks_the_index(saved):
    damage_index(saved)
    with pytest.raises(ValueError, match="must hold a JSON object"):
        GLIDESuperResolutionPipeline.from_pretrained(saved)


def test_components_must_fit():
    components = tiny_components()
    with pytest.raises(ValueError, match=r"`model_max_length` must be 12, .* got 20"):
        GLIDEPipeline(**components | {"tokenizer": tiny_tokenizer(20)})
    components["text_encoder"].config.hidden_size = 20
    with pytest.raises(ValueError, match="`text_encoder` gives vectors of 20, but `unet` reads 16"):
        GLIDEPipeline(**components)
    with pytest.raises(ValueError, match="`text_encoder` gives vectors of 20"):
        GLIDEPipeline.from_pipe(tiny_pipeline(), text_encoder=components["text_encoder"])


@pytest.mark.parametrize("scheduler", [GLIDEDDPMScheduler, GLIDEDDIMScheduler])
@pytest.mark.parametrize(
    "arguments",
    [
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 10**8},
        {"num_train_timesteps": 2.5},
        {"beta_start": float("nan")},
        {"beta_end": 2.0},
        {"beta_start": 0.0},
        {"num_train_timesteps": 100_000},  # of the linear schedule nothing would be left
        {"num_train_timesteps": 2, "trained_betas": [0.1, float("inf")]},
        {"num_train_timesteps": 2, "trained_betas": [0.1, 0.0]},
    ],
)
def test_schedulers_name_a_bad_schedule(scheduler, arguments):
    with pytest.raises(ValueError, match=r"`(num_train_timesteps|beta_start|trained_betas)`"):
        scheduler(**arguments)
