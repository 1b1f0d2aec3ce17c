"""Whatever is put in, an error names an argument before any network runs, or the result is finite.

Hypothesis makes calls of everything public: most of their arguments are good, one or two are anything at all. The short
run is the same each time; `pytest -m slow tests/reliability/test_fuzz.py -s` makes 5,000 calls, new ones, and counts.
"""

import functools
import json
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers.guiders import ClassifierFreeGuidance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import (
    CONTEXT,
    WIDTH,
    tiny_clip,
    tiny_clip_pipeline,
    tiny_inpaint_pipeline,
    tiny_pipeline,
    tiny_text_encoder,
    tiny_unet,
)

import glide_cli
from glide_pipelines import (
    GLIDEDDIMScheduler,
    GLIDEDDPMScheduler,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDESuperResolutionPipeline,
)
from glide_pipelines.schedulers import space_timesteps


SHORT, LONG = 20, 5_000
counts: Counter = Counter()


# -- values -----------------------------------------------------------------------------------------------------------


INTEGERS = st.sampled_from([-(2**70), -8, -1, 0, 1, 2, 3, 5, 8, 9, 12, 16, 32, 40, 2**70])
NUMBERS = st.floats() | st.sampled_from([0.0, 1.0, 0.5, -1.0, 1e30, np.float32(0.5), np.float64("nan")])
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["\ud800", "", "a" * 400, "<|endoftext|>", "100", "fast27", "ddim5", "5,x"]
)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 6, 8, CONTEXT, WIDTH, 32]), max_size=4))
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]
    tensor = torch.ones(shape, dtype=draw(st.sampled_from(dtypes)))
    change = draw(st.sampled_from(["none", "none", "none", "meta", "sparse", "nan", "huge"]))
    if change == "meta":
        return tensor.to("meta")
    if change == "sparse":
        return tensor.to_sparse()
    if tensor.is_floating_point() and tensor.numel() and change in ("nan", "huge"):
        tensor.view(-1)[0] = torch.nan if change == "nan" else torch.finfo(tensor.dtype).max
    return tensor


@st.composite
def images(draw):
    size = draw(st.sampled_from([(1, 1), (3, 5), (8, 8), (32, 32), (33, 40)]))
    mode = draw(st.sampled_from(["RGB", "L", "RGBA", "P", "1", "CMYK", "I", "F", "LA", "I;16"]))
    return Image.new(mode, size)


ARRAYS = st.builds(
    lambda shape, kind: np.ones(shape, kind),
    st.lists(st.sampled_from([0, 1, 3, 4, 8, 32]), max_size=4),
    st.sampled_from(["float32", "float64", "uint8", "int64", "bool", "complex64", "O"]),
)
SCALARS = st.none() | st.booleans() | INTEGERS | NUMBERS | TEXTS | st.binary(max_size=3) | st.builds(object)
ANYTHING = (
    SCALARS
    | tensors()
    | images()
    | ARRAYS
    | st.lists(SCALARS | images() | tensors(), max_size=3)
    | st.dictionaries(TEXTS, SCALARS, max_size=2)
    | st.tuples(SCALARS)
)

