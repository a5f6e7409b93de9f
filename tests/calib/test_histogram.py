"""The histogram: exact counts whatever the order and range of the batches, bounded memory, exact merging."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calib.histogram import Histogram


def of(*batches, num_bins=64):
    histogram = Histogram(num_bins)
    for batch in batches:
        x = torch.as_tensor(batch, dtype=torch.float32).abs()
        histogram.add(x, float(x.max()) if x.numel() else 0.0)
    return histogram


def same(a, b):
    return a.top == b.top and a.amax == b.amax and torch.equal(a.counts, b.counts)


def test_counts_equal_numpy():
    x = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    histogram = of(x, num_bins=128)
    expected, _ = np.histogram(np.abs(x), bins=128, range=(0, histogram.top))
    assert np.array_equal(histogram.to_numpy(), expected)
    assert histogram.counts.dtype == torch.int64 and histogram.amax == np.abs(x).max()


def test_a_range_that_grows_from_a_thousandth_to_fifty_keeps_the_number_of_bins():
    histogram = of([1e-3], [50.0], [0.0, 1.0])
    assert histogram.num_bins == 64 and histogram.top == 64.0 and histogram.num_values == 4
    assert histogram.counts[50] == 1 and histogram.counts[1] == 1 and histogram.counts[0] == 2


def test_batches_of_zeros_fall_into_the_first_bin_before_and_after_others():
    histogram = of([0.0, 0.0], [3.0], [0.0])
    assert histogram.counts[0] == 3 and histogram.num_values == 4
    only = of([0.0, 0.0])
    assert only.counts[0] == 2 and only.top == 0 and only.amax == 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9), min_size=2, max_size=5),
    st.integers(1, 4),
)
def test_merging_parts_equals_counting_all(batches, cut):
    cut = min(cut, len(batches) - 1)
    merged = of(*batches[:cut])
    merged.merge(of(*batches[cut:]))
    whole = of(*batches)
    assert merged.top == whole.top and merged.num_values == whole.num_values
    # a part's maximum that is a power of two lies on its upper edge, and may come out one bin lower
    on_edge = {abs(x) for batch in batches for x in batch if x and math.frexp(abs(x))[0] == 0.5}
    moved = int((merged.counts - whole.counts).abs().sum())
    assert moved <= 2 * sum(abs(x) in on_edge for batch in batches for x in batch)


def test_order_of_batches_does_not_matter():
    parts = [torch.randn(100) * s for s in (0.01, 3, 40, 0)]
    assert same(of(*parts), of(*reversed(parts)))


def test_values_next_to_zero_are_counted():
    histogram = of([0.0], [1.2e-38], [2.0**-100])
    assert histogram.num_values == 3 and histogram.amax == 2.0**-100 and histogram.top == 2.0**-100


def test_large_tensors_are_counted_exactly():
    x = torch.rand(1 << 18)
    expected, _ = np.histogram(x.numpy(), bins=64, range=(0, 1))
    assert np.array_equal(of(x).to_numpy(), expected)


def test_nan_infinity_and_unequal_bins_are_refused():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            of([1.0, bad])
    with pytest.raises(ValueError, match="64 and 32 bins cannot be added"):
        of([1.0]).merge(of([1.0], num_bins=32))
