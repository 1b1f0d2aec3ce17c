"""`glide benchmark` on a tiny model: what it counts and what it prints."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tiny import CONTEXT, WIDTH, tiny_pipeline

from glide_cli import main
from glide_pipelines.evaluation.benchmark import random_pipeline
from glide_pipelines.measuring import flop_counter
from glide_pipelines.sampling import Stage


@pytest.fixture
def flops():
    def count(network, *inputs, **conditions) -> int:
        with torch.no_grad(), flop_counter() as counter:
            network(*inputs, **conditions)
        return counter.get_total_flops()

    return count


@pytest.mark.parametrize("length", [64, 96])
def test_attention_is_counted(flops, length):
    query, key = torch.ones(2, 4, 64, 32), torch.ones(2, 4, length, 32)
    products = 2  # of queries with keys, of weights with values
    multiply_adds = 2 * 4 * 64 * length * 32 * products
    assert flops(torch.nn.functional.scaled_dot_product_attention, query, key, key) == 2 * multiply_adds


def test_it_counts_the_operations_of_each_part(flops, model, tmp_path, capsys):
    output = tmp_path / "result.json"
    main(["benchmark", "--model", model, "--device", "cpu", "--repeats", "1", "--steps", "7", "--output", str(output)])
    table = capsys.readouterr().out
    result = json.loads(output.read_text())
    rows = result["rows"]
    assert list(rows) == ["text encoding", "one base step", "one upsampler step", "an image, 7 + 27 steps, added up"]

    pipe = tiny_pipeline()
    text = torch.ones(1, CONTEXT, dtype=torch.long)
    hidden = torch.ones(2, CONTEXT, WIDTH)
    # The prompt and the empty prompt for the base stage, the prompt for the upsampler.
    assert rows["text encoding"]["flops"] == 3 * flops(pipe.text_encoder, text, text)
    # Guidance makes a batch of two; the upsampler runs without.
    assert rows["one base step"]["flops"] == flops(pipe.unet, torch.ones(2, 3, 8, 8), 1, hidden)
    assert rows["one upsampler step"]["flops"] == flops(
        pipe.super_res_unet, torch.ones(1, 3, 32, 32), 1, hidden[:1], low_res=torch.ones(1, 3, 8, 8)
    )
    image = rows["an image, 7 + 27 steps, added up"]
    for name in ("seconds", "flops"):
        parts = [rows[label][name] for label in ("text encoding", "one base step", "one upsampler step")]
        assert image[name] == pytest.approx(parts[0] + 7 * parts[1] + 27 * parts[2])
    assert result["matmul_flops_per_second"] > 0
    assert table.count("\n| ") == 5
    assert "float32, eager" in table


def test_a_measured_image_without_guidance_from_a_base_alone(flops, tmp_path, capsys):
    tiny_pipeline(upsampler=False).save_pretrained(tmp_path)
    options = ["--device", "cpu", "--repeats", "1", "--steps", "2", "--guidance-scale", "1", "--whole-image"]
    options += ["--dtype", "bfloat16", "--memory-format", "channels_last", "--cpu-time", "--batch-size", "2"]
    output = tmp_path / "result.json"
    assert main(["benchmark", "--model", str(tmp_path), *options, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert list(result["rows"]) == ["text encoding", "one base step", "an image, 2 steps, measured"]
    pipe = tiny_pipeline()
    expected = flops(pipe.unet, torch.ones(2, 3, 8, 8), 1, torch.ones(2, CONTEXT, WIDTH))
    assert result["rows"]["one base step"]["flops"] == expected
    assert "bfloat16, eager, channels_last, batch 2, processor time" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["base", "super_res"])
def test_a_training_step(model, tmp_path, capsys, stage):
    """20 bytes a parameter that is trained, 4 one that is not; what is recomputed is no progress."""
    rows = {}
    for name, more in {"whole": [], "adapters": ["--lora_rank", "2", "--gradient_checkpointing"]}.items():
        output = tmp_path / f"{name}.json"
        given = ["--model", model, "--device", "cpu", "--stage", stage, "--batch-size", "2", "--repeats", "1", *more]
        assert main(["benchmark", "--train", *given, "--output", str(output)]) == 0
        rows[name] = json.loads(output.read_text())
        assert "images a second" in capsys.readouterr().out
    pipe = tiny_pipeline()
    networks = Stage.of(pipe, stage)
    total = sum(parameter.numel() for parameter in networks.parameters())
    whole, adapters = rows["whole"], rows["adapters"]
    assert whole["trained_parameters"] == total > 10 * adapters["trained_parameters"] > 0
    assert whole["state_bytes"] == pytest.approx(20 * total, rel=0.01)
    assert adapters["state_bytes"] == pytest.approx(4 * total + 20 * adapters["trained_parameters"], rel=0.02)
    assert whole["flops"] > adapters["flops"] > whole["flops"] / 2
    assert whole["images_per_second"] == pytest.approx(2 / whole["seconds_per_step"])


def test_compiling_is_asked_for(model, monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append((self, options)))
    options = ["--model", model, "--device", "cpu", "--repeats", "1", "--compile"]
    output = tmp_path / "result.json"
    assert main(["benchmark", *options, "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert len({id(network) for network, _ in compiled}) == 4
    assert all(options == {"fullgraph": True} for _, options in compiled)
    assert result["compile_seconds"] > 0


def test_the_random_pipeline_has_the_released_sizes():
    pipe = random_pipeline(torch.device("meta"), torch.float32)
    sizes = [
        sum(parameter.numel() for parameter in network.parameters())
        for network in (pipe.text_encoder, pipe.unet, pipe.super_res_text_encoder, pipe.super_res_unet)
    ]
    assert sizes[0] + sizes[1] == 385_030_726
    assert sizes[2] + sizes[3] == 398_361_286


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "nosuch"], "--model nosuch: no such folder"),
        (["--device", "toaster"], "--device toaster: "),
        (["--repeats", "0"], "argument --repeats: "),
        (["--steps", "-1"], "argument --steps: "),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--device", "cuda", "--cpu-time"], "--cpu-time needs --device cpu"),
        (["--lora_rank", "2"], "--lora_rank needs --train"),
        (["--train", "--dtype", "bfloat16"], "--train goes with none of"),
    ],
)
def test_bad_options(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "--device", "cpu", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"glide benchmark: error: {words}")
    assert err.count("\n") == 1


# -- against the original ----------------------------------------------------------------------------------------------

# What the benchmark uses of the original's package, with models that do nothing.
STAND_IN = """
import torch

