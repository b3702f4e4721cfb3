import numpy as np
import pytest

from eval.compatibility import average_accuracy, average_compatibility, compatible

NAN = np.nan
# Model 2 does better on index 1 than model 1 (0.6 > 0.5); model 3 on that of 2 (0.8 > 0.7), not on that of 1.
MATRIX = np.array([[0.5, NAN, NAN], [0.6, 0.7, NAN], [0.4, 0.8, 0.9]])


def test_by_hand():
    expected = [[False, False, False], [True, False, False], [False, True, False]]
    np.testing.assert_array_equal(compatible(MATRIX), expected)
    assert average_compatibility(MATRIX) == pytest.approx(2 / 3)
    assert average_accuracy(MATRIX) == pytest.approx((0.5 + 0.6 + 0.7 + 0.4 + 0.8 + 0.9) / 6)


def test_as_good_is_not_better():
    assert average_compatibility([[0.5, 0], [0.5, 0.5]]) == 0
    assert average_compatibility([[0.5]]) == 1


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        compatible(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="lacks numbers"):
        compatible(MATRIX.T)
