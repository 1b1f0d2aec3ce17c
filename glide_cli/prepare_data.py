"""Check images and captions before anything is trained on them, in all cores.

Everything that is wrong is reported by name and number: images that cannot be read, are too large, too small or come
twice, and captions that are missing, blank or longer than the text context. With --output_dir what is good is written
as tar shards for `glide train ... --train_shards`, and the rest listed in OUTPUT_DIR/report.jsonl.
"""

from __future__ import annotations

import argparse

from .errors import UserError
from .options import Parser, positive_int
from .train_options import load_rows, load_tokenizer


ERRORS = (ValueError, ImportError, OSError)


def add_arguments(parser: Parser) -> None:
    """Which data, what is wanted of it, and what is written."""
    add = parser.add_argument_group("data").add_argument
    add("--dataset_name", help="a dataset on the Hub")
    add(
        "--train_data_dir",
        help="folder of images with a metadata.jsonl or .csv, or a name.txt beside each name.png; of parquet files; "
        "what save_to_disk wrote",
    )
    add(
        "--train_shards",
        nargs="+",
        metavar="URL",
        help='tar shards in webdataset\'s layout, such as "data/{000..127}.tar": files, or URLs that fsspec opens',
    )
    add("--split", metavar="NAME", help="part of a dataset (default: train, or the only one)")
    add("--image_column", default="image", help="column of the images (default: %(default)s)")
    add("--caption_column", default="text", help="column of the captions (default: %(default)s)")
    add = parser.add_argument_group("checks").add_argument
    add(
        "--min_size",
        type=positive_int,
        metavar="PIXELS",
        help="the least pixels that the shorter side may have (default: the resolution)",
    )
    add("--max_pixels", type=positive_int, metavar="N", help="the most pixels in all (default: 178,956,970, Pillow's)")
    add("--tokenizer_name", help="tokenizer that tells which captions are cut: a folder or a Hub id")
    add("--num_workers", type=positive_int, metavar="N", help="processes (default: one for each core)")
    add = parser.add_argument_group("what is written").add_argument
    add("--output_dir", help="a new folder; without it everything is checked and nothing written")
    add("--resolution", type=positive_int, metavar="PIXELS", help="scale larger images down to this shorter side")
    add("--held_out", type=float, default=0.0, metavar="SHARE", help="share of the images that is set aside")
    add("--shard_size", type=positive_int, default=10_000, metavar="N", help="images in a shard (default: %(default)s)")
    add(
        "--vocab_size",
        type=positive_int,
        metavar="N",
        help="train a tokenizer of at most N entries on the captions, into OUTPUT_DIR/tokenizer",
    )
    add("--context", type=positive_int, default=128, metavar="N", help="its text context (default: %(default)s tokens)")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    names = ("dataset_name", "train_data_dir", "train_shards")
    if sum(getattr(args, name) is not None for name in names) != 1:
        raise UserError("Pass one of `dataset_name`, `train_data_dir` and `train_shards`.")


def run(args: argparse.Namespace) -> None:
    """Check, write, and print what was found."""
    from glide_pipelines.training import DatasetExamples, TarShards, expand_shards, prepare_data
    from glide_pipelines.training.sources import Examples

    examples: Examples
    if args.train_shards is not None:
        examples = TarShards(expand_shards(args.train_shards), args.caption_column)
    else:
        rows = load_rows(args, args.dataset_name, split=args.split or ("train",))
        examples = DatasetExamples(rows, args.image_column, args.caption_column)
    tokenizer = None if args.tokenizer_name is None else load_tokenizer(args.tokenizer_name)
    names = ("output_dir", "held_out", "resolution", "min_size", "vocab_size", "context", "shard_size", "num_workers")
    options = {name: getattr(args, name) for name in names}
    if args.max_pixels is not None:
        options["max_pixels"] = args.max_pixels
    print(prepare_data(examples, tokenizer=tokenizer, **options))
    if args.output_dir is not None:
        print(f"{args.output_dir} holds what is good, and report.jsonl.")
