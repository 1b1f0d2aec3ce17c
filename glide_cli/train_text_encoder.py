"""Pretraining a text encoder on captioned images."""

from __future__ import annotations

import argparse

from .options import Parser, positive_int
from .train_finish import finish, save_model
from .train_options import MODEL_CONFIGS, add_data_options, add_run_options, load_tokenizer, read_sizes, start


def add_text_encoder_options(parser: Parser) -> None:
    """The options of `text-encoder`."""
    add = parser.add_argument_group("model").add_argument
    add("--pretrained_model_name_or_path", help="text encoder to continue from: a folder or a Hub id")
    add(
        "--model_config",
        default=str(MODEL_CONFIGS / "shapes_base.json"),
        help="JSON with the sizes of a new one (default: %(default)s)",
    )
    add("--tokenizer_name", help="its tokenizer: a folder or a Hub id; by default a new one is trained on the captions")
    add("--grid_size", type=positive_int, default=4, help="patches in each direction (default: %(default)s)")
    add("--model_dir", help="where the text encoder and its tokenizer go; by default OUTPUT_DIR/model")
    add_data_options(parser)
    add_run_options(parser)


def text_encoder(args: argparse.Namespace) -> None:
    """Pretrain a text encoder, which then predicts a small version of the image from a caption."""
    import torch
    from transformers import GPT2Tokenizer

    from glide_pipelines import GLIDETextEncoder
    from glide_pipelines.training import new_text_encoder, prepare_tokenizer, train
    from glide_pipelines.training.text_pretraining import CaptionedImages, ImagePredictor, image_prediction_loss

    accelerator, data, config = start(args)
    with accelerator.main_process_first():
        if args.pretrained_model_name_or_path is not None:
            model = GLIDETextEncoder.from_pretrained(args.pretrained_model_name_or_path, dtype=torch.float32)
            tokenizer = load_tokenizer(args.tokenizer_name or args.pretrained_model_name_or_path)
            prepare_tokenizer(tokenizer, model.config.max_position_embeddings)
        else:
            sizes = read_sizes(args.model_config, "text_encoder")["text_encoder"]
            context = sizes["max_position_embeddings"]
            if args.tokenizer_name is not None:
                tokenizer = load_tokenizer(args.tokenizer_name, GPT2Tokenizer)
            else:
                tokenizer = data.new_tokenizer(accelerator, context)
            prepare_tokenizer(tokenizer, context)
            model = new_text_encoder(tokenizer, **sizes)
        predictor = ImagePredictor(model, args.grid_size)
        source = data.source(args.resolution or 32)
        dataset = CaptionedImages(source, tokenizer, args.seed)
        data.report_cut_captions(accelerator, tokenizer)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    done = train(accelerator, config, predictor, dataset, image_prediction_loss, num_train_timesteps=1)

    finish(args, accelerator, done, lambda: save_model(args, model, tokenizer), data, "GLIDETextEncoder")
