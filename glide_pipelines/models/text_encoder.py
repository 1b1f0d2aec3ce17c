"""GLIDE's text transformer: a prompt becomes one vector per token (arXiv 2112.10741, section 3.1)."""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import CLIPTextConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPPreTrainedModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..arguments import check_indices, check_tensor
from ..single_file import SingleFileNetworkMixin
from .pretrained import Float32Mixin, init_clip_layers


# `strict` checks what is annotated by types, not by their names.
@strict
class GLIDETextConfig(CLIPTextConfig):
    """Shape of a [`GLIDETextEncoder`]. The defaults are those of OpenAI's released checkpoints.

    Args:
        vocab_size (`int`, defaults to 50257): Entries of the GPT-2 byte-level BPE.
        hidden_size (`int`, defaults to 512): Width of the transformer.
        intermediate_size (`int`, defaults to 2048): Width of the feed-forward layers (4 x `hidden_size`).
        num_hidden_layers (`int`, defaults to 16): Transformer blocks.
        num_attention_heads (`int`, defaults to 8): Heads per block; each is `hidden_size / num_attention_heads` wide.
        max_position_embeddings (`int`, defaults to 128): Text context, in tokens.
        hidden_act (`str`, defaults to `"gelu"`): Activation; `"gelu"` is the exact (erf) one.
        pad_token_id (`int`, defaults to 50256): The token that fills a prompt up; masked, so it has no effect.
    """

    model_type = "glide_text_model"

    vocab_size: int = 50257
    num_hidden_layers: int = 16
    max_position_embeddings: int = 128
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 50256
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 50256


class GLIDETextEncoder(SingleFileNetworkMixin, Float32Mixin, CLIPPreTrainedModel):
    """Text transformer over a fixed context; unmasked attention, pre-norm, a learned vector for each empty position.

    Unlike most encoders, the attention mask does not hide positions from the attention: where it is false, the
    learned padding embedding of that position takes the place of token plus position embedding, and every position
    attends to every other one. The empty prompt (all positions padded) is the unconditional one.

    Args:
        config ([`GLIDETextConfig`]): Shape of the model.
    """

    config_class = GLIDETextConfig
    config: GLIDETextConfig
    base_model_prefix = ""
    input_modalities = ("text",)
    _input_embed_layer = "token_embedding"
    _no_split_modules = ["CLIPEncoderLayer"]
    _sizes = {
        "vocab_size": ("token_embedding.weight", 0),
        "hidden_size": ("token_embedding.weight", 1),
        "max_position_embeddings": ("position_embedding", 0),
        "intermediate_size": ("encoder.layers.0.mlp.fc1.weight", 0),
    }
    _counts = {"num_hidden_layers": r"encoder\.layers\.(\d+)\."}
    _positive = ("num_attention_heads",)

    def __init__(self, config: GLIDETextConfig) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))
        self.padding_embedding = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GLIDETextEncoder):
            init_clip_layers(module)
            for embedding in (module.token_embedding.weight, module.position_embedding, module.padding_embedding):
                init.normal_(embedding, std=self.config.initializer_range)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode a batch of prompts.

        Args:
            input_ids (`torch.LongTensor` of shape `[B, L]`): Token ids, `L` being the whole context.
            attention_mask (`torch.Tensor` of shape `[B, L]`, *optional*): True (or 1) on text, false (or 0) on
                padding. Without it every position counts as text.
            kwargs: What any model of transformers takes: `return_dict`, `output_hidden_states`, `output_attentions`.

        Returns:
            `BaseModelOutput`: `last_hidden_state` of shape `[B, L, C]`, after the final layer norm, and on demand
            `hidden_states`, a tuple of such tensors: what goes into the first block, and what comes out of each.

        Raises:
            ValueError, TypeError: if `input_ids` or `attention_mask` does not span the whole context (pad prompts), or
                an id is none of the vocabulary (on the CPU).
        """
        check_tensor("input_ids", input_ids, "batch", self.config.max_position_embeddings, floating_point=False)
        check_indices("input_ids", input_ids, self.config.vocab_size)
        if attention_mask is not None:
            check_tensor("attention_mask", attention_mask, *input_ids.shape, floating_point=None)
        hidden_states = self.token_embedding(input_ids.long()) + self.position_embedding
        if attention_mask is not None:
            hidden_states = torch.where(attention_mask.bool()[..., None], hidden_states, self.padding_embedding)
        hidden_states = self.encoder(hidden_states, **kwargs).last_hidden_state
        return BaseModelOutput(last_hidden_state=self.final_layer_norm(hidden_states))
