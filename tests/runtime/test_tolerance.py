"""The tolerance table and the error measure behind it."""

from __future__ import annotations

import numpy as np
import pytest

from streamssm import tolerance
from streamssm.errors import UsageError


def test_error_is_relative_to_the_largest_magnitude():
    assert tolerance.error(np.array([1.0, -3.5]), np.array([1.0, -4.0])) == (0.5, 0.125)
    assert tolerance.error(np.zeros((0, 3)), np.zeros((0, 3))) == (0.0, 0.0)
    assert tolerance.error(np.array([1.0]), np.array([0.0])) == (1.0, np.inf)
    assert tolerance.error(np.zeros(2), np.zeros(2)) == (0.0, 0.0)


def test_values_that_are_not_finite_must_agree():
    x = np.array([np.nan, np.inf, 1.0])
    assert tolerance.error(x, x) == (0.0, 0.0)
    assert tolerance.error(x, np.array([np.nan, -np.inf, 1.0]))[0] == np.inf
    assert tolerance.error(x, np.array([0.0, np.inf, 1.0]))[0] == np.inf
    assert not tolerance.within(x, np.array([0.0, np.inf, 1.0]))


@pytest.mark.parametrize("dtype", tolerance.TABLE)
def test_within_adds_the_bounds(dtype):
    bounds = tolerance.tolerance(dtype)
    reference = np.array([-8.0, 0.0])
    limit = bounds.atol + 8 * bounds.rtol
    assert tolerance.within(reference + np.array([0.0, 0.99 * limit]), reference, dtype)
    assert not tolerance.within(reference + np.array([0.0, 1.01 * limit]), reference, dtype)
    assert tolerance.within(np.array([0.9 * bounds.atol]), np.array([0.0]), dtype)
    assert not tolerance.within(np.array([1.1 * bounds.atol]), np.array([0.0]), dtype)


def test_misuse_is_refused():
    with pytest.raises(UsageError, match=r"\(2,\) and \(3,\)"):
        tolerance.error(np.zeros(2), np.zeros(3))
    with pytest.raises(UsageError, match="int16"):
        tolerance.within(np.zeros(2), np.zeros(2), "int16")
