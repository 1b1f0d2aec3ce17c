"""Write the words that the emoji checkpoint has read, from the captions of its set.

python examples/make_emoji_set.py emoji
python tools/write_emoji_words.py emoji/train
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from glide_cli import Parser, script
from glide_pipelines.emoji.vocabulary import FILE, words_of


@script(ValueError, OSError)
def main(argv: list[str] | None) -> None:
    """Read `metadata.jsonl` and write the file of the package."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the set's folder train")
    parser.add_argument("--output", type=Path, default=FILE, help="default: the package's own")
    args = parser.parse_args(argv)
    rows = [json.loads(line) for line in (args.folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    words = {word for row in rows for caption in row["text"] for word in words_of(caption)}
    args.output.write_text("\n".join(sorted(words)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
