"""What cannot be converted is refused in one line that names the argument, and nothing is left behind."""

import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from small import (
    OPTIONS,
    ROOT,
    arguments,
    script,
    small_networks,
    small_state_dict,
    write_checkpoint,
    write_tokenizer,
)
from transformers import GPT2Tokenizer

from glide_pipelines import GLIDEDDPMScheduler, GLIDEPipeline
from glide_pipelines.conversion import (
    ConversionError,
    convert,
    convert_diffusers_to_glide,
    convert_glide_to_diffusers,
)
from glide_pipelines.conversion.reading import open_checkpoint


# Runs a script with files limited to so many bytes, which is what a full disk looks like to those who write.
LIMITED = """
import resource, runpy, sys
_, limit, *sys.argv = sys.argv
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Code:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    for kind in ("base", "upsample", "base-inpaint", "upsample-inpaint"):
        write_checkpoint(folder, kind)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def refused(files, tmp_path):
    """Convert, and expect the given message; whatever the options replace."""

    def convert_(match, **options):
        options = {
            "checkpoint_path": files / "base.pt",
            "super_res_checkpoint_path": files / "upsample.pt",
            "tokenizer": files / "tokenizer",
            "dump_path": tmp_path / "made" / "glide",
            **OPTIONS,
            **options,
        }
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ConversionError, match=match) as error:
            convert_glide_to_diffusers(**options)
        assert "\n" not in str(error.value)
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"

    return convert_


def damaged(name, files, tmp_path):
    """A file that holds no GLIDE checkpoint."""
    path = tmp_path / "bad.pt"
    whole = (files / "base.pt").read_bytes()
    state_dict = torch.load(files / "base.pt", weights_only=True)
    if name == "a folder":
        path.mkdir()
    elif name == "empty":
        path.touch()
    elif name == "text":
        path.write_text("<html>not found</html>" * 100)
    elif name == "cut in the middle":
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "cut at the end":
        path.write_bytes(whole[:-1])
    elif name == "old and cut":
        torch.save(state_dict, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-1000])
    elif name == "a zip file":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("readme.txt", "nothing")
    elif name == "code":
        torch.save(state_dict | {"code": Code(tmp_path / "hacked")}, path)
    elif name == "old with code":
        torch.save(state_dict | {"code": Code(tmp_path / "hacked")}, path, _use_new_zipfile_serialization=False)
    elif name == "a pickle of code":
        path.write_bytes(pickle.dumps(Code(tmp_path / "hacked")))
    elif name == "a module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif name == "a safetensors file that is cut":
        save_file(state_dict, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "a compressed archive":
        rewrite(files / "base.pt", path, compression=zipfile.ZIP_DEFLATED)
    elif name == "a zip bomb":
        rewrite(files / "base.pt", path, {"data.pkl": bytes(100_000_000)}, zipfile.ZIP_DEFLATED)
    elif name == "a TorchScript archive":
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    else:
        torch.save(CONTENTS[name](state_dict), path)
    return path


def rewrite(source, target, changes=(), compression=zipfile.ZIP_STORED):
    """The archive again, with other contents of some records, by the ends of their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for record in old.infolist():
            name = record.filename.split("/", 1)[1]
            new.writestr(record.filename, dict(changes).get(name, old.read(record)))


def in_itself():
    content = {"model": {}}
    content["model"]["again"] = content
    return content


def multiplied():
    """A few hundred references, which lead to the innermost dictionary in 100 ** 4 ways."""
    content = {"step": 1}
    for _ in range(4):
        content = {str(number): content for number in range(100)}
    return content


def without(state_dict, prefix):
    return {key: tensor for key, tensor in state_dict.items() if not key.startswith(prefix)}


