"""Small random GLIDE components, for tests that need a whole pipeline in a second."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2Tokenizer

from glide_pipelines import (
    CLIPGuidedPipeline,
    GLIDEDDIMScheduler,
    GLIDEDDPMScheduler,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDETextConfig,
    GLIDETextEncoder,
    GLIDEUNet2DConditionModel,
    NoisedCLIPConfig,
    NoisedCLIPModel,
)


CONTEXT = 12
WIDTH = 16
END = "<|endoftext|>"


def tiny_tokenizer(context: int = CONTEXT) -> GPT2Tokenizer:
    """Bytes, one merge and the end token: 258 entries."""
    vocabulary = [*sorted(ByteLevel.alphabet()), "re", END]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\nr e\n")
        return GPT2Tokenizer.from_pretrained(
            folder,
            model_max_length=context,
            split_special_tokens=True,
            **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END),
        )


def tiny_text_encoder(seed: int = 0) -> GLIDETextEncoder:
    torch.manual_seed(seed)
    config = GLIDETextConfig(
        vocab_size=258,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        pad_token_id=257,
        eos_token_id=257,
        initializer_range=1.0,
    )
    return GLIDETextEncoder(config).eval()


def tiny_unet(
    in_channels: int = 3,
    sample_size: int = 8,
    seed: int = 0,
    dropout: float = 0.0,
    block_out_channels: tuple[int, ...] = (8, 16),
):
    torch.manual_seed(seed)
    config = GLIDEUNet2DConditionModel.glide_config(
        block_out_channels=block_out_channels,
        attention_levels=(1,),
        layers_per_block=1,
        text_hidden_size=WIDTH,
        in_channels=in_channels,
        sample_size=sample_size,
        attention_head_dim=8,
        dropout=dropout,
        norm_num_groups=4,
    )
    return GLIDEUNet2DConditionModel(**config).eval()


def tiny_clip(seed: int = 0, image_size: int = 8, **changes) -> NoisedCLIPModel:
    torch.manual_seed(seed)
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = NoisedCLIPConfig(
        text_config={"vocab_size": 258, "max_position_embeddings": CONTEXT, "initializer_range": 1.0} | shape,
        vision_config={"image_size": image_size, "initializer_range": 1.0} | shape,
        projection_dim=WIDTH,
        initializer_factor=5.0,
        **changes,
    )
    model = NoisedCLIPModel(config).eval()
    torch.nn.init.normal_(model.vision_model.time_embedding.weight)  # new models start with all timesteps alike
    return model


def tiny_components(upsampler: bool = True) -> dict:
    components = {
        "tokenizer": tiny_tokenizer(),
        "text_encoder": tiny_text_encoder(0),
        "unet": tiny_unet(3, 8, 1),
        "scheduler": GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }
    if upsampler:
        components |= {
            "super_res_text_encoder": tiny_text_encoder(2),
            "super_res_unet": tiny_unet(6, 32, 3),
            "super_res_scheduler": GLIDEDDIMScheduler(),
        }
    return components


def tiny_pipeline(upsampler: bool = True) -> GLIDEPipeline:
    pipe = GLIDEPipeline(**tiny_components(upsampler))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_call(**changes) -> dict:
    """Arguments of a quick, repeatable call."""
    return {
        "prompt": "a red circle",
        "num_inference_steps": 2,
        "super_res_num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "np",
    } | changes


def tiny_inpaint_pipeline(upsampler: bool = True) -> GLIDEInpaintPipeline:
    """The fine-tuned kind: models that take the picture and the mask."""
    components = tiny_components(upsampler) | {"unet": tiny_unet(7, 8, 1)}
    if upsampler:
        components |= {"super_res_unet": tiny_unet(10, 32, 3), "super_res_scheduler": GLIDEDDPMScheduler()}
    pipe = GLIDEInpaintPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_clip_pipeline(upsampler: bool = True, inpaint: bool = False) -> CLIPGuidedPipeline:
    pipe = tiny_inpaint_pipeline(upsampler) if inpaint else tiny_pipeline(upsampler)
    pipe = CLIPGuidedPipeline.from_pipe(pipe, clip_model=tiny_clip(), clip_tokenizer=tiny_tokenizer())
    pipe.set_progress_bar_config(disable=True)
    return pipe
