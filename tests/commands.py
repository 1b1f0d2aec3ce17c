"""What tests of the commands share."""

from __future__ import annotations


def assert_user_error(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("glide: error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