CONTENTS = {
    "a tensor": lambda state_dict: torch.zeros(2),
    "nothing": lambda state_dict: {},
    "numbers beside the tensors": lambda state_dict: state_dict | {"step": 10},
    "a training checkpoint of another model": lambda state_dict: {"step": 1, "model": {"layer.weight": torch.zeros(2)}},
    "a training checkpoint without a model": lambda state_dict: {"step": 10, "optimizer": {"lr": 0.1}},
    "a dictionary in itself": lambda state_dict: in_itself(),
    "a dictionary a hundred million times": lambda state_dict: multiplied(),
    "several models": lambda state_dict: {"first": state_dict, "second": small_state_dict(seed=1)},
    "an upsampler in a training checkpoint": lambda state_dict: {"state_dict": small_state_dict("upsample")},
    "names with and without a prefix": lambda state_dict: state_dict | {"module.out.2.bias": torch.zeros(6)},
    "numbered tensors": lambda state_dict: {0: torch.zeros(2)},
    "a sparse tensor": lambda state_dict: state_dict | {"out.2.bias": torch.zeros(6).to_sparse()},
    "integers": lambda state_dict: state_dict | {"out.2.bias": torch.zeros(6, dtype=torch.int64)},
    "another model": lambda state_dict: {"encoder.weight": torch.zeros(2, 2), "encoder.bias": torch.zeros(2)},
    "a guided diffusion model": lambda state_dict: {
        key: tensor for key, tensor in state_dict.items() if key.split(".")[0].endswith(("blocks", "block", "out"))
    },
    "a LoRA": lambda state_dict: {"unet.mid_block.attentions.0.to_q.lora_A.weight": torch.zeros(4, 32)},
    "a UNet of diffusers": lambda state_dict: small_networks()[0].state_dict(),
    "Stable Diffusion": lambda state_dict: {"state_dict": {"model.diffusion_model.out.2.bias": torch.zeros(4)}},
    "OpenAI's CLIP": lambda state_dict: {"visual.class_embedding": torch.zeros(2)},
    "NaN": lambda state_dict: state_dict | {"out.2.bias": torch.full((6,), torch.nan)},
    "infinity": lambda state_dict: state_dict | {"out.2.bias": torch.tensor([0.0, 0.0, torch.inf, 0.0, 0.0, 0.0])},
    "a stretched tensor": lambda state_dict: state_dict | {"extra": torch.zeros(1).expand(10**12)},
    "a thousand layers": lambda state_dict: (
        state_dict | {f"transformer.resblocks.{layer}.ln_1.bias": torch.zeros(1) for layer in range(1000)}
    ),
    "a CLIP": lambda state_dict: {"blocks.input.w_voc": torch.zeros(2, 2)},
    "four input channels": lambda state_dict: state_dict | {"input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3)},
    "a tensor less": lambda state_dict: {key: tensor for key, tensor in state_dict.items() if key != "out.0.bias"},
    "a tensor more": lambda state_dict: state_dict | {"extra": torch.zeros(2)},
    "another shape": lambda state_dict: state_dict | {"middle_block.1.qkv.bias": torch.zeros(3)},
    "no blocks": lambda state_dict: without(state_dict, "output_blocks"),
    "a scalar embedding": lambda state_dict: state_dict | {"token_embedding.weight": torch.zeros(())},
    "odd channels": lambda state_dict: state_dict | {"input_blocks.1.0.out_layers.3.weight": torch.zeros(33, 32, 3, 3)},
}
MESSAGES = {
    "a folder": "cannot be read: Is a directory",
    "empty": "not a checkpoint of PyTorch or safetensors",
    "text": "not a checkpoint of PyTorch or safetensors",
    "cut in the middle": "cut short: its end is missing",
    "cut at the end": "cut short: its end is missing",
    "old and cut": "cut short or damaged",
    "a zip file": "cut short or damaged, or not a state dict of PyTorch",
    "a safetensors file that is cut": "cut short or damaged",
    "a compressed archive": "it is compressed, which torch.save never does",
    "a zip bomb": "it is compressed, which torch.save never does",
    "a TorchScript archive": "this is a TorchScript archive, which holds code",
    "code": r"something other than tensors \(.*mkdir\); it was not loaded, since that could run code; load it",
    "old with code": "something other than tensors",
    "a pickle of code": "something other than tensors",
    "a module": "something other than tensors",
    "a tensor": "a state dict is needed .*, the file holds a Tensor",
    "nothing": "a state dict is needed .*, the file holds a dict",
    "numbers beside the tensors": "a plain state dict is needed .*, the file holds a int under 'step'",
    "a training checkpoint of another model": "the checkpoint of another model .*'layer.weight'.*where base or",
    "a training checkpoint without a model": "no state dict .*: the file holds a int under 'step', where base or",
    "a dictionary a hundred million times": "no state dict .*: the file holds a dict under '0'",
    "a dictionary in itself": "no state dict .*: the file holds a dict under 'model'",
    "several models": "holds several models, under 'first', 'second': save the wanted one in a file of its own",
    "an upsampler in a training checkpoint": "this is GLIDE's upsample, where base or base-inpaint is needed",
    "names with and without a prefix": "two tensors for 'out.2.bias'",
    "numbered tensors": "no state dict .*: the file holds a Tensor under 0",
    "a sparse tensor": "'out.2.bias' is not an ordinary dense tensor",
    "integers": r"'out.2.bias' holds torch.int64",
    "another model": "the checkpoint of another model .*'encoder.weight'.*, where .* is needed",
    "a guided diffusion model": "a UNet of guided diffusion without GLIDE's text encoder, where base or",
    "a LoRA": "a LoRA, which `load_lora_weights` .*, where base or",
    "a UNet of diffusers": "a UNet in diffusers' layout, whose folder `from_pretrained` opens, where base or",
    "Stable Diffusion": "a checkpoint of Stable Diffusion, where base or",
    "OpenAI's CLIP": "a CLIP for clean images, where base or",
    "a CLIP": "GLIDE's clip-text-enc, where base or base-inpaint is needed",
    "four input channels": "a UNet of 4 input channels, which are 3, 6, 7 or 10 in GLIDE's",
    "NaN": "'out.2.bias' holds NaN or infinity; `allow_non_finite` takes it as it is",
    "infinity": "'out.2.bias' holds NaN or infinity",
    "a stretched tensor": "the tensors would take more memory than the whole file has bytes",
    "a thousand layers": "not a whole GLIDE checkpoint .*1022 tensors for 1000 modules transformer.resblocks",
    "a tensor less": "'out.0.bias' is missing",
    "a tensor more": "'extra' is unknown",
    "another shape": r"'middle_block.1.qkv.bias' is \(3,\) where \(192,\) is needed",
    "no blocks": "not a whole GLIDE checkpoint",
    "a scalar embedding": "not a whole GLIDE checkpoint",
    "odd channels": "not a whole GLIDE checkpoint",
}


@pytest.mark.parametrize("argument", ["checkpoint_path", "super_res_checkpoint_path"])
@pytest.mark.parametrize("name", ["code", "cut in the middle", "another model"])
def test_the_argument_is_named(refused, files, tmp_path, name, argument):
    path = damaged(name, files, tmp_path)
    refused(rf"^`{argument}` \({path}\): .*{MESSAGES[name]}", **{argument: path})


@pytest.mark.parametrize("name", MESSAGES)
def test_bad_files(refused, files, tmp_path, name):
    path = damaged(name, files, tmp_path)
    refused(rf"^`checkpoint_path` \({path}\): .*{MESSAGES[name]}", checkpoint_path=path)
    assert not (tmp_path / "hacked").exists()


def test_values_that_overflow(refused, files, tmp_path):
    state_dict = torch.load(files / "base.pt", weights_only=True)
    torch.save(state_dict | {"out.2.bias": torch.full((6,), 1e5)}, tmp_path / "large.pt")
    message = "'out.2.bias' overflows in torch.float16; `allow_non_finite` takes it as it is"
    refused(message, checkpoint_path=tmp_path / "large.pt", dtype="float16")


def test_values_that_are_not_finite_on_request(files, tmp_path):
    state_dict = torch.load(files / "base.pt", weights_only=True)
    torch.save(state_dict | {"out.2.bias": torch.full((6,), torch.nan)}, tmp_path / "nan.pt")
    given = {"checkpoint_path": tmp_path / "nan.pt", "tokenizer": files / "tokenizer", **OPTIONS}
    folder = convert_glide_to_diffusers(dump_path=tmp_path / "glide", allow_non_finite=True, **given)
    assert load_file(folder / "unet/diffusion_pytorch_model.safetensors")["conv_out.bias"].isnan().all()


def test_a_flipped_bit_anywhere_in_the_tensors(files, tmp_path):
    whole = bytearray((files / "base.pt").read_bytes())
    with zipfile.ZipFile(files / "base.pt") as archive:
        records = [record for record in archive.infolist() if "/data/" in record.filename]
    rng = random.Random(0)
    for record in rng.sample(records, 40):
        # A record begins with 30 bytes, its name, and padding of which the local header tells the length.
        lengths = whole[record.header_offset + 26 : record.header_offset + 30]
        start = record.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        place, bit = start + rng.randrange(record.file_size), 1 << rng.randrange(8)
        whole[place] ^= bit
        (tmp_path / "flipped.pt").write_bytes(whole)
        whole[place] ^= bit
        with pytest.raises(ConversionError, match=f"the file is damaged: the checksum of '{record.filename}'"):
            open_checkpoint(tmp_path / "flipped.pt")


@pytest.mark.parametrize("form", ["zip", "pickle", "safetensors"])
def test_random_damage_is_refused_or_changes_only_values(files, tmp_path, form):
    """Bytes of the beginning and the end, where the structure is, are replaced; parts are cut off or inserted."""
    state_dict, path = torch.load(files / "base.pt", weights_only=True), tmp_path / "damaged"
    if form == "safetensors":
        save_file(state_dict, path)
    else:
        torch.save(state_dict, path, _use_new_zipfile_serialization=form == "zip")
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        place, width = rng.randrange(20_000), rng.choice([1, 3, 20])
        place = place if rng.random() < 0.5 else len(content) - 1 - place
        change = bytes(rng.randrange(256) for _ in range(width))
        start, end = rng.choice([(place, place + width), (place, place), (place, len(content))])
        content[start:end] = b"" if end == len(content) else change
        path.write_bytes(content)
        try:
            found = open_checkpoint(path, ("base",)).state_dict()
        except ConversionError as error:
            assert "\n" not in str(error)
        else:
            assert form != "zip" or all(torch.equal(found[key], tensor) for key, tensor in state_dict.items())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_a_zip_bomb_takes_no_memory(files, tmp_path):
    rewrite(files / "base.pt", tmp_path / "bomb.pt", {"data.pkl": bytes(500_000_000)}, zipfile.ZIP_DEFLATED)
    code = """
import re, sys
from glide_pipelines.conversion.reading import ConversionError, open_checkpoint
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
before = peak()
try:
    open_checkpoint(sys.argv[1])
except ConversionError:
    print(peak() - before)
"""
    command = [sys.executable, "-c", code, tmp_path / "bomb.pt"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(result.stdout) < 50_000  # kilobytes


def test_a_missing_file(refused, tmp_path):
    refused(r"^`checkpoint_path` \(.*none.pt\): .*No such file", checkpoint_path=tmp_path / "none.pt")
    refused(r"^`super_res_checkpoint_path` \(.*No such file", super_res_checkpoint_path=tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("base", "upsampler", "message"),
    [
        ("upsample", None, "`checkpoint_path` .*GLIDE's upsample, where base or base-inpaint is needed"),
        ("upsample-inpaint", None, "`checkpoint_path` .*GLIDE's upsample-inpaint, where base or"),
        ("base", "base", "`super_res_checkpoint_path` .*GLIDE's base, where upsample or upsample-inpaint is needed"),
    ],
)
def test_kinds_that_do_not_belong_there(refused, files, base, upsampler, message):
    upsampler = None if upsampler is None else files / f"{upsampler}.pt"
    refused(message, checkpoint_path=files / f"{base}.pt", super_res_checkpoint_path=upsampler)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab": 300}, "`super_res_checkpoint_path` .* has 300 tokens, that of `checkpoint_path` 258"),
        ({"context": 9}, "`super_res_checkpoint_path` .* has 9 positions, that of `checkpoint_path` 12"),
    ],
)
def test_text_encoders_that_cannot_share_a_tokenizer(refused, tmp_path, sizes, message):
    path = write_checkpoint(tmp_path, "upsample", **sizes)
    refused(message, super_res_checkpoint_path=path)


