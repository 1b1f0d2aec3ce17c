"""Convert a GLIDE pipeline's folder back to files that OpenAI's code loads."""

import argparse
from collections.abc import Sequence

from glide_pipelines.conversion import convert_diffusers_to_glide
from glide_pipelines.conversion.script import ScriptParser


def build_parser() -> ScriptParser:
    parser = ScriptParser(
        description=__doc__,
        epilog="example: %(prog)s --model_path glide --dump_path released",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--model_path", required=True, help="a folder that a GLIDE pipeline was saved to")
    parser.add_argument("--dump_path", required=True, help="the folder to write; it must be empty or not exist")
    parser.add_argument("--variant", help="the variant of the weights to read, for example fp16")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    for file in build_parser().run(convert_diffusers_to_glide, argv):
        print(f"Wrote {file}")


if __name__ == "__main__":
    main()
