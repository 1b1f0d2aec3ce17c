"""The noised CLIP's two files: into a folder that the guided pipeline opens, and back."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from recorded import (
    recorded_clip,
    recorded_state_dict,
    recorded_tokens,
    write_clip_vocabulary,
    write_glide_vocabulary,
    write_recorded_checkpoint,
)
from safetensors.torch import load_file
from small import (
    CLIP_HEAD_DIM,
    CONTEXT,
    OPTIONS,
    PAIRS,
    arguments,
    script,
    small_clip,
    write_clip,
    write_clip_tokenizer,
)
from test_tokenizers import write_vocabulary
from tiny import tiny_call
from transformers import CLIPTokenizer

from glide_pipelines import CLIPGuidedPipeline, NoisedCLIPConfig, NoisedCLIPModel
from glide_pipelines.conversion import ConversionError, convert_diffusers_to_glide, convert_glide_to_diffusers
from glide_pipelines.conversion.clip import build_clip, clip_correspondences, clip_to_glide, tower_config
from glide_pipelines.conversion.tokenizers import load_clip_tokenizer
from glide_pipelines.models import tokenize_prompts


KINDS = ("clip-text-enc", "clip-image-enc")


def given(files, pair=PAIRS[0], **changes):
    return {
        "checkpoint_path": files / f"{pair[0]}.pt",
        "super_res_checkpoint_path": files / f"{pair[1]}.pt",
        "tokenizer": files / "tokenizer",
        "clip_text_checkpoint_path": files / "clip-text-enc.pt",
        "clip_image_checkpoint_path": files / "clip-image-enc.pt",
        "clip_tokenizer": files / "clip-tokenizer",
        "clip_attention_head_dim": CLIP_HEAD_DIM,
        **OPTIONS,
        **changes,
    }


@pytest.fixture(scope="module")
def folder(files, pair, tmp_path_factory):
    return convert_glide_to_diffusers(dump_path=tmp_path_factory.mktemp("converted") / "glide", **given(files, pair))


# -- the folder -------------------------------------------------------------------------------------------------------


def test_the_folder_holds_the_clip(folder, pair):
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is CLIPGuidedPipeline
    original = small_clip()
    weights = original.state_dict()
    assert pipe.clip_model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in pipe.clip_model.state_dict().items())
    assert pipe.clip_model.logit_scale.exp().item() == pytest.approx(100)
    assert len(pipe.clip_tokenizer) == 515 and pipe.clip_tokenizer.model_max_length == CONTEXT
    assert pipe.unet.is_inpainter == ("inpaint" in pair[0])


def test_the_folder_is_what_the_pipeline_itself_would_save(folder, tmp_path):
    DiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path)
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.name != "README.md"}
    assert paths == {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    ours, theirs = (load_file(root / "clip_model" / "model.safetensors") for root in (folder, tmp_path))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_converted_pipeline_generates(folder, pair):
    pipe = CLIPGuidedPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    image = {}
    if "inpaint" in pair[0]:
        image = {"image": np.zeros((32, 32, 3), np.float32), "mask_image": np.ones((32, 32), np.float32)}
    guided, unguided = (pipe(**tiny_call(**image, clip_guidance_scale=scale)).images for scale in (30.0, 0.0))
    assert guided.shape == (1, 32, 32, 3)
    assert not np.allclose(guided, unguided, atol=1e-3)


def test_the_way_back_is_exact(files, folder, tmp_path):
    written = convert_diffusers_to_glide(folder, tmp_path / "back")
    assert [file.name for file in written[2:]] == ["clip_text_enc.pt", "clip_image_enc.pt"]
    for file, kind in zip(written[2:], KINDS, strict=True):
        original, result = (torch.load(path, weights_only=True) for path in (files / f"{kind}.pt", file))
        assert list(result) == list(original)
        for key, tensor in original.items():
            assert result[key].dtype == tensor.dtype and torch.equal(result[key], tensor), key


def test_a_scale_that_the_files_cannot_hold_gets_a_warning(folder, tmp_path, caplog):
    pipe = CLIPGuidedPipeline.from_pretrained(folder)
    pipe.clip_model.logit_scale.data.fill_(np.log(20))
    pipe.save_pretrained(tmp_path / "tuned")
    convert_diffusers_to_glide(tmp_path / "tuned", tmp_path / "back")
    assert "multiplies cosines by 20" in caplog.text


def test_dtype_and_variant(files, tmp_path):
    options = given(files, dtype="float16", variant="fp16")
    folder = convert_glide_to_diffusers(dump_path=tmp_path / "glide", **options)
    tensors = load_file(folder / "clip_model" / "model.fp16.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    pipe = CLIPGuidedPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float16)
    assert pipe.clip_model.dtype == torch.float16
    assert len(convert_diffusers_to_glide(folder, tmp_path / "back", variant="fp16")) == 4


def test_the_model_card(folder, pair):
    card = ModelCard.load(folder / "README.md").text
    assert "CLIPGuidedPipeline.from_pretrained" in card
    assert f"{small_clip().num_parameters():,}" in card
    for fact in (
        "`clip-text-enc.pt` and `clip-image-enc.pt`",
        "noised CLIP's guidance at scale 3",
        "multiplied by 100",
    ):
        assert fact in card
    assert "{" not in card


def test_the_script(files, tmp_path, capsys):
    script("convert_glide_to_diffusers").main(arguments(dump_path=tmp_path / "glide", **given(files)))
    script("convert_diffusers_to_glide").main(arguments(model_path=tmp_path / "glide", dump_path=tmp_path / "back"))
    assert [line.rsplit("/")[-1] for line in capsys.readouterr().out.splitlines()] == [
        "glide",
        "base.pt",
        "upsample.pt",
        "clip_text_enc.pt",
        "clip_image_enc.pt",
    ]


@torch.no_grad()
def test_the_recorded_clip_through_the_script(recordings, tmp_path):
    """The whole way: released layout, script, folder, pipeline, against the original's numbers."""
    sizes = {"attention_head_dim": 16, "text_num_attention_heads": 4, "image_size": 16, "clip_attention_head_dim": 16}
    clip = {
        f"clip_{tower}_checkpoint_path": write_recorded_checkpoint(recordings, f"clip-{tower}-enc", tmp_path)
        for tower in ("text", "image")
    }
    script("convert_glide_to_diffusers").main(
        arguments(
            checkpoint_path=write_recorded_checkpoint(recordings, "base", tmp_path),
            tokenizer=write_glide_vocabulary(tmp_path / "tokenizer", size=512, merges={}),
            clip_tokenizer=write_clip_vocabulary(tmp_path / "clip-tokenizer", size=600, merges={}),
            dump_path=tmp_path / "glide",
            **clip,
            **sizes,
        )
    )
    pipe = CLIPGuidedPipeline.from_pretrained(tmp_path / "glide")
    recorded = load_file(recordings / "clip.safetensors")
    mask = torch.arange(recorded["tokens"].shape[1]) < recorded["token_lengths"][:, None]
    output = pipe.clip_model(recorded["tokens"], recorded["sample"], recorded["timesteps"], mask)
    np.testing.assert_allclose(output.text_embeds, recorded["text_embeds"], atol=2e-5, rtol=0)
    np.testing.assert_allclose(output.image_embeds, recorded["image_embeds"], atol=2e-5, rtol=0)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(**tiny_call()).images.shape == (1, 16, 16, 3)