EMBEDS = torch.zeros(1, CONTEXT, WIDTH)
COMMON = {
    "num_images_per_prompt": st.integers(1, 2),
    "eta": st.floats(0, 1),
    "upsample_temperature": st.floats(0, 2),
    "generator": st.builds(lambda seed: torch.Generator().manual_seed(seed), st.integers(0, 9)),
    "cross_attention_kwargs": st.sampled_from([None, {}, {"scale": 0.5}]),
    "cond_fn": st.sampled_from([None, lambda x_t, timestep: None, [lambda x_t, timestep: -x_t]]),
    "return_dict": st.booleans(),
    "callback_on_step_end": st.sampled_from([None, lambda *args: {}]),
    "callback_on_step_end_tensor_inputs": st.sampled_from([["latents"], ["prompt_embeds"], []]),
}
STAGES = {
    "guidance_scale": st.floats(-5, 10),
    "negative_prompt": st.sampled_from([None, "a blue square", ["x"]]),
    "guider": st.sampled_from([None, ClassifierFreeGuidance(3.0), ClassifierFreeGuidance("x")]),
    "super_res_prompt_embeds": st.sampled_from([None, EMBEDS]),
    "timesteps": st.sampled_from([None, "2", "ddim2", [500, 3], (9, 8)]),
    "super_res_timesteps": st.sampled_from([None, "2", [500, 3]]),
    **COMMON,
}
PICTURE, MASK = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32), 255)
SIZE = {"height": st.sampled_from([8, 16, 32]), "width": st.sampled_from([8, 16, 32])}
EDIT = {"padding_mask_crop": st.sampled_from([None, 0, 4]), "num_resample": st.integers(1, 2)}
CLIP = {
    "clip_guidance_scale": st.floats(-5, 10),
    "clip_prompt": st.sampled_from([None, "a", {"a": 1.0, "b": -0.5}, ["a"]]),
    "clip_guidance_start": st.floats(0, 0.5),
    "clip_guidance_end": st.floats(0.5, 1),
    "clip_prompt_embeds": st.sampled_from([None, torch.ones(1, WIDTH)]),
}
STEPS = {"num_inference_steps": 2, "super_res_num_inference_steps": 1}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Each: the pipeline, arguments of a call that works, and strategies of good values for the others.
PIPELINES = {
    "text-to-image": (tiny_pipeline, STEPS, STAGES | SIZE),
    "base alone": (lambda: tiny_pipeline(upsampler=False), {"num_inference_steps": 2}, STAGES | SIZE),
    "img2img": (
        lambda: GLIDEImg2ImgPipeline.from_pipe(tiny_pipeline()),
        STEPS | {"image": PICTURE},
        STAGES | {"strength": st.floats(0.5, 1)},
    ),
    "inpaint": (tiny_inpaint_pipeline, STEPS | {"image": PICTURE, "mask_image": MASK}, STAGES | SIZE | EDIT),
    "implicit inpaint": (
        lambda: GLIDEInpaintPipeline.from_pipe(tiny_pipeline()),
        STEPS | {"image": PICTURE, "mask_image": MASK},
        STAGES | SIZE | EDIT,
    ),
    "super-resolution": (
        lambda: GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline()),
        {"num_inference_steps": 2, "image": PICTURE.resize((8, 8))},
        COMMON | {"tile_size": st.sampled_from([None, 16, 32]), "tile_overlap": st.sampled_from([None, 0, 4])},
    ),
    "clip-guided": (tiny_clip_pipeline, STEPS, STAGES | CLIP),
    "clip-guided inpaint": (tiny_clip_pipeline, STEPS | {"image": PICTURE, "mask_image": MASK}, STAGES | CLIP | EDIT),
}
# None stands for so many steps that it would take too long.
NOT_NONE = ("num_inference_steps", "super_res_num_inference_steps")


# -- what is promised -------------------------------------------------------------------------------------------------


def is_named(error, names):
    """Whether an error names an argument, as `name` or name=."""
    return re.search(rf"`({'|'.join(names)})\b|\b({'|'.join(names)})=", str(error)) is not None


def promise(call, names, ran=lambda: False):
    """Run a call; an error must be named and come before any network ran. Returns the result, or None."""
    try:
        result = call()
    except (ValueError, TypeError) as error:
        assert is_named(error, names), f"names no argument: {error!r}"
        assert not ran(), f"a network ran first: {error!r}"
        counts["named errors"] += 1
        return None
    except FloatingPointError as error:
        assert "Stage" in str(error) and "step" in str(error)
        counts["errors of stage and step"] += 1
        return None
    counts["results"] += 1
    return result


def arguments(data, given_values, good):
    """A call of which most values are good and up to two are anything."""
    chosen = data.draw(st.lists(st.sampled_from(sorted(good)), max_size=3, unique=True)) if good else []
    call = dict(given_values) | {name: data.draw(good[name], label=name) for name in chosen}
    for name in data.draw(st.lists(st.sampled_from(sorted({*given_values, *good})), max_size=2, unique=True)):
        value = data.draw(ANYTHING, label=name)
        if value is not None or name not in NOT_NONE:
            call[name] = value
    return call