def test_a_tokenizer_of_another_vocabulary(refused, tmp_path):
    path = write_checkpoint(tmp_path, vocab=300)
    refused(
        r"^`tokenizer` .* has 258 entries, but the checkpoint's token embedding has 300 rows",
        checkpoint_path=path,
        super_res_checkpoint_path=None,
    )


@pytest.mark.parametrize("content", [None, "empty", "broken"])
def test_a_folder_without_a_tokenizer(refused, tmp_path, content):
    folder = tmp_path / "tokens"
    folder.mkdir()
    if content == "broken":
        (folder / "vocab.json").write_text("{")
        (folder / "merges.txt").write_text("")
    if content == "empty":
        (folder / "vocab.json").write_text("{}")
    message = "the files are no GPT-2 tokenizer" if content == "broken" else "no vocab.json and merges.txt"
    refused(rf"^`tokenizer` \({folder}\): .*{message}", tokenizer=folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_head_dim": 7}, "`attention_head_dim` must divide .*, 64, got 7"),
        ({"attention_head_dim": 0}, "`attention_head_dim` must divide .*, 64, got 0"),
        ({"attention_head_dim": 128}, "`attention_head_dim` must divide .*, 64, got 128"),
        ({"text_num_attention_heads": 5}, "`text_num_attention_heads` must divide .*, 32, got 5"),
        ({"text_num_attention_heads": -1}, "`text_num_attention_heads` must divide .*, 32, got -1"),
        ({"text_num_attention_heads": None}, "`text_num_attention_heads` must be given: .*, 32, does not"),
        ({"image_size": 15}, "`image_size` must be a positive multiple of 2 .*, got 15"),
        (
            {"super_res_image_size": 24},
            "`super_res_image_size` and `image_size` do not go together: .* 16, got 24",
        ),
        ({"super_res_image_size": 8}, "`super_res_image_size` and `image_size` do not go together: .* 16, got 8"),
        ({"super_res_image_size": 0}, "`super_res_image_size` must be a positive multiple of 2 .*, got 0"),
        ({"dtype": "int8"}, "`dtype` must be one of float32, float16, bfloat16, got 'int8'"),
        ({"variant": "a/b"}, "`variant` must be a part of a file name, such as 'fp16' .*, got 'a/b'"),
        ({"variant": ""}, "`variant` must be a part of a file name, such as 'fp16' .*, got ''"),
        ({"push_to_hub": "not/a/repository"}, "`push_to_hub` must be a repository on the Hub"),
    ],
)
def test_bad_options(refused, options, message):
    refused(message, **options)


