"""The lengths that batches are padded to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora.lengths import bucket, ladder


def test_ladder_by_hand():
    assert ladder(512) == (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 240, 288, 352, 432, 512)
    assert ladder(100) == (16, 32, 48, 64, 80, 96, 100)
    assert ladder(5) == (5,)
    assert ladder(16) == (16,)


@given(st.integers(1, 3_000), st.data())
def test_a_bucket_is_the_shortest_that_holds_the_row_and_wastes_at_most_a_fifth(max_length, data):
    length = data.draw(st.integers(0, max_length))
    lengths = ladder(max_length)
    size = bucket(length, lengths)
    assert size in lengths
    assert length <= size
    assert all(length > shorter for shorter in lengths if shorter < size)
    assert size - length <= max(16, size / 5)


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="max_length is 0"):
        ladder(0)
    with pytest.raises(ValueError, match="length is 257; allowed: at most 256"):
        bucket(257, ladder(256))
