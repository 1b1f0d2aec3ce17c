"""A CLIP that reads noised images, whose gradient guides the sampling (arXiv 2112.10741, section 2.3)."""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPOutput, CLIPPreTrainedModel

from ..arguments import check_indices, check_tensor
from ..images import unscale_pixels
from .pretrained import Float32Mixin, init_clip_layers


# Of the images that CLIP was trained on, per channel, for pixels from 0 to 255.
PIXEL_MEAN = (122.77093945, 116.74601272, 104.09373519)
PIXEL_STD = (68.50053285, 66.63215831, 70.32316309)

# Cosines are multiplied by 100 at most (CLIP, arXiv 2103.00020, section 2.5).
MAX_LOGIT_SCALE = math.log(100)


# `strict` checks what is annotated by types, not by their names.
@strict
class NoisedCLIPTextConfig(CLIPTextConfig):
    """Shape of the text tower, see [`NoisedCLIPConfig`]. The defaults are those of OpenAI's released checkpoint.

    Args:
        vocab_size (`int`, defaults to 65536): Rows of the token embedding; CLIP's tokenizer uses 49408 of them.
        hidden_size (`int`, defaults to 512): Width of the transformer.
        intermediate_size (`int`, defaults to 2048): Width of the feed-forward layers.
        num_hidden_layers (`int`, defaults to 12): Transformer blocks.
        num_attention_heads (`int`, defaults to 8): Heads per block.
        max_position_embeddings (`int`, defaults to 77): Text context, in tokens.
        hidden_act (`str`, defaults to `"gelu"`): Activation; `"gelu"` is the exact (erf) one.
    """

    model_type = "noised_clip_text_model"

    vocab_size: int = 65536
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    # The mask tells where a text ends; the tokenizer knows its own special tokens.
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


@strict
class NoisedCLIPVisionConfig(CLIPVisionConfig):
    """Shape of the image tower, see [`NoisedCLIPConfig`]. The defaults are those of OpenAI's released checkpoint.

    Args:
        image_size (`int`, defaults to 64): Height and width of the images, in pixels.
        patch_size (`int`, defaults to 4): Height and width of a patch; it divides `image_size`.
        num_train_timesteps (`int`, defaults to 1000): Timesteps of the noise schedule, one learned vector each.
        hidden_size (`int`, defaults to 768): Width of the transformer.
        intermediate_size (`int`, defaults to 3072): Width of the feed-forward layers.
        num_hidden_layers (`int`, defaults to 12): Transformer blocks.
        num_attention_heads (`int`, defaults to 12): Heads per block.
        hidden_act (`str`, defaults to `"gelu"`): Activation; `"gelu"` is the exact (erf) one.
    """

    model_type = "noised_clip_vision_model"

    image_size: int = 64
    patch_size: int = 4
    num_train_timesteps: int = 1000
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5


@strict
class NoisedCLIPConfig(CLIPConfig):
    """Shape of a [`NoisedCLIPModel`]. The defaults are those of OpenAI's released checkpoint.

    Args:
        text_config (`dict` or [`NoisedCLIPTextConfig`], *optional*): Shape of the text tower.
        vision_config (`dict` or [`NoisedCLIPVisionConfig`], *optional*): Shape of the image tower.
        projection_dim (`int`, defaults to 512): Width of the space that both towers project into.
        logit_scale_init_value (`float`, defaults to log(1 / 0.07)): Where training starts the learned logarithm of what
            cosines are multiplied by.
    """

    model_type = "noised_clip"
    sub_configs_defaults = {"text_config": NoisedCLIPTextConfig, "vision_config": NoisedCLIPVisionConfig}

    # Given as `dict` too; once made they are the configs of the towers.
    text_config: Any = None
    vision_config: Any = None


