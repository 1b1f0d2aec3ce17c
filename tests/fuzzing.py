"""Hypothesis makes calls of which most arguments are good, and one or two are anything at all.

Each call must end in an error that names an argument, before any network ran, or in a result.
"""

import re
from collections import Counter

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import CONTEXT, WIDTH


SHORT, LONG = 20, 239  # calls of each kind
counts: Counter = Counter()


# -- values -----------------------------------------------------------------------------------------------------------


INTEGERS = st.sampled_from([-(2**70), -8, -1, 0, 1, 2, 3, 5, 8, 9, 12, 16, 32, 40, 2**70])
NUMBERS = st.floats() | st.sampled_from([0.0, 1.0, 0.5, -1.0, 1e30, np.float32(0.5), np.float64("nan")])
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["\ud800", "", "a" * 400, "<|endoftext|>", "100", "fast27", "ddim5", "5,x"]
)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 6, 8, CONTEXT, WIDTH, 32]), max_size=4))
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64]
    tensor = torch.ones(shape, dtype=draw(st.sampled_from(dtypes)))
    change = draw(st.sampled_from(["none", "none", "none", "meta", "sparse", "nan", "huge"]))
    if change == "meta":
        return tensor.to("meta")
    if change == "sparse":
        return tensor.to_sparse()
    if tensor.is_floating_point() and tensor.numel() and change in ("nan", "huge"):
        tensor.view(-1)[0] = torch.nan if change == "nan" else torch.finfo(tensor.dtype).max
    return tensor


@st.composite
def images(draw):
    size = draw(st.sampled_from([(1, 1), (3, 5), (8, 8), (32, 32), (33, 40)]))
    mode = draw(st.sampled_from(["RGB", "L", "RGBA", "P", "1", "CMYK", "I", "F", "LA", "I;16"]))
    return Image.new(mode, size)


ARRAYS = st.builds(
    lambda shape, kind: np.ones(shape, kind),
    st.lists(st.sampled_from([0, 1, 3, 4, 8, 32]), max_size=4),
    st.sampled_from(["float32", "float64", "uint8", "int64", "bool", "complex64", "O"]),
)
SCALARS = st.none() | st.booleans() | INTEGERS | NUMBERS | TEXTS | st.binary(max_size=3) | st.builds(object)
ANYTHING = (
    SCALARS
    | tensors()
    | images()
    | ARRAYS
    | st.lists(SCALARS | images() | tensors(), max_size=3)
    | st.dictionaries(TEXTS, SCALARS, max_size=2)
    | st.tuples(SCALARS)
)

# None stands for so many steps that it would take too long.
NOT_NONE = ("num_inference_steps", "super_res_num_inference_steps")


# -- what is promised -------------------------------------------------------------------------------------------------


def is_named(error, names):
    """Whether an error names an argument, as `name` or name=."""
    return re.search(rf"`({'|'.join(names)})\b|\b({'|'.join(names)})=", str(error)) is not None


def promise(call, names, ran=lambda: False):
    """Run a call; an error must be named and come before any network ran. Returns the result, or None."""
    try:
        result = call()
    except (ValueError, TypeError) as error:
        assert is_named(error, names), f"names no argument: {error!r}"
        assert not ran(), f"a network ran first: {error!r}"
        counts["named errors"] += 1
        return None
    except FloatingPointError as error:
        assert "Stage" in str(error) and "step" in str(error)
        counts["errors of stage and step"] += 1
        return None
    counts["results"] += 1
    return result


def arguments(data, given_values, good):
    """A call of which most values are good and up to two are anything."""
    chosen = data.draw(st.lists(st.sampled_from(sorted(good)), max_size=3, unique=True)) if good else []
    call = dict(given_values) | {name: data.draw(good[name], label=name) for name in chosen}
    for name in data.draw(st.lists(st.sampled_from(sorted({*given_values, *good})), max_size=2, unique=True)):
        value = data.draw(ANYTHING, label=name)
        if value is not None or name not in NOT_NONE:
            call[name] = value
    return call


# -- running it -------------------------------------------------------------------------------------------------------


def fuzz_a_little(case):
    """A few calls, the same each time."""
    _fuzz(case, SHORT, same_each_time=True)


def fuzz_a_lot(case, name, capsys):
    """Many calls, new ones each time, which are counted."""
    counts.clear()
    _fuzz(case, LONG, same_each_time=False)
    print_counts(name, capsys)


def print_counts(name, capsys):
    with capsys.disabled():
        print(f"\n{name}: {sum(counts.values())} cases, {dict(counts)}")


def _fuzz(case, cases, same_each_time):
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=same_each_time,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data):
        case(data=data)

    run()
