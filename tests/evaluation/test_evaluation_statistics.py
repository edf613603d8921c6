"""Means, intervals and paired differences, against plain numbers."""

import math

import numpy as np
import pytest

from tara.evaluation.statistics import format_ci, interval, paired_difference


def test_the_mean_is_over_values_and_the_interval_over_clusters():
    values = [(cluster, value) for cluster in "abcde" for value in (1.0, 1.0, 1.0)] + [("f", 0.0)] * 5
    mean, low, high = interval(values)
    assert (mean, low, high) == (0.75, 0.375, 1.0)
    singles = [(number, value) for number, (_, value) in enumerate(values)]
    assert interval(singles)[0] == mean


def test_the_interval_is_that_of_a_plain_bootstrap():
    values = np.random.default_rng(1).normal(size=40)
    rng = np.random.default_rng(2)
    means = [rng.choice(values, size=40).mean() for _ in range(4000)]
    mean, low, high = interval(list(enumerate(values)))
    assert mean == pytest.approx(values.mean(), abs=1e-4)
    assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.03)


def test_two_images_have_no_interval():
    mean, low, high = interval([(0, 1.0), (1, 1.0)])
    assert mean == 1.0
    assert math.isnan(low)
    assert math.isnan(high)
    assert format_ci([mean, low, high]) == "1.00"


def test_no_values_are_no_number():
    assert all(math.isnan(number) for number in interval([]))


def test_a_difference_is_taken_where_both_have_a_value():
    first, second = {("a", 0): 1.0, ("a", 1): 1.0, ("b", 0): 0.0}, {("a", 0): 0.5, ("b", 0): 0.0, ("c", 0): 9.0}
    assert paired_difference(first, second, lambda key: key)[0] == 0.25


def test_a_shared_rise_and_fall_does_not_widen_a_paired_difference():
    rng = np.random.default_rng(0)
    base = dict(enumerate(rng.normal(size=30)))
    better = {key: value + 0.1 for key, value in base.items()}
    assert paired_difference(better, base, lambda key: key) == [0.1, 0.1, 0.1]


def test_an_interval_is_formatted_for_a_table():
    assert format_ci([0.5, 0.25, 1.0]) == "0.50 [0.25, 1.00]"