def test_names_are_downloaded(files, tmp_path, monkeypatch):
    asked = []

    def download(url):
        asked.append(url.rsplit("/", 1)[1])
        return files / asked[-1].replace("_", "-")

    monkeypatch.setattr("glide_pipelines.conversion.download.download_checkpoint", download)
    names = {"clip_text_checkpoint_path": KINDS[0], "clip_image_checkpoint_path": KINDS[1]}
    convert_glide_to_diffusers(dump_path=tmp_path / "glide", **given(files, **names))
    assert asked == ["clip_text_enc.pt", "clip_image_enc.pt"]


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_way_back_gives_the_original_files(recordings):
    for kind, state_dict in clip_to_glide(recorded_clip(recordings)).items():
        original = recorded_state_dict(recordings, kind)
        assert list(state_dict) == list(original)
        assert all(torch.equal(state_dict[key], tensor) for key, tensor in original.items())


def test_every_tensor_but_the_scale_is_in_the_files():
    clip = small_clip()
    held = [row.diffusers[0] for row in clip_correspondences(clip)]
    assert sorted(held) == sorted(clip.state_dict().keys() - {"logit_scale"})


def test_the_released_sizes_are_recognised():
    with torch.device("meta"):
        released = clip_to_glide(NoisedCLIPModel(NoisedCLIPConfig()))
    towers = [tower_config(state_dict, kind) for kind, state_dict in released.items()]
    found, default = build_clip(*towers).config, NoisedCLIPConfig()
    for name in ("text_config", "vision_config"):
        ours, theirs = (getattr(config, name).to_dict() for config in (found, default))
        assert ours | {"dtype": None} == theirs
    assert found.projection_dim == default.projection_dim


