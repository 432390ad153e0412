"""Lengths whose Fourier transforms are fast."""

import pytest

from pogmdm_core.lengths import good_length, padded_length


def test_good_lengths():
    assert [good_length(n) for n in (1, 7, 33, 639, 73)] == [1, 8, 36, 640, 75]
    assert [good_length(n, step=8) for n in (1, 230, 372, 375)] == [8, 240, 384, 384]


@pytest.mark.parametrize(
    ("n", "expected"), [(230, 240), (372, 384), (34, 34), (61, 61), (320, 320), (168, 168), (208, 208), (127, 128)]
)
def test_only_slow_lengths_are_padded(n, expected):
    assert padded_length(n) == expected
