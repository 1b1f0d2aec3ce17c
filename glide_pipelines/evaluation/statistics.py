"""Statistics of judged images: rates with their confidence intervals, means with their standard errors, entropy."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np


def rate(answers: Sequence[bool]) -> dict[str, float]:
    """How many of one answer or more are right: the numbers of `right` answers and of all (`cases`); their `share` and
    its 95 % interval, `low` and `high`, all three from 0 to 1."""
    right, cases = sum(answers), len(answers)
    low, high = wilson_interval(right, cases)
    return {"right": right, "cases": cases, "share": right / cases, "low": low, "high": high}


def wilson_interval(right: int, cases: int) -> tuple[float, float]:
    """The 95 % interval of the share of `right` in `cases` (one or more) by Wilson's score method, which holds for
    shares near 0 and 1 too."""
    z = 1.959964
    share = right / cases
    middle = share + z * z / (2 * cases)
    reach = z * math.sqrt(share * (1 - share) / cases + (z / (2 * cases)) ** 2)
    scale = 1 + z * z / cases
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def per_cent(rate: dict[str, float]) -> str:
    """A [`rate`] with its 95 % interval, in per cent, as the tables show it."""
    return f"{100 * rate['share']:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of one value or more and its standard error, which is 0 for a single value."""
    standard_deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(standard_deviation / math.sqrt(len(values)))


def entropy(counts: Collection[int]) -> float:
    """The entropy, in bits, of a distribution given by positive counts."""
    total = sum(counts)
    return sum(count / total * math.log2(total / count) for count in counts)