@functools.cache
def prepared(name):
    pipe = quiet(PIPELINES[name][0]())
    passes = []
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.register_forward_pre_hook(lambda *_: passes.append(None))
    return pipe, passes


def call_pipeline(name, data):
    pipe, passes = prepared(name)
    _, given_values, good = PIPELINES[name]
    embeds = dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), st.just(EMBEDS))
    noise = dict.fromkeys(("latents", "super_res_latents"), st.none())
    good = good | noise | (embeds if name != "super-resolution" else {})
    call = arguments(data, {"prompt": "a red circle", "output_type": "np"} | given_values, good)
    names = {*call, *good, "scheduler", "image", "mask_image"}  # a default may be what does not go with the rest
    names |= {f"super_res_{argument}" for argument in names}
    passes.clear()
    output = promise(lambda: pipe(**call), names, lambda: bool(passes))
    if output is not None:
        images = output.images if hasattr(output, "images") else output[0]
        for image in images:
            pixels = image.float().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
            assert np.isfinite(pixels).all()


def call_scheduler(cls, data):
    good = {
        "num_train_timesteps": st.sampled_from([2, 10, 1000]),
        "beta_start": st.floats(1e-4, 1e-2),
        "beta_end": st.floats(1e-2, 0.5),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"]),
        "trained_betas": st.none(),
        "variance_type": st.sampled_from(["learned_range", "fixed_small", "fixed_large", None]),
        "clip_sample": st.booleans(),
        "clip_sample_range": st.floats(0.1, 10),
        "thresholding": st.booleans(),
        "dynamic_thresholding_ratio": st.floats(0.5, 1),
        "sample_max_value": st.floats(1, 10),
        "timestep_spacing": st.sampled_from(["linspace", "leading", "trailing"]),
        "steps_offset": st.integers(0, 1),
    }
    config = arguments(data, {}, good)
    scheduler = promise(lambda: cls(**config), good)
    if scheduler is None:
        return
    spacing = arguments(data, {"num_inference_steps": 2}, {"timesteps": st.sampled_from(["2", [1, 0]])})
    if promise(lambda: scheduler.set_timesteps(**spacing) or True, spacing) is None:
        return
    timesteps = st.sampled_from(scheduler.timesteps.tolist())
    step = arguments(
        data,
        {"model_output": torch.ones(1, 6, 8, 8), "timestep": scheduler.timesteps[0], "sample": torch.ones(1, 3, 8, 8)},
        {"timestep": timesteps, "cond_grad": st.just(torch.ones(1, 3, 8, 8))}
        | ({"eta": st.floats(0, 1)} if cls is GLIDEDDIMScheduler else {}),
    )
    output = promise(lambda: scheduler.step(**step), [*step, *config, "variance_type"])
    if output is not None and all(t.isfinite().all() for t in step.values() if isinstance(t, torch.Tensor)):
        assert all(tensor.isfinite().all() for tensor in (output if isinstance(output, tuple) else output.values()))


def call_respacing(data):
    call = arguments(data, {"spacing": "10"}, {"num_train_timesteps": st.sampled_from([1000, 10])})
    kept = promise(lambda: space_timesteps(**call), [*call, "timesteps"])
    assert kept is None or kept == sorted(set(kept), reverse=True)


