"""The noised CLIP: the released architecture, its loss and its gradient, saving and loading."""

import math

import pytest
import torch
import torch.nn.functional as F
from recorded import recorded_clip
from safetensors.torch import load_file
from tiny import CONTEXT, WIDTH, tiny_clip, tiny_tokenizer
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from glide_pipelines import NoisedCLIPConfig, NoisedCLIPModel
from glide_pipelines.models import contrastive_loss


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(0, 256, (3, CONTEXT), generator=generator),
        "attention_mask": torch.arange(CONTEXT).expand(3, -1) < torch.tensor([[2], [7], [CONTEXT]]),
        "sample": torch.randn(3, 3, 8, 8, generator=generator),
        "timesteps": torch.tensor([0, 417, 999]),
    }


def text(inputs, **changes):
    return {name: (inputs | changes)[name] for name in ("input_ids", "attention_mask")}


def picture(inputs, **changes):
    return {name: (inputs | changes)[name] for name in ("sample", "timesteps")}


# -- against the original ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(recordings):
    return recorded_clip(recordings), load_file(recordings / "clip.safetensors")


@torch.no_grad()
def test_embeddings_equal_the_original(recorded):
    clip, numbers = recorded
    mask = torch.arange(numbers["tokens"].shape[1]) < numbers["token_lengths"][:, None]
    output = clip(numbers["tokens"], numbers["sample"], numbers["timesteps"], mask)
    torch.testing.assert_close(output.text_embeds, numbers["text_embeds"], atol=2e-5, rtol=0)
    torch.testing.assert_close(output.image_embeds, numbers["image_embeds"], atol=2e-5, rtol=0)
    scaled = numbers["logit_scale"] * numbers["image_embeds"] @ numbers["text_embeds"].T
    torch.testing.assert_close(output.logits_per_image, scaled, atol=2e-3, rtol=0)


def test_the_guidance_gradient_equals_the_original(recorded):
    clip, numbers = recorded
    sample = numbers["sample"].requires_grad_()
    similarity = clip.similarity(sample, numbers["timesteps"], numbers["text_embeds"])
    (gradient,) = torch.autograd.grad(similarity.sum(), sample)
    torch.testing.assert_close(3 * gradient, numbers["grad_scale_3"], atol=1e-3, rtol=0)


def test_released_size():
    """The numbers of parameters of OpenAI's two files, and the one that is in none: the logit scale."""
    with torch.device("meta"):
        clip = NoisedCLIPModel(NoisedCLIPConfig())
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in clip.named_children()}
    assert sizes["text_model"] + sizes["text_projection"] == 71_679_488
    assert sizes["vision_model"] + sizes["visual_projection"] == 86_443_776
    assert clip.num_parameters() == 71_679_488 + 86_443_776 + 1


# -- the towers -------------------------------------------------------------------------------------------------------


def test_the_text_feature_is_taken_at_the_end_of_the_text(inputs):
    """What stands after the end has no effect; what stands at the end has."""
    clip = tiny_clip()
    features = clip.get_text_features(**text(inputs))
    assert features.shape == (3, WIDTH)
    padded = torch.where(inputs["attention_mask"], inputs["input_ids"], 7)
    torch.testing.assert_close(clip.get_text_features(padded, inputs["attention_mask"]), features)
    cut = clip.get_text_features(inputs["input_ids"][1:2, :7])
    torch.testing.assert_close(cut, features[1:2], atol=1e-5, rtol=1e-5)
    changed = inputs["input_ids"].clone()
    changed[1, 6] += 1
    assert not torch.allclose(clip.get_text_features(changed, inputs["attention_mask"])[1], features[1])