class Tokenizer:
    def encode(self, text):
        return list(text.encode())

    def padded_tokens_and_mask(self, tokens, length):
        return tokens + [0] * (length - len(tokens)), [True] * len(tokens) + [False] * (length - len(tokens))

class Model(torch.nn.Module):
    tokenizer = Tokenizer()

    def __init__(self):
        super().__init__()
        self.positional_embedding = torch.nn.Parameter(torch.empty(1))
        self.padding_embedding = torch.nn.Parameter(torch.empty(1))

    def get_text_emb(self, tokens, mask):
        assert tokens.shape == mask.shape and tokens.shape[1] == 128

    def forward(self, x, timesteps, tokens, mask, low_res=None):
        assert len(x) == len(timesteps) == len(tokens) == len(mask)
        assert x.shape[-1] == (64 if low_res is None else 256)
        return torch.cat([x, x], dim=1)

class Diffusion:
    def __init__(self, steps):
        self.steps = steps

    def p_sample_loop_progressive(self, model, shape, noise=None, device=None, model_kwargs=None):
        for _ in range(self.steps):
            yield {"sample": model(torch.zeros(shape), torch.zeros(shape[0]), **model_kwargs)[:, :3]}

    ddim_sample_loop_progressive = p_sample_loop_progressive

def model_and_diffusion_defaults():
    return {}

model_and_diffusion_defaults_upsampler = model_and_diffusion_defaults

def create_model_and_diffusion(use_fp16, timestep_respacing):
    return Model(), Diffusion(27 if timestep_respacing == "fast27" else int(timestep_respacing))
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that the benchmark takes for a clone of the original; the networks beside it are tiny."""
    folder = tmp_path / "clone"
    (folder / "glide_text2im").mkdir(parents=True)
    (folder / "glide_text2im" / "model_creation.py").write_text(STAND_IN)
    monkeypatch.setattr("glide_pipelines.evaluation.benchmark.random_pipeline", lambda *args: tiny_pipeline())
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "glide_text2im"]:
        del sys.modules[name]


@pytest.mark.parametrize("whole", [False, True])
def test_the_original_is_timed_in_turns_with_this_package(whole, clone, tmp_path, capsys):
    output = tmp_path / "result.json"
    options = ["--against", str(clone), "--device", "cpu", "--repeats", "2", "--steps", "5", "--batch-size", "2"]
    options += ["--whole-image"] * whole
    assert main(["benchmark", *options, "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    parts = ["text encoding", "one base step", "one upsampler step"]
    if whole:
        assert list(rows) == ["the first image", *parts, "an image, 5 + 27 steps, measured"]
    else:
        text, base, super_res, image = (rows[name] for name in (*parts, "an image, 5 + 27 steps, added up"))
        assert image["original"] == pytest.approx(5 * base["original"] + 27 * super_res["original"])
        assert image["ours"] == pytest.approx(text["ours"] + 5 * base["ours"] + 27 * super_res["ours"])
    assert all(row["ratio"] == pytest.approx(row["original"] / row["ours"]) for row in rows.values())
    assert "(the original: float32)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "is no clone of https://github.com/openai/glide-text2im"),
        (["--compile"], "leave out --compile"),
        (["--model", "nosuch"], "leave out --model"),
        (["--guidance-scale", "1"], "always guides"),
    ],
)
def test_what_cannot_be_set_beside_the_original(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("glide_pipelines.evaluation.benchmark.random_pipeline", lambda *args: tiny_pipeline())
    assert main(["benchmark", "--against", str(tmp_path), "--device", "cpu", *options]) == 2
    assert words in capsys.readouterr().err