IDS = torch.zeros(2, CONTEXT, dtype=torch.int64)
PIXELS, TIMES = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
HIDDEN = torch.zeros(2, CONTEXT, WIDTH)
MODELS = {
    "text encoder": (tiny_text_encoder, "forward", {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
    "unet": (tiny_unet, "forward", {"sample": PIXELS, "timestep": 5, "encoder_hidden_states": HIDDEN}),
    "upsampler": (
        lambda: tiny_unet(6, 32),
        "forward",
        {"sample": torch.zeros(2, 3, 32, 32), "timestep": TIMES, "encoder_hidden_states": HIDDEN, "low_res": PIXELS},
    ),
    "inpainter": (
        lambda: tiny_unet(7),
        "forward",
        {
            "sample": PIXELS,
            "timestep": TIMES,
            "encoder_hidden_states": HIDDEN,
            "image": PIXELS,
            "mask": torch.zeros(2, 1, 8, 8),
        },
    ),
    "clip text": (tiny_clip, "get_text_features", {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
    "clip image": (tiny_clip, "get_image_features", {"sample": PIXELS, "timesteps": TIMES}),
    "clip similarity": (
        tiny_clip,
        "similarity",
        {"sample": PIXELS, "timesteps": TIMES, "text_features": torch.ones(2, WIDTH)},
    ),
}


@functools.cache
def model_of(name):
    return MODELS[name][0]()


@torch.no_grad()
def call_model(name, data):
    _, method, given_values = MODELS[name]
    call = arguments(data, given_values, {})
    result = promise(lambda: getattr(model_of(name), method)(**call), [*call, "class_labels"])
    given = [t for t in call.values() if isinstance(t, torch.Tensor) and t.is_floating_point() and not t.is_meta]
    if result is not None and all(not t.numel() or t.abs().max() < 1e3 for t in given):
        output = result if isinstance(result, torch.Tensor) else result[0]
        assert output.isfinite().all()


# -- glide ------------------------------------------------------------------------------------------------------------


@functools.cache
def folder():
    """A model, images, and things that are none."""
    folder = Path(tempfile.mkdtemp())
    tiny_pipeline().save_pretrained(folder / "model")
    PICTURE.save(folder / "image.png")
    MASK.save(folder / "mask.png")
    (folder / "broken.png").write_bytes((folder / "image.png").read_bytes()[:60])
    (folder / "text.txt").write_text("no image")
    return folder


OPTIONS = {
    "--negative-prompt": ["a blue square"],
    "--num-images": ["1", "2"],
    "--seed": ["0", "7"],
    "--image": ["image.png", "mask.png"],
    "--mask": ["mask.png", "image.png"],
    "--strength": ["0.5", "1"],
    "--super-res-steps": ["1", "2"],
    "--scheduler": ["ddim", "euler", "dpm-solver++", "heun", "pndm"],
    "--super-res-scheduler": ["ddpm", "unipc", "deis"],
    "--guidance-scale": ["1", "3"],
    "--device": ["cpu"],
    "--dtype": ["float32", "bfloat16"],
    "--enlarge": None,
    "--no-upsample": None,
    "--fast": None,
    "--quiet": None,
}
WORDS = st.text(st.characters(exclude_characters="\0"), max_size=6) | st.sampled_from(
    [
        "",
        "-1",
        "0",
        "nan",
        "inf",
        "1e999",
        "9" * 30,
        "broken.png",
        "text.txt",
        "model",
        "./no",
        ".",
        "\udcff",
        "meta",
    ]
)


def call_glide(data, capsys):
    place = folder()

    def word(strategy, label):
        text = data.draw(strategy, label=label)
        return str(place / text) if text.endswith((".png", ".txt")) or text == "model" else text

    argv = [
        word(st.just("a red circle") | WORDS, "prompt"),
        "-o",
        str(place / "out.png"),
        "--model",
        str(place / "model"),
    ]
    argv += ["--steps", word(st.just("2"), "steps"), "--super-res-steps", "1"]
    for option in data.draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=4, unique=True), label="options"):
        argv.append(option)
        if OPTIONS[option] is not None:
            argv.append(word(st.sampled_from(OPTIONS[option]), option))
    if data.draw(st.booleans()):
        position = data.draw(st.integers(0, len(argv) - 1))
        argv[position] = word(WORDS, "anything")
    if {"-h", "--help", "--version"} & set(argv) or argv[0] in glide_cli.COMMANDS:
        return
    with_steps = [text for text in argv if text.startswith("--")]
    if "--steps" not in with_steps or "--super-res-steps" not in with_steps or argv[argv.index("--steps") + 1] != "2":
        return  # a hundred steps
    code = glide_cli.main(argv)
    error = capsys.readouterr().err.strip().splitlines()
    assert code in (0, 2), argv
    assert code == 0 or (error and error[-1].startswith("glide: error: ")), (argv, error)
    counts["results" if code == 0 else "named errors"] += 1


# -- training ---------------------------------------------------------------------------------------------------------


# Options of `glide train text-to-image` with values that are good; None for those that take none.
TRAIN_OPTIONS = {
    "--stage": ["base", "super_res"],
    "--resolution": ["8", "32"],
    "--train_data_dir": ["text.txt", "model", "./no"],
    "--max_train_samples": ["4"],
    "--random_flip": None,
    "--num_objects_shares": ["1 1 1"],
    "--crop_size": ["16"],
    "--low_res_blur": ["0.5"],
    "--low_res_noise": ["0.1"],
    "--low_res_consistency": None,
    "--freeze_text_encoder": None,
    "--proportion_empty_prompts": ["0.5"],
    "--noise_offset": ["0.1"],
    "--snr_gamma": ["5"],
    "--snr_weight_range": ["1 100"],
    "--timestep_bias_strategy": ["later", "none"],
    "--timestep_bias_multiplier": ["2"],
    "--timestep_bias_portion": ["0.5"],
    "--lora_rank": ["2"],
    "--lora_alpha": ["4"],
    "--lora_targets": ["to_q"],
    "--use_dora": None,
    "--save_dtype": ["fp16"],
    "--seed": ["1"],
    "--train_batch_size": ["1", "2"],
    "--gradient_accumulation_steps": ["2"],
    "--gradient_checkpointing": None,
    "--learning_rate": ["1e-3"],
    "--lr_scheduler": ["cosine", "constant"],
    "--lr_warmup_steps": ["1"],
    "--lr_decay_steps": ["1"],
    "--optimizer": ["sgd", "adamw"],
    "--optimizer_args": ["momentum=0.9"],
    "--adam_beta1": ["0.8"],
    "--adam_weight_decay": ["0.1"],
    "--adam_epsilon": ["1e-6"],
    "--max_grad_norm": ["1"],
    "--ema_decay": ["0.9"],
    "--post_hoc_ema_steps": ["1"],
    "--ema_sigma_rel": ["0.1"],
    "--mixed_precision": ["no", "bf16"],
    "--checkpointing_steps": ["1"],
    "--checkpointing_minutes": ["1"],
    "--checkpoints_total_limit": ["1"],
    "--resume_from_checkpoint": ["latest"],
    "--logging_steps": ["1"],
    "--skip_bad_images": ["1"],
    "--validation_prompts": ["red"],
    "--validation_inference_steps": ["2"],
}
# A number that is too large here is no mistake, only years of work.
ENDLESS = {"--gradient_accumulation_steps", "--train_batch_size", "--resolution", "--validation_inference_steps"}


def call_train(data, capsys):
    """One step, with up to four options, of which one may be anything."""
    place = folder()
    argv = ["--dataset_name", "shapes", "--pretrained_model_name_or_path", str(place / "model")]
    argv += ["--max_train_steps", "1", "--train_batch_size", "1"]
    names = data.draw(st.lists(st.sampled_from(sorted(TRAIN_OPTIONS)), max_size=4, unique=True), label="options")
    odd = data.draw(st.sampled_from(names), label="odd") if names and data.draw(st.booleans()) else None
    for name in names:
        values = TRAIN_OPTIONS[name]
        if name == odd:
            words = st.sampled_from(["-1", "0", "1.5", "x", "", "nan"]) if name in ENDLESS else WORDS
            argv += [name, data.draw(words, label=name)]
        else:
            argv += [name, *("" if values is None else data.draw(st.sampled_from(values), label=name)).split()]
    argv = [str(place / word) if word in ("model", "text.txt", "broken.png") else word for word in argv]
    run = tempfile.mkdtemp()
    try:
        code = glide_cli.main(["train", "text-to-image", "--output_dir", f"{run}/run", *argv])
        error = capsys.readouterr().err.strip().splitlines()
        assert code in (0, 2), argv
        assert code == 0 or (error and error[-1].startswith("glide train")), (argv, error)
        if code == 0:
            assert next(Path(run).rglob("log.jsonl")).exists() and next(Path(run).rglob("*.safetensors")).exists()
        counts["results" if code == 0 else "named errors"] += 1
    finally:
        shutil.rmtree(run)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


# -- damaged folders --------------------------------------------------------------------------------------------------


JSONS = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2, 3, 300, 10**9, 10**30])
    | st.floats()
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
CONFIGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
)


