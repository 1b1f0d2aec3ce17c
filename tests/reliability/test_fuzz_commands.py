"""Whatever a command line or a file of a model says, `glide` does its work, or tells in one line what is wrong.

The short run is the same each time; `pytest -m slow tests/reliability/test_fuzz_*.py -s` makes new ones, and counts.
"""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from editing import MASK, PICTURE
from fuzzing import counts, fuzz_a_little, fuzz_a_lot, print_counts
from hypothesis import strategies as st
from tiny import tiny_pipeline

import glide_cli


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


def outcome(argv, capsys, program="glide: error: "):
    """The exit code of a command, which says in one line what is wrong, if something is."""
    code = glide_cli.main(argv)
    error = capsys.readouterr().err.strip().splitlines()
    assert code in (0, 2), argv
    assert code == 0 or (error and error[-1].startswith(program)), (argv, error)
    counts["results" if code == 0 else "named errors"] += 1
    return code


def generate(model, output, capsys):
    """`glide` makes an image with a model, or says what is wrong."""
    argv = ["a red circle", "-o", str(output), "--model", str(model), "--steps", "1", "--super-res-steps", "1"]
    return outcome(argv, capsys)


# -- glide ------------------------------------------------------------------------------------------------------------


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
    outcome(argv, capsys)


# -- glide train ------------------------------------------------------------------------------------------------------


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
        argv = ["train", "text-to-image", "--output_dir", f"{run}/run", *argv]
        if outcome(argv, capsys, "glide train") == 0:
            assert next(Path(run).rglob("log.jsonl")).exists() and next(Path(run).rglob("*.safetensors")).exists()
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
        generate(model, place / "out.png", capsys)
    finally:
        shutil.rmtree(place)


TARGETS = {"glide": call_glide, "glide train": call_train, "a damaged folder": call_damaged}


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_commands(target, capsys):
    fuzz_a_little(functools.partial(TARGETS[target], capsys=capsys))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_commands(target, capsys):
    fuzz_a_lot(functools.partial(TARGETS[target], capsys=capsys), target, capsys)


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
            generate(model, tmp_path / "out.png", capsys)
    print_counts(name, capsys)
