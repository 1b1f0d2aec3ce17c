"""`glide benchmark` on a tiny model: what it counts and what it prints."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import CONTEXT, WIDTH, tiny_pipeline

from glide_cli import main
from glide_pipelines.evaluation.benchmark import flop_counter, random_pipeline


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
    ],
)
def test_bad_options(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "--device", "cpu", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"glide benchmark: error: {words}")
    assert err.count("\n") == 1
