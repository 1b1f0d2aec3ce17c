"""The text transformer: the released architecture, masks as in the original, saving and loading."""

import pytest
import torch
from tiny import CONTEXT, WIDTH, tiny_text_encoder

from glide_pipelines import GLIDETextConfig, GLIDETextEncoder


@pytest.fixture
def tokens():
    ids = torch.randint(0, 256, (2, CONTEXT), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(CONTEXT).expand(2, -1) < torch.tensor([[0], [5]])
    return ids, mask


def test_output_shape_and_dict(tokens):
    encoder = tiny_text_encoder()
    output = encoder(*tokens)
    assert output.last_hidden_state.shape == (2, CONTEXT, WIDTH)
    assert torch.equal(encoder(*tokens, return_dict=False)[0], output.last_hidden_state)


def test_masked_tokens_have_no_effect(tokens):
    ids, mask = tokens
    encoder = tiny_text_encoder()
    other = torch.where(mask, ids, 7)
    assert torch.equal(encoder(ids, mask).last_hidden_state, encoder(other, mask).last_hidden_state)


def test_padding_is_seen_by_the_text(tokens):
    """The attention is unmasked: the learned padding embedding takes part, as in the released model."""
    ids, mask = tokens
    encoder = tiny_text_encoder()
    before = encoder(ids, mask).last_hidden_state[1, 0]
    with torch.no_grad():
        encoder.padding_embedding[CONTEXT - 1] *= -1
    assert not torch.allclose(before, encoder(ids, mask).last_hidden_state[1, 0])


def test_attention_is_not_causal(tokens):
    ids, _ = tokens
    encoder = tiny_text_encoder()
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 256
    first = encoder(ids).last_hidden_state[:, 0]
    assert not torch.allclose(first, encoder(changed).last_hidden_state[:, 0])


def test_mask_may_be_integer_or_boolean(tokens):
    ids, mask = tokens
    encoder = tiny_text_encoder()
    assert torch.equal(encoder(ids, mask).last_hidden_state, encoder(ids, mask.long()).last_hidden_state)


def test_ids_may_be_of_any_integer_type_and_are_no_booleans(tokens):
    ids, encoder = tokens[0] % 100, tiny_text_encoder()
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(encoder(ids.to(dtype)).last_hidden_state, encoder(ids).last_hidden_state)
    with pytest.raises(TypeError, match=r"`input_ids` must be a tensor of whole numbers, got one of torch\.bool"):
        encoder(ids.bool())


@pytest.mark.parametrize("shape", [(2, CONTEXT - 1), (CONTEXT,)])
def test_wrong_length_is_an_error(shape):
    with pytest.raises(ValueError, match="`input_ids`"):
        tiny_text_encoder()(torch.zeros(shape, dtype=torch.long))


def test_wrong_mask_is_an_error(tokens):
    with pytest.raises(ValueError, match="`attention_mask`"):
        tiny_text_encoder()(tokens[0], tokens[1][:1])


def test_attention_implementations_agree(tokens, tmp_path):
    encoder = tiny_text_encoder()
    assert encoder.config._attn_implementation == "sdpa"
    encoder.save_pretrained(tmp_path)
    eager = GLIDETextEncoder.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    torch.testing.assert_close(eager(*tokens).last_hidden_state, encoder(*tokens).last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", ["5GB", "10KB"])
def test_save_and_load(tokens, tmp_path, variant, shards):
    encoder = tiny_text_encoder()
    encoder.save_pretrained(tmp_path, variant=variant, max_shard_size=shards)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shards == "5GB"
    loaded = GLIDETextEncoder.from_pretrained(tmp_path, variant=variant)
    assert torch.equal(loaded(*tokens).last_hidden_state, encoder(*tokens).last_hidden_state)


def test_gradient_checkpointing_gives_the_same_gradients(tokens):
    encoder = tiny_text_encoder().train()
    encoder(*tokens).last_hidden_state.square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}
    encoder.zero_grad()
    encoder.activation_checkpointing_enable()
    encoder(*tokens).last_hidden_state.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=5e-5, rtol=1e-4)


def test_released_size():
    """The parameter count that OpenAI's checkpoints have in their text transformer."""
    with torch.device("meta"):
        encoder = GLIDETextEncoder(GLIDETextConfig())
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 76_301_824


def test_new_weights_scale_with_the_width():
    """As CLIP's do: at 0.02 for all widths a narrow encoder's attention would add next to nothing."""
    torch.manual_seed(0)
    for width in (64, 256):
        config = GLIDETextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
        )
        layer = GLIDETextEncoder(config).encoder.layers[0]
        assert layer.self_attn.out_proj.weight.std().item() == pytest.approx(width**-0.5, rel=0.05)
        assert layer.mlp.fc1.weight.std().item() == pytest.approx((2 * width) ** -0.5, rel=0.05)