def test_the_picture_s_feature_depends_on_the_timestep(inputs):
    clip = tiny_clip()
    features = clip.get_image_features(**picture(inputs))
    assert features.shape == (3, WIDTH)
    other = clip.get_image_features(inputs["sample"], torch.tensor([1, 417, 999]))
    torch.testing.assert_close(other[1:], features[1:])
    assert not torch.allclose(other[0], features[0])
    # Schedulers with spacings of their own step at fractions.
    torch.testing.assert_close(clip.get_image_features(inputs["sample"], inputs["timesteps"] + 0.3), features)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": torch.zeros(3, 3, 16, 16)}, r"`sample` .*\[batch, 3, 8, 8\], got \[3, 3, 16, 16\]"),
        ({"timesteps": torch.zeros(1)}, r"`timesteps` .*\[3\].* got \[1\]"),
        ({"input_ids": torch.zeros(3, CONTEXT + 1, dtype=torch.long)}, rf"`input_ids` .* up to {CONTEXT} tokens"),
        ({"attention_mask": torch.ones(3, 2)}, "`attention_mask` must have the shape"),
    ],
)
def test_wrong_shapes_are_errors(inputs, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_clip()(**inputs | changes)


def test_a_picture_of_patches_that_do_not_fit_is_an_error():
    with pytest.raises(ValueError, match="`image_size` must be a multiple of `patch_size` 4, got 10"):
        tiny_clip(image_size=10)


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_of_both_directions(inputs):
    clip = tiny_clip()
    output = clip(**inputs, return_loss=True)
    logits, own = output.logits_per_image, torch.arange(3)
    assert torch.equal(output.logits_per_text, logits.T)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(output.loss, expected)
    assert clip(**inputs).loss is None
    as_tuple = clip(**inputs, return_loss=True, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss) and len(as_tuple) == 5


def test_the_loss_of_features_that_were_gathered(inputs):
    """What a training script computes over several processes equals what the model computes in one."""
    clip = tiny_clip()
    positives = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    features = clip.get_image_features(**picture(inputs)), clip.get_text_features(**text(inputs))
    for mask in (None, positives):
        loss = contrastive_loss(*features, clip.logit_scale, mask)
        torch.testing.assert_close(loss, clip(**inputs, positives=mask, return_loss=True).loss)


def test_equal_captions_are_no_negatives():
    """Two pictures of one caption: neither is punished for fitting the other's."""
    corners = torch.eye(4)[[0, 0, 1, 2]]
    scale = torch.tensor(math.log(50))
    positives = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    images = corners.clone().requires_grad_()
    perfect = contrastive_loss(images, corners, scale, positives)
    (gradient,) = torch.autograd.grad(perfect, images)
    assert gradient.abs().max() < 1e-6
    # A pair that is one of two equals cannot be told apart: what is left is that entropy, for two of four.
    torch.testing.assert_close(perfect.detach(), torch.tensor(math.log(2) / 2))
    torch.testing.assert_close(
        contrastive_loss(corners, corners, scale, torch.eye(4)), contrastive_loss(corners, corners, scale)
    )


def test_cosines_are_multiplied_by_100_at_most(inputs):
    clip = tiny_clip(logit_scale_init_value=9.0)
    at_most = tiny_clip(logit_scale_init_value=math.log(100))
    assert clip(**inputs).logits_per_image.abs().max() <= 100.001
    torch.testing.assert_close(clip(**inputs).logits_per_image, at_most(**inputs).logits_per_image)
    # At the limit the gradient still flows, so that training can come back from it.
    at_most(**inputs, return_loss=True).loss.backward()
    assert at_most.logit_scale.grad != 0


def test_logits_are_float32_under_autocast(inputs):
    clip = tiny_clip(logit_scale_init_value=math.log(100))
    expected = clip(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = clip(**inputs, return_loss=True)
        logits = 100 * output.image_embeds @ output.text_embeds.T
    assert output.logits_per_image.dtype == output.loss.dtype == torch.float32
    exact = 100 * output.image_embeds.double() @ output.text_embeds.double().T
    assert (output.logits_per_image - exact).abs().max() < 1e-4 < (logits - exact).abs().max()
    assert (output.image_embeds - expected.image_embeds).abs().max() < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_features": torch.zeros(2, 4)}, r"\[3, 4\] and \[2, 4\]"),
        ({"positives": torch.ones(3, 2)}, r"`positives` must have the shape \[3, 3\], got \[3, 2\]"),
    ],
)
def test_features_that_do_not_pair_are_errors(change, message):
    features = {"image_features": torch.zeros(3, 4), "text_features": torch.zeros(3, 4)}
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**features | change, logit_scale=torch.tensor(0.0))


def test_the_loss_needs_pairs(inputs):
    clip = tiny_clip()
    fewer = {name: value[:2] for name, value in text(inputs).items()}
    assert clip(**inputs | fewer).logits_per_image.shape == (3, 2)
    with pytest.raises(ValueError, match="as many captions as images, got 2 and 3"):
        clip(**inputs | fewer, return_loss=True)


