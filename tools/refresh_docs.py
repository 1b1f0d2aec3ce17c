"""Run commands of the docs again, and put what they print in the place of the tables below them.

    python tools/refresh_docs.py docs/shapes.md
    python tools/refresh_docs.py --list

A block of commands is run, in the repository's root, if the line above it is `<!-- refresh -->`. What it prints goes
between the lines `<!-- printed -->` and `<!-- end -->` below the block, if these follow at once. It is also kept in
runs/docs, and a block whose output is there is not run again: a stopped refresh goes on, and several may share the
work, each with its pages. After a change of a checkpoint `--again` forgets first what is kept of these pages: give it
once, and not when going on.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from glide_cli import Parser, script
from glide_cli.options import input_file
from glide_pipelines.files import write_text


ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(
    r"^<!-- refresh -->\n```(?:bash)?\n(?P<commands>.*?)^```\n(?:\n<!-- printed -->\n(?P<printed>.*?)<!-- end -->\n)?",
    re.DOTALL | re.MULTILINE,
)


def blocks(page: Path) -> Iterator[re.Match[str]]:
    """The marked blocks of a page, with `commands` and, where something is to be put, `printed`."""
    return BLOCK.finditer(page.read_text(encoding="utf-8"))


def kept_output(commands: str, kept: Path) -> Path:
    """Where the output of these commands is kept."""
    return kept / f"{hashlib.sha256(commands.encode()).hexdigest()[:16]}.md"


def output(commands: str, kept: Path) -> str:
    """What commands print, or printed the last time.

    Raises:
        ValueError: if one of them fails.
    """
    path = kept_output(commands, kept)
    if not path.exists():
        print(commands, file=sys.stderr)
        # `python` and `glide` are those of the environment that runs this.
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        shell = ["bash", "-e", "-o", "pipefail", "-c", commands]
        done = subprocess.run(shell, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise ValueError(f"exit code {done.returncode} of\n{commands}")
        kept.mkdir(parents=True, exist_ok=True)
        write_text(done.stdout, path)
    return path.read_text(encoding="utf-8")


def refresh(page: Path, kept: Path) -> None:
    """Run the commands of a page and write it after each; it may be edited while they run."""
    for commands in [block["commands"] for block in blocks(page)]:
        printed = output(commands, kept).strip()

        def put(block: re.Match[str], commands: str = commands, printed: str = printed) -> str:
            if block["commands"] != commands or block["printed"] is None:
                return block[0]
            start, end = (place - block.start() for place in block.span("printed"))
            return f"{block[0][:start]}{printed}\n{block[0][end:]}"

        write_text(BLOCK.sub(put, page.read_text(encoding="utf-8")), page)


@script(ValueError)
def main(argv: list[str] | None) -> None:
    """Run the commands of the pages, or print them."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("pages", type=input_file, nargs="*", metavar="PAGE", help="Markdown; by default all of docs")
    add("--list", action="store_true", help="print the commands, and run none")
    add("--again", action="store_true", help="forget first what is kept of these pages")
    add("--kept", type=Path, default=ROOT / "runs/docs", metavar="FOLDER", help="default: runs/docs")
    args = parser.parse_args(argv)
    pages = args.pages or sorted((ROOT / "docs").glob("*.md"))
    commands = [block["commands"] for page in pages for block in blocks(page)]
    if args.list:
        print(*commands, sep="", end="")
        return
    if args.again:
        for each in commands:
            kept_output(each, args.kept).unlink(missing_ok=True)
    for page in pages:
        refresh(page, args.kept)


if __name__ == "__main__":
    sys.exit(main())
