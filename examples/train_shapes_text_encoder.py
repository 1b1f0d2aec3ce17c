"""Pretrain the shapes world's text encoder on captions, before the base model is trained with it.

    python examples/train_shapes_text_encoder.py --output_dir runs/text_encoder
    accelerate launch examples/train_text_to_image.py --dataset_name shapes \\
        --text_encoder_name_or_path runs/text_encoder ...

See docs/training.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import GPT2Tokenizer

from glide_cli import Parser, script
from glide_cli.options import positive_int, seed
from glide_cli.output import training_bar
from glide_cli.train_options import MODEL_CONFIGS, read_sizes
from glide_pipelines.shapes import train_tokenizer
from glide_pipelines.shapes.reading import pretrain_text_encoder
from glide_pipelines.training import new_text_encoder


@script(ValueError, OSError)
def main(argv: list[str] | None) -> None:
    """Train and save the text encoder with its tokenizer."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="folder of the text encoder and its tokenizer")
    add("--model_config", type=Path, default=MODEL_CONFIGS / "shapes_base.json", help="JSON with its sizes")
    add("--max_train_steps", type=positive_int, default=1000, help="default: %(default)s")
    add("--train_batch_size", type=positive_int, default=96, help="default: %(default)s")
    add("--learning_rate", type=float, default=1e-3, help="decays to 0 (default: %(default)s)")
    add("--seed", type=seed, default=0, help="default: %(default)s")
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    sizes = read_sizes(args.model_config, "text_encoder")["text_encoder"]
    train_tokenizer(args.output_dir, model_max_length=sizes["max_position_embeddings"])
    tokenizer = GPT2Tokenizer.from_pretrained(args.output_dir)
    text_encoder = new_text_encoder(tokenizer, **sizes)
    steps, batch_size = args.max_train_steps, args.train_batch_size
    with training_bar(steps) as report:
        pretrain_text_encoder(text_encoder, tokenizer, steps, batch_size, args.learning_rate, args.seed, report)
    text_encoder.save_pretrained(args.output_dir)


if __name__ == "__main__":
    sys.exit(main())