# -- the tokenizer ----------------------------------------------------------------------------------------------------


def test_ids_are_the_originals(recordings, tmp_path):
    recorded = recorded_tokens(recordings)
    size, context = recorded["clip"]["vocab_size"], recorded["clip"]["context"]
    folder = write_clip_vocabulary(tmp_path / "original", size, recorded["clip"]["merges"])
    tokenizer = load_clip_tokenizer(folder, context, 65536)
    assert len(tokenizer) == size
    tokenizer.save_pretrained(tmp_path)
    texts = [row["text"] for row in recorded["rows"]]
    for loaded in (tokenizer, CLIPTokenizer.from_pretrained(tmp_path)):
        tokens = tokenize_prompts(loaded, texts)
        assert tokens.input_ids.shape == (len(texts), 77)
        for row, ids, mask in zip(recorded["rows"], tokens.input_ids, tokens.attention_mask, strict=True):
            assert ids[mask.bool()].tolist() == row["clip_ids"], row["text"]


def test_text_is_mended_before_it_is_read(tmp_path):
    tokenizer = load_clip_tokenizer(write_clip_tokenizer(tmp_path), 40, 600)
    for broken, whole in (
        ("&lt;b&gt; &amp;amp; C", "<b> & c"),
        ("  two \n\t spaces ", "two spaces"),
        ("schÃ¶n", "schön"),
        ("ΟΔΟΣ", "οδος"),
    ):
        given, expected = tokenize_prompts(tokenizer, [broken, whole]).input_ids
        assert torch.equal(given, expected), broken
    ids = tokenize_prompts(tokenizer, ["x" * 99]).input_ids[0]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(files, tmp_path):
    def convert_(match, **changes):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ConversionError, match=match) as error:
            convert_glide_to_diffusers(dump_path=tmp_path / "made" / "glide", **given(files, **changes))
        assert "\n" not in str(error.value)
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"

    return convert_


@pytest.mark.parametrize("tower", ["text", "image"])
def test_both_towers_are_needed(refused, tower):
    argument = f"clip_{tower}_checkpoint_path"
    refused(f"^`{argument}` is missing: the noised CLIP has two towers", **{argument: None})