def call_damaged(data, capsys):
    """One field of one JSON file is something else."""
    place = Path(tempfile.mkdtemp())
    try:
        model = shutil.copytree(folder() / "model", place / "model")
        path = model / data.draw(st.sampled_from(CONFIGS))
        config = json.loads(path.read_text())
        field = data.draw(st.sampled_from(sorted(config)))
        config[field] = data.draw(JSONS, label=field)
        path.write_text(json.dumps(config))
        argv = ["a red circle", "-o", str(place / "out.png"), "--model", str(model), "--steps", "1"]
        code = glide_cli.main([*argv, "--super-res-steps", "1"])
        error = capsys.readouterr().err.strip().splitlines()
        assert code in (0, 2)
        assert code == 0 or (error and error[-1].startswith("glide: error: ")), error
        counts["results" if code == 0 else "named errors"] += 1
    finally:
        shutil.rmtree(place)


TARGETS = {
    **{name: functools.partial(call_pipeline, name) for name in PIPELINES},
    "GLIDEDDPMScheduler": functools.partial(call_scheduler, GLIDEDDPMScheduler),
    "GLIDEDDIMScheduler": functools.partial(call_scheduler, GLIDEDDIMScheduler),
    "respacing": call_respacing,
    **{name: functools.partial(call_model, name) for name in MODELS},
    "glide": call_glide,
    "glide train": call_train,
    "a damaged folder": call_damaged,
}


