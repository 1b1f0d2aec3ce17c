"""GLIDE's respacing strings."""

import json

import pytest

from glide_pipelines.schedulers import space_timesteps


def test_equals_the_original(recordings):
    for name, expected in json.loads((recordings / "timesteps.json").read_text()).items():
        spacing = name.split("/")[1]
        assert space_timesteps(spacing) == expected[::-1], spacing


def test_a_number_spreads_evenly_with_both_ends():
    assert space_timesteps("5", 9) == [8, 6, 4, 2, 0]


def test_sections_are_equal_and_go_from_clean_to_noisy():
    assert space_timesteps("1,2", 10) == [9, 5, 0]
    # The first sections take what does not divide.
    assert space_timesteps("2,2,2", 10) == [9, 7, 6, 4, 3, 0]


def test_ddim_strides_are_integers():
    assert space_timesteps("ddim5", 10) == [8, 6, 4, 2, 0]


def test_fast27_starts_at_997():
    fast = space_timesteps("fast27")
    assert len(fast) == 27 and fast[:3] == [997, 800, 799] and fast[-1] == 0


@pytest.mark.parametrize("spacing", ["", "0", "-5", "a", "fast26", "ddim", "10,", "1.5", "10,0"])
def test_unknown_strings_are_named(spacing):
    with pytest.raises(ValueError, match=f"timesteps={spacing!r} is not a respacing"):
        space_timesteps(spacing)


@pytest.mark.parametrize("spacing", ["1001", "501,10", "ddim501"])
def test_more_steps_than_training_had(spacing):
    with pytest.raises(ValueError, match="training timesteps"):
        space_timesteps(spacing)


def test_fast27_needs_a_thousand_steps():
    with pytest.raises(ValueError, match="'fast27' is a list for 1000"):
        space_timesteps("fast27", 500)