@pytest.mark.parametrize(
    ("argument", "kind", "message"),
    [
        ("clip_text_checkpoint_path", "clip-image-enc", "GLIDE's clip-image-enc, where clip-text-enc is needed"),
        ("clip_image_checkpoint_path", "clip-text-enc", "GLIDE's clip-text-enc, where clip-image-enc is needed"),
        ("clip_text_checkpoint_path", "base", "GLIDE's base, where clip-text-enc is needed"),
        ("clip_image_checkpoint_path", "none", "No such file"),
        ("checkpoint_path", "clip-text-enc", "GLIDE's clip-text-enc, where base or base-inpaint is needed"),
    ],
)
def test_other_files(refused, files, argument, kind, message):
    path = files / f"{kind}.pt"
    refused(rf"^`{argument}` \({path}\): .*{message}", **{argument: path})


DAMAGES = {
    "a tensor less": (
        "text",
        lambda state_dict: {k: v for k, v in state_dict.items() if k != "blocks.output.ln.b"},
        "'blocks.output.ln.b' is missing",
    ),
    "a tensor more": ("image", lambda state_dict: state_dict | {"extra": torch.zeros(2)}, "'extra' is unknown"),
    "a key bias": (
        "text",
        lambda state_dict: state_dict | {"blocks.block_0.f_attn.f_k.b": torch.zeros(32)},
        "'blocks.block_0.f_attn.f_k.b' is unknown",
    ),
    "no square of patches": (
        "image",
        lambda state_dict: state_dict | {"blocks.input.w_pos": torch.zeros(19, 32)},
        r"'blocks.input.w_pos' is \(19, 32\) where \(17, 32\) is needed",
    ),
    "no blocks": (
        "image",
        lambda state_dict: {k: v for k, v in state_dict.items() if "block_" not in k},
        "not a whole clip-image-enc",
    ),
    "another model": ("text", lambda state_dict: {"weight": torch.zeros(2)}, "the checkpoint of another model"),
    "another width": (
        "image",
        lambda state_dict: state_dict | {"blocks.output.f.w": torch.zeros(20, 32)},
        "the image tower projects to a width of 20, the text tower to 24",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_towers(refused, files, tmp_path, name):
    tower, damage, message = DAMAGES[name]
    path = tmp_path / "bad.pt"
    torch.save(damage(torch.load(files / f"clip-{tower}-enc.pt", weights_only=True)), path)
    refused(rf"^`clip_{tower}_checkpoint_path` \({path}\): .*{message}", **{f"clip_{tower}_checkpoint_path": path})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 8}, "it reads images of 8 pixels, the base model makes 16"),
        ({"timesteps": 500}, "it knows 500 timesteps, the base model has 1000"),
    ],
)
def test_a_clip_that_does_not_fit_the_base_model(refused, tmp_path, changes, message):
    clip = write_clip(tmp_path, **changes)
    refused(rf"^`clip_image_checkpoint_path` \(.*\): .*{message}", **clip)


def test_bad_options(refused, files, tmp_path):
    refused("`clip_attention_head_dim` must divide the width of the text tower, 32, got 5", clip_attention_head_dim=5)
    refused(r"^`clip_tokenizer` \(.*\): the files are no CLIP tokenizer", clip_tokenizer=files / "tokenizer")
    gpt2 = write_vocabulary(tmp_path / "gpt2")
    refused(r"^`clip_tokenizer` \(.*\): the files are no CLIP tokenizer", clip_tokenizer=gpt2)
    (tmp_path / "empty").mkdir()
    refused(r"^`clip_tokenizer` \(.*\): there are no vocab.json", clip_tokenizer=tmp_path / "empty")
    with pytest.raises(ConversionError, match="has 515 entries, but the text tower's embedding has only 500 rows"):
        load_clip_tokenizer(files / "clip-tokenizer", CONTEXT, 500)


def test_the_way_back_from_a_broken_clip(folder, tmp_path):
    pipe = CLIPGuidedPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "glide")
    weights = tmp_path / "glide" / "clip_model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConversionError, match=r"^`model_path` \(.*\): clip_model is not GLIDE's"):
        convert_diffusers_to_glide(tmp_path / "glide", tmp_path / "back")
    assert not (tmp_path / "back").exists()