def fuzz(target, cases, capsys, same_each_time):
    case = TARGETS[target]
    options = {"capsys": capsys} if case in (call_glide, call_train, call_damaged) else {}

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=same_each_time,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data):
        case(data=data, **options)

    run()


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_cases(target, capsys):
    fuzz(target, SHORT, capsys, same_each_time=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_cases(target, capsys):
    counts.clear()
    fuzz(target, -(-LONG // len(TARGETS)), capsys, same_each_time=False)
    with capsys.disabled():
        print(f"\n{target}: {sum(counts.values())} cases, {dict(counts)}")


# -- every field of every file ----------------------------------------------------------------------------------------


VALUES = (None, True, False, -1, 0, 1, 2, 3, 300, 10**9, 10**30, 0.5, -0.5, float("nan"), float("inf"), "", "x")
VALUES += ([], [1], ["a"], {}, {"a": 1})


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGS, "super_res_unet/config.json"])
def test_every_field_of_a_file(name, tmp_path, capsys):
    """Through `glide`: an image, or one line."""
    counts.clear()
    model = shutil.copytree(folder() / "model", tmp_path / "model")
    config = json.loads((model / name).read_text())
    for field in config:
        for value in VALUES:
            (model / name).write_text(json.dumps(config | {field: value}))
            argv = ["a red circle", "-o", str(tmp_path / "out.png"), "--model", str(model), "--steps", "1"]
            code = glide_cli.main([*argv, "--super-res-steps", "1"])
            error = capsys.readouterr().err.strip().splitlines()
            assert code in (0, 2), (field, value)
            assert code == 0 or (error and error[-1].startswith("glide: error: ")), (field, value, error)
            counts["results" if code == 0 else "named errors"] += 1
    with capsys.disabled():
        print(f"\n{name}: {sum(counts.values())} cases, {dict(counts)}")