class NoisedCLIPTextModel(Float32Mixin, CLIPPreTrainedModel):
    """The text tower: a causal transformer."""

    config_class = NoisedCLIPTextConfig
    config: NoisedCLIPTextConfig
    base_model_prefix = "text_model"
    # Of a whole NoisedCLIPModel, whose folder a tower opens too.
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", r"^(text|visual)_projection\.", r"^logit_scale$"]
    input_modalities = ("text",)
    _no_split_modules = ["CLIPEncoderLayer"]
    _input_embed_layer = "token_embedding"

    def __init__(self, config: NoisedCLIPTextConfig) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Parameter(torch.empty(config.max_position_embeddings, config.hidden_size))
        self.encoder = _encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NoisedCLIPTextModel):
            init_clip_layers(module)
            for embedding in (module.token_embedding.weight, module.position_embedding):
                init.normal_(embedding, std=self.config.initializer_range)

    def forward(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The vector `[B, W]` at the end of each caption, before the projection, of token ids `[B, L]` and their mask,
        true on text and false on the padding after it."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden_states = self.token_embedding(input_ids.long()) + self.position_embedding[positions]
        # What comes after the end does not reach it: padding needs no mask.
        causal = create_causal_mask(self.config, hidden_states, attention_mask=None, past_key_values=None)
        hidden_states = self.encoder(hidden_states, causal, is_causal=True).last_hidden_state
        end = (positions * attention_mask.bool()).argmax(dim=1)
        return self.final_layer_norm(hidden_states[torch.arange(len(end), device=end.device), end])


class NoisedCLIPVisionModel(Float32Mixin, CLIPPreTrainedModel):
    """The image tower: patches, and the vector of the timestep in place of a class token.

    Raises:
        ValueError: if the patches do not fill the image.
    """

    config_class = NoisedCLIPVisionConfig
    config: NoisedCLIPVisionConfig
    base_model_prefix = "vision_model"
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_scale$"]
    main_input_name = "sample"
    input_modalities = ("image",)
    _no_split_modules = ["CLIPEncoderLayer"]

    def __init__(self, config: NoisedCLIPVisionConfig) -> None:
        super().__init__(config)
        width, patch = config.hidden_size, config.patch_size
        if config.image_size % patch:
            raise ValueError(f"`image_size` must be a multiple of `patch_size` {patch}, got {config.image_size}.")
        self.time_embedding = nn.Embedding(config.num_train_timesteps, width)
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Parameter(torch.empty(1 + (config.image_size // patch) ** 2, width))
        self.pre_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.encoder = _encoder(config)
        self.post_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NoisedCLIPVisionModel):
            init_clip_layers(module)
            for embedding in (module.patch_embedding.weight, module.position_embedding):
                init.normal_(embedding, std=self.config.initializer_range)
            # All timesteps start as one, that of the first position: what is learned at one then serves the others.
            # A thousand unrelated vectors would have to be taught one by one.
            init.zeros_(module.time_embedding.weight)

    def forward(self, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The vector `[B, W]` of each noised image, before the projection, of x_t `[B, 3, S, S]`, where x_0 lies in
        [-1, 1], and timesteps `[B]`; a fraction is rounded."""
        mean, std = (sample.new_tensor(values).view(-1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        pixels = (unscale_pixels(sample) - mean) / std
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        time = self.time_embedding(timesteps.round().long())[:, None]
        hidden_states = torch.cat([time, patches], dim=1) + self.position_embedding
        hidden_states = self.encoder(self.pre_layer_norm(hidden_states)).last_hidden_state
        return self.post_layer_norm(hidden_states[:, 0])


class NoisedCLIPModel(Float32Mixin, CLIPPreTrainedModel):
    """A CLIP trained on noised images: how well a caption fits x_t, at every timestep t.

    The text tower is CLIP's, causal, and its feature is taken at the end of the text. The image tower sees one learned
    vector per timestep in place of a class token. Attention keys have no bias, and the activation is the exact GELU.

    Args:
        config ([`NoisedCLIPConfig`]): Shape of the model.
    """

    config_class = NoisedCLIPConfig
    config: NoisedCLIPConfig
    _no_split_modules = ["CLIPEncoderLayer"]
    _sizes = {
        "projection_dim": ("text_projection.weight", 0),
        "text_config.vocab_size": ("text_model.token_embedding.weight", 0),
        "text_config.hidden_size": ("text_model.token_embedding.weight", 1),
        "text_config.max_position_embeddings": ("text_model.position_embedding", 0),
        "text_config.intermediate_size": ("text_model.encoder.layers.0.mlp.fc1.weight", 0),
        "vision_config.num_train_timesteps": ("vision_model.time_embedding.weight", 0),
        "vision_config.hidden_size": ("vision_model.time_embedding.weight", 1),
        "vision_config.num_channels": ("vision_model.patch_embedding.weight", 1),
        "vision_config.patch_size": ("vision_model.patch_embedding.weight", 2),
        "vision_config.intermediate_size": ("vision_model.encoder.layers.0.mlp.fc1.weight", 0),
    }
    _counts = {
        "text_config.num_hidden_layers": r"text_model\.encoder\.layers\.(\d+)\.",
        "vision_config.num_hidden_layers": r"vision_model\.encoder\.layers\.(\d+)\.",
    }
    _positive = (
        "text_config.num_attention_heads",
        "vision_config.num_attention_heads",
        "vision_config.image_size",
    )

    def __init__(self, config: NoisedCLIPConfig) -> None:
        super().__init__(config)
        self.text_model = NoisedCLIPTextModel._from_config(config.text_config)
        self.vision_model = NoisedCLIPVisionModel._from_config(config.vision_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()
        # What a tower may ignore in the folder of the whole model, the model itself may not.
        self._keys_to_ignore_on_load_unexpected = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NoisedCLIPModel):
            for projection in (module.text_projection, module.visual_projection):
                init.normal_(projection.weight, std=projection.in_features**-0.5)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The vector of each caption.

        Args:
            input_ids (`torch.LongTensor` of shape `[B, L]`): Token ids, `L` being the text context or less.
            attention_mask (`torch.Tensor` of shape `[B, L]`, *optional*): True (or 1) on text, false (or 0) on the
                padding after it; the feature is taken at the last position that it covers (the first one, where it
                covers none). Without a mask every position counts as text.

        Returns:
            `torch.Tensor` of shape `[B, D]`, not yet of unit length.

        Raises:
            ValueError: if the shapes do not fit.
        """
        context = self.config.text_config.max_position_embeddings
        check_tensor("input_ids", input_ids, "batch", f"up to {context} tokens", floating_point=False)
        if input_ids.shape[1] > context:
            raise ValueError(f"`input_ids` must have up to {context} tokens, got {list(input_ids.shape)}.")
        check_indices("input_ids", input_ids, self.config.text_config.vocab_size)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        check_tensor("attention_mask", attention_mask, *input_ids.shape, floating_point=None)
        return self.text_projection(self.text_model(input_ids, attention_mask))

    def get_image_features(self, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The vector of each noised image.

        Args:
            sample (`torch.Tensor` of shape `[B, 3, S, S]`): x_t, where x_0 lies in [-1, 1].
            timesteps (`torch.Tensor` of shape `[B]`): Timestep of each, 0 (clean) to `num_train_timesteps - 1`.

        Returns:
            `torch.Tensor` of shape `[B, D]`, not yet of unit length.

        Raises:
            ValueError: if the shapes do not fit.
        """
        vision = self.config.vision_config
        check_tensor("sample", sample, "batch", vision.num_channels, vision.image_size, vision.image_size)
        check_tensor("timesteps", timesteps, len(sample), floating_point=None)
        check_indices("timesteps", timesteps, vision.num_train_timesteps)
        return self.visual_projection(self.vision_model(sample, timesteps))

    def similarity(self, sample: torch.Tensor, timesteps: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """How well each image fits its own text: f(x_t) . g(c) of the paper, whose gradient guides the sampling.

        Args:
            sample (`torch.Tensor` of shape `[B, 3, S, S]`): x_t.
            timesteps (`torch.Tensor` of shape `[B]`): Timestep of each.
            text_features (`torch.Tensor` of shape `[B, D]`): Of any length: unit length is brought about here.

        Returns:
            `torch.Tensor` of shape `[B]`, in float32: the cosine times `exp(logit_scale)`.
        """
        image_features = self.get_image_features(sample, timesteps)
        check_tensor("text_features", text_features, len(sample), self.config.projection_dim)
        cosine = (_unit(image_features) * _unit(text_features)).sum(dim=-1)
        return _exp_logit_scale(self.logit_scale) * cosine

    def forward(
        self,
        input_ids: torch.LongTensor,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        positives: torch.Tensor | None = None,
        return_loss: bool = False,
        return_dict: bool | None = None,
    ) -> CLIPOutput | tuple[torch.Tensor, ...]:
        """Compare every caption with every noised image.

        Args:
            input_ids (`torch.LongTensor` of shape `[M, L]`): Token ids of the captions.
            sample (`torch.Tensor` of shape `[N, 3, S, S]`): Noised images.
            timesteps (`torch.Tensor` of shape `[N]`): Their timesteps.
            attention_mask (`torch.Tensor` of shape `[M, L]`, *optional*): True on text, false on padding.
            positives (`torch.Tensor` of shape `[N, M]`, *optional*): For the loss: which captions fit which images,
                see [`contrastive_loss`].
            return_loss (`bool`, defaults to `False`): Whether to compute the loss; `M` and `N` are then equal.
            return_dict (`bool`, *optional*): False gives a tuple.

        Returns:
            `CLIPOutput`: `logits_per_image` of shape `[N, M]` and `logits_per_text` of shape `[M, N]` (scaled cosines),
            `image_embeds` of shape `[N, D]` and `text_embeds` of shape `[M, D]` (unit length), all in float32, and
            `loss`.
        """
        image_embeds = _unit(self.get_image_features(sample, timesteps))
        text_embeds = _unit(self.get_text_features(input_ids, attention_mask))
        logits = _logits(image_embeds, text_embeds, self.logit_scale)
        output = CLIPOutput(
            loss=_symmetric_cross_entropy(logits, positives) if return_loss else None,
            logits_per_image=logits,
            logits_per_text=logits.T,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
        )
        return output if return_dict is not False else output.to_tuple()

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass, which bounds the memory of training and of guidance."""
        self.activation_checkpointing_enable()
        self.train(self.training)

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations for the backward pass again."""
        self.activation_checkpointing_disable()
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; gradient checkpointing stays on in both."""
        super().train(mode)
        # transformers recomputes a layer in training mode only, but guidance takes gradients in evaluation mode. The
        # flag of the layer itself decides on nothing else: dropout has that of the attention inside.
        for layer in (*self.text_model.encoder.layers, *self.vision_model.encoder.layers):
            layer.training = mode or layer.gradient_checkpointing
        return self


def contrastive_loss(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    logit_scale: torch.Tensor,
    positives: torch.Tensor | None = None,
) -> torch.Tensor:
    """CLIP's symmetric loss: each image is to pick its caption out of the batch, and each caption its image.

    In several processes, gather the features first: every negative of the global batch counts.

    Args:
        image_features (`torch.Tensor` of shape `[B, D]`): Of any length: unit length is brought about here.
        text_features (`torch.Tensor` of shape `[B, D]`): The captions', in the same order.
        logit_scale (`torch.Tensor`): Learned logarithm of what cosines are multiplied by; beyond [`MAX_LOGIT_SCALE`] it
            is clamped and gets no gradient, so clamp the parameter itself after each step of an optimizer.
        positives (`torch.Tensor` of shape `[B, B]`, *optional*): True where the caption of the column fits the image
            of the row. By default each image fits its own caption only; where captions repeat in a batch, pass
            which are equal (at least one in each row and column). The target is then spread evenly over them (UniCL,
            arXiv 2204.03610, equation 3).

    Returns:
        `torch.Tensor`: the mean over images and captions, a scalar in float32.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            "`image_features` and `text_features` must both have the shape [batch, width], "
            f"got {list(image_features.shape)} and {list(text_features.shape)}."
        )
    logits = _logits(_unit(image_features), _unit(text_features), logit_scale)
    return _symmetric_cross_entropy(logits, positives)


def _encoder(config: CLIPTextConfig | CLIPVisionConfig) -> CLIPEncoder:
    encoder = CLIPEncoder(config)
    for layer in encoder.layers:
        layer.self_attn.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
    return encoder


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.float(), dim=-1)


def _exp_logit_scale(logit_scale: torch.Tensor) -> torch.Tensor:
    return logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()


def _logits(image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    # At a hundred times the cosine, half precision would be coarse; autocast would choose it for a product.
    with torch.autocast(image_embeds.device.type, enabled=False):
        return _exp_logit_scale(logit_scale) * image_embeds @ text_embeds.T


def _symmetric_cross_entropy(logits: torch.Tensor, positives: torch.Tensor | None) -> torch.Tensor:
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(f"the loss needs as many captions as images, got {logits.shape[1]} and {logits.shape[0]}.")
    if positives is None:
        positives = torch.eye(len(logits), device=logits.device)
    if positives.shape != logits.shape:
        raise ValueError(f"`positives` must have the shape {list(logits.shape)}, got {list(positives.shape)}.")
    positives = positives.to(logits.dtype)
    directions = ((logits, positives), (logits.T, positives.T))
    losses = [F.cross_entropy(scores, fits / fits.sum(dim=1, keepdim=True)) for scores, fits in directions]
    return torch.stack(losses).mean()