def test_the_default_head_width_is_the_released_one(tmp_path):
    write_tokenizer(tmp_path)
    path = write_checkpoint(tmp_path, channels=(32, 128), width=128)
    folder = convert_glide_to_diffusers(path, tmp_path / "glide", tokenizer=tmp_path / "tokenizer")
    pipe = GLIDEPipeline.from_pretrained(folder)
    assert pipe.unet.config.attention_head_dim == 64
    assert pipe.text_encoder.config.num_attention_heads == 2


def test_a_folder_that_is_not_empty(refused, tmp_path):
    (tmp_path / "glide").mkdir()
    (tmp_path / "glide" / "mine").write_text("keep")
    refused(r"^`dump_path` \(.*glide\): the folder exists and is not empty", dump_path=tmp_path / "glide")
    refused(r"^`dump_path` \(.*mine\): this is a file", dump_path=tmp_path / "glide" / "mine")
    refused(r"^`dump_path` \(.*\): the folder cannot be made", dump_path=tmp_path / "glide" / "mine" / "more")
    assert (tmp_path / "glide" / "mine").read_text() == "keep"


@pytest.mark.parametrize("given", [True, False], ids=["empty folder", "new folder"])
def test_a_failure_half_way_leaves_nothing(files, tmp_path, monkeypatch, given):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    if given:
        (tmp_path / "glide").mkdir()
    monkeypatch.setattr(convert, "glide_filtered_card", fail)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        convert_glide_to_diffusers(files / "base.pt", tmp_path / "glide", tokenizer=files / "tokenizer", **OPTIONS)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "glide"
    return convert_glide_to_diffusers(files / "base.pt", folder, tokenizer=files / "tokenizer", **OPTIONS)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "unet/config.json").unlink(), "there is no unet"),
        (lambda folder: (folder / "text_encoder/config.json").unlink(), "text_encoder is not GLIDE's"),
        (lambda folder: cut(folder / "unet/diffusion_pytorch_model.safetensors"), "unet is not GLIDE's"),
        (lambda folder: pickled(folder / "unet"), "unet is not GLIDE's"),
        (lambda folder: stock(folder / "unet"), "unet is not GLIDE's|not the tensors of a GLIDE checkpoint"),
        (
            lambda folder: change(folder / "text_encoder/model.safetensors", {"padding_embedding": None}),
            "text_encoder is not GLIDE's .*'padding_embedding' is missing",
        ),
        (
            lambda folder: change(folder / "unet/diffusion_pytorch_model.safetensors", {"extra": torch.zeros(2)}),
            "unet is not GLIDE's .*'extra' is unknown",
        ),
        (
            lambda folder: change(
                folder / "unet/diffusion_pytorch_model.safetensors", {"conv_out.bias": torch.full((6,), torch.nan)}
            ),
            "unet is not GLIDE's .*'conv_out.bias' holds NaN or infinity",
        ),
    ],
    ids=["no unet", "no text encoder", "cut short", "a pickle", "another UNet", "one less", "one more", "NaN"],
)
def test_the_way_back_from_a_bad_folder(folder, tmp_path, harm, message):
    shutil.copytree(folder, tmp_path / "glide")
    harm(tmp_path / "glide")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConversionError, match=rf"^`model_path` \({tmp_path / 'glide'}\): .*({message})") as error:
        convert_diffusers_to_glide(tmp_path / "glide", tmp_path / "back")
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", 5])
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_the_way_back_does_not_follow_an_index_out_of_its_folder(folder, tmp_path, component, shard):
    shutil.copytree(folder, tmp_path / "glide")
    (weights,) = (tmp_path / "glide" / component).glob("*.safetensors")
    keys = load_file(weights).keys()
    weights.rename(tmp_path / "glide" / "secret.safetensors")
    index = weights.with_name(f"{weights.name}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(keys, shard)}))
    message = rf"{component}/{index.name} names {re.escape(repr(shard))}, which is no file of its folder"
    with pytest.raises(ConversionError, match=message):
        convert_diffusers_to_glide(tmp_path / "glide", tmp_path / "back")


def test_the_way_back_from_weights_in_several_files(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "glide")
    pipe = GLIDEPipeline.from_pretrained(folder)
    for name in ("unet", "text_encoder"):
        shutil.rmtree(tmp_path / "glide" / name)
        getattr(pipe, name).save_pretrained(tmp_path / "glide" / name, max_shard_size="100KB")
        assert list((tmp_path / "glide" / name).glob("*.index.json"))
    (whole,), (split,) = (
        convert_diffusers_to_glide(path, tmp_path / back) for path, back in ((folder, "a"), (tmp_path / "glide", "b"))
    )
    whole, split = (torch.load(file, weights_only=True) for file in (whole, split))
    assert list(whole) == list(split) and all(torch.equal(whole[key], split[key]) for key in whole)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def change(path, tensors):
    """Weights with other tensors, or without some."""
    weights = {key: tensor for key, tensor in (load_file(path) | tensors).items() if tensor is not None}
    save_file(weights, path, {"format": "pt"})


def pickled(folder):
    """The right weights, in a format that can hold code."""
    file = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def stock(folder):
    UNet2DConditionModel(
        block_out_channels=(32, 32),
        cross_attention_dim=32,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder)


def test_the_way_back_into_a_folder_that_is_not_empty(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConversionError, match=r"`dump_path` .* not empty"):
        convert_diffusers_to_glide(folder, tmp_path)
    with pytest.raises(ConversionError, match=r"`model_path` .* there is no unet"):
        convert_diffusers_to_glide(tmp_path / "none", tmp_path / "back")
    with pytest.raises(ConversionError, match=r"`variant` must be .*, got '../fp16'"):
        convert_diffusers_to_glide(folder, tmp_path / "back", variant="../fp16")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convert_glide_to_diffusers", {"checkpoint_path": "none.pt", "dump_path": "out"}),
        ("convert_glide_to_diffusers", {"checkpoint_path": "none.pt"}),
        ("convert_glide_to_diffusers", {"checkpoint_path": "none.pt", "dump_path": "out", "dtype": "int8"}),
        ("convert_glide_to_diffusers", {"checkpoint_path": "none.pt", "dump_path": "out", "image_size": "big"}),
        ("convert_diffusers_to_glide", {"model_path": "none", "dump_path": "out"}),
    ],
)
def test_the_scripts_print_one_line_and_exit_with_2(name, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert script(name).main(arguments(**options)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert "error: " in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "/full/disk"), "No space left on device: /full/disk"),
        (OSError("the disk\nis full"), "the disk is full"),
    ],
)
def test_a_disk_error_is_one_line_too(monkeypatch, capsys, error, line):
    def fail(**kwargs):
        raise error

    monkeypatch.setattr("glide_pipelines.conversion.convert_glide_to_diffusers", fail)
    assert script("convert_glide_to_diffusers").main(arguments(checkpoint_path="base.pt", dump_path="out")) == 2
    err = capsys.readouterr().err
    assert err.endswith(f"error: {line}\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("convert_glide_to_diffusers", 100_000),  # in the text encoder
        ("convert_glide_to_diffusers", 1_000_000),  # in the UNet
        ("convert_diffusers_to_glide", 1_000_000),
    ],
)
def test_a_full_disk(files, folder, tmp_path, name, limit):
    options = {"dump_path": tmp_path / "made" / "glide"}
    if name == "convert_diffusers_to_glide":
        options |= {"model_path": folder}
    else:
        options |= {"checkpoint_path": files / "base.pt", "tokenizer": files / "tokenizer", **OPTIONS}
    command = [sys.executable, "-c", LIMITED, str(limit), ROOT / f"conversion/{name}.py", *arguments(**options)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    line = rf"{name}.py: error: `dump_path` \({options['dump_path']}\): the folder cannot be written \(.*File too large"
    assert re.match(line, result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("component", ["tokenizer", "scheduler", "model_index.json", "README.md"])
def test_a_disk_that_is_full_after_the_weights(refused, monkeypatch, component):
    def fail(*args, **kwargs):
        raise Exception("No space left on device (os error 28)")  # as tokenizers says it

    owner, method = {
        "tokenizer": (GPT2Tokenizer, "save_pretrained"),
        "scheduler": (GLIDEDDPMScheduler, "save_pretrained"),
        "model_index.json": (GLIDEPipeline, "save_config"),
        "README.md": (ModelCard, "save"),
    }[component]
    monkeypatch.setattr(owner, method, fail)
    refused(r"^`dump_path` \(.*glide\): the folder cannot be written \(No space left")


def test_the_script_as_a_process(files, tmp_path):
    path = damaged("code", files, tmp_path)
    command = [sys.executable, ROOT / "conversion/convert_glide_to_diffusers.py"]
    command += arguments(checkpoint_path=path, dump_path=tmp_path / "out")
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("convert_glide_to_diffusers.py: error: `checkpoint_path` (")
    assert "Traceback" not in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.pt"]


def test_help_says_what_a_wrong_head_width_does(capsys):
    with pytest.raises(SystemExit) as exit_:
        script("convert_glide_to_diffusers").main(["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a wrong number makes wrong images without an error" in text
    assert "(default: 64)" in text


def test_a_file_goes_before_a_download_of_its_name(tmp_path, monkeypatch, files):
    """A file in the working directory goes before a download of the same name."""
    monkeypatch.chdir(tmp_path)
    torch.save(small_state_dict(), "base")
    folder = convert_glide_to_diffusers("base", "glide", tokenizer=files / "tokenizer", **OPTIONS)
    assert folder == tmp_path / "glide"