def test_training_lowers_the_loss(inputs):
    clip = tiny_clip().train()
    optimizer = torch.optim.Adam(clip.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = clip(**inputs, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# -- the gradient -----------------------------------------------------------------------------------------------------


def gradient_of(clip, inputs, scale=1.0):
    sample = (scale * inputs["sample"]).requires_grad_()
    features = clip.get_text_features(**text(inputs)).detach()
    return torch.autograd.grad(clip.similarity(sample, inputs["timesteps"], features).sum(), sample)[0]


def test_similarity_is_that_of_the_pairs(inputs):
    clip = tiny_clip()
    similarity = clip.similarity(**picture(inputs), text_features=7 * clip.get_text_features(**text(inputs)))
    torch.testing.assert_close(similarity, clip(**inputs).logits_per_image.diagonal(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_gradients_in_half_precision_are_finite(inputs, dtype, scale):
    clip = tiny_clip(logit_scale_init_value=math.log(100))
    expected = gradient_of(clip, inputs, scale)
    gradient = gradient_of(clip.to(dtype), inputs, scale)
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()
    assert F.cosine_similarity(gradient.flatten(1), expected.flatten(1)).min() > 0.9


@pytest.mark.parametrize("training", [False, True])
def test_gradient_checkpointing_saves_memory_and_changes_nothing(inputs, training):
    """In evaluation mode too, where the guidance takes its gradient."""
    clip = tiny_clip().train(training)
    expected, kept = gradient_and_saved(clip, inputs)
    clip.enable_gradient_checkpointing()
    gradient, kept_less = gradient_and_saved(clip, inputs)
    torch.testing.assert_close(gradient, expected)
    assert kept_less < kept / 2
    clip.disable_gradient_checkpointing()
    assert gradient_and_saved(clip, inputs)[1] == kept
    assert clip.training is training


def gradient_and_saved(clip, inputs):
    """The guidance gradient, and how many tensors the forward pass kept for it."""
    saved = []
    features = clip.get_text_features(**text(inputs)).detach()
    sample = inputs["sample"].clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (saved.append(1), tensor)[1], lambda tensor: tensor):
        similarity = clip.similarity(sample, inputs["timesteps"], features)
        kept = len(saved)
    return torch.autograd.grad(similarity.sum(), sample)[0], kept


def test_gradient_checkpointing_gives_the_same_gradients_of_the_weights(inputs):
    clip = tiny_clip().train()
    clip(**inputs, return_loss=True).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in clip.named_parameters()}
    clip.zero_grad()
    clip.enable_gradient_checkpointing()
    clip(**inputs, return_loss=True).loss.backward()
    for name, parameter in clip.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=5e-5, rtol=1e-4)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", ["5GB", "10KB"])
def test_save_and_load(inputs, tmp_path, variant, shards):
    clip = tiny_clip(logit_scale_init_value=3.0)
    clip.save_pretrained(tmp_path, variant=variant, max_shard_size=shards)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shards == "5GB"
    loaded = NoisedCLIPModel.from_pretrained(tmp_path, variant=variant)
    for expected, result in zip(clip(**inputs).to_tuple(), loaded(**inputs).to_tuple(), strict=True):
        assert torch.equal(result, expected)


def test_float32_unless_asked_otherwise(tmp_path):
    tiny_clip().half().save_pretrained(tmp_path)
    assert NoisedCLIPModel.from_pretrained(tmp_path).dtype == torch.float32
    assert NoisedCLIPModel.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16


def test_attention_implementations_agree(inputs, tmp_path):
    clip = tiny_clip()
    assert clip.vision_model.config._attn_implementation == clip.text_model.config._attn_implementation == "sdpa"
    clip.save_pretrained(tmp_path)
    eager = NoisedCLIPModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.vision_model.config._attn_implementation == eager.text_model.config._attn_implementation == "eager"
    expected = clip(**inputs).logits_per_image
    torch.testing.assert_close(eager(**inputs).logits_per_image, expected, atol=1e-4, rtol=1e-4)


def test_transformers_own_auto_classes_open_it(tmp_path, caplog):
    """And its tokenizer, without the warning that they give for a model that they do not know."""
    clip = tiny_clip()
    clip.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    logging.enable_propagation()
    try:
        loaded, tokenizer = AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    finally:
        logging.disable_propagation()
    assert isinstance(loaded, NoisedCLIPModel)
    assert torch.equal(loaded.visual_projection.weight, clip.visual_projection.weight)
    assert len(tokenizer) == len(tiny_tokenizer()) and not caplog.records


def test_new_weights_scale_with_the_width_and_all_timesteps_start_alike():
    model = NoisedCLIPModel(tiny_clip().config)
    for tower in (model.text_model, model.vision_model):
        width = tower.config.hidden_size
        weights = torch.cat([layer.self_attn.out_proj.weight.flatten() for layer in tower.encoder.layers])
        assert weights.std().item() == pytest.approx(width**-0.5, rel=0.15)
    x_t = torch.randn(1, 3, 8, 8)
    early, late = (model.get_image_features(x_t, torch.tensor([t])) for t in (0, 999))
    torch.testing.assert_close(early, late)
