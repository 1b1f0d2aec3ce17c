"""Print how often the judge of the shapes world is right, on true captions and on captions made false.

    python tools/calibrate_judge.py --scenes 2000

See docs/shapes.md.
"""

from __future__ import annotations

import sys

from glide_cli import Parser, script
from glide_cli.options import checked, count, positive_int, seed
from glide_pipelines.shapes.calibration import calibrate, calibration_table
from glide_pipelines.shapes.detect import MIN_SIZE


width = checked(int, lambda value: value >= MIN_SIZE, f"a whole number of {MIN_SIZE} or more")


@script()
def main(argv: list[str] | None) -> None:
    """Calibrate the judge and print the table."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--scenes", type=positive_int, default=2000, metavar="N", help="number of scenes (default: %(default)s)")
    add("--sizes", type=width, nargs="+", default=[32, 128], metavar="N", help="image widths (default: 32 128)")
    add("--seed", type=seed, default=0, metavar="N", help="of the scenes (default: %(default)s)")
    add("--show", type=count, default=0, metavar="N", help="print this many of the mistakes (default: %(default)s)")
    args = parser.parse_args(argv)
    print(calibration_table(calibrate(args.scenes, args.sizes, args.seed, args.show)))


if __name__ == "__main__":
    sys.exit(main())
