"""Calibrators on distributions whose answer is known, and against pytorch-quantization's."""

import numpy as np
import pytest
import torch

from calib.calibrators import CALIBRATORS, ENTROPY_STRIDE, compute_amax
from calib.histogram import NUM_BINS, Histogram
from quant.formats import INT7, INT8
from quant.recipe import METHODS, CalibratorOptions


def histogram_of(x: torch.Tensor) -> Histogram:
    histogram = Histogram()
    histogram.add(x.abs().flatten(), float(x.abs().max()))
    return histogram


def amax_of(x, method, number_format=INT8, **options):
    histogram = histogram_of(torch.as_tensor(x, dtype=torch.float32))
    return compute_amax(histogram, CalibratorOptions(method, **options), number_format)


def test_every_method_of_a_recipe_has_a_calibrator():
    assert set(CALIBRATORS) == set(METHODS)


def test_max_is_exact():
    x = torch.randn(1000)
    assert amax_of(x, "max") == float(x.abs().max())


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_equals_numpy_within_a_bin(percentile):
    x = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    width = 8 / 4096
    assert amax_of(x, "percentile", percentile=percentile) == pytest.approx(
        np.percentile(np.abs(x), percentile), abs=width
    )


def test_mse_of_a_uniform_distribution_is_its_maximum_and_of_a_normal_one_the_known_clip():
    rng = np.random.default_rng(0)
    assert amax_of(rng.uniform(-1, 1, 100_000), "mse") == pytest.approx(1, rel=0.01)
    # Sung et al. 2015 / Banner et al. 2019: the 8-bit optimum of a Gaussian clips at about 3.92 sigma.
    assert amax_of(rng.normal(size=2_000_000), "mse") == pytest.approx(3.92, rel=0.05)


def test_clipping_methods_leave_a_lone_outlier_out_and_max_keeps_it():
    x = torch.cat([torch.randn(1_000_000), torch.tensor([1000.0])])
    assert amax_of(x, "max") == 1000
    assert amax_of(x, "entropy") < 50
    assert amax_of(x, "percentile", percentile=99.99) < 5


def test_histograms_are_not_changed_and_zeros_give_zero():
    histogram = histogram_of(torch.randn(10_000))
    before = histogram.counts.clone()
    for method in METHODS:
        assert 0 < compute_amax(histogram, CalibratorOptions(method), INT8) <= histogram.amax
        assert compute_amax(histogram_of(torch.zeros(10)), CalibratorOptions(method), INT8) == 0
    assert torch.equal(histogram.counts, before)
    with pytest.raises(ValueError, match="no values were counted"):
        compute_amax(Histogram(), CalibratorOptions(), INT8)


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "mixture"])
@pytest.mark.parametrize("method", ["entropy", "percentile", "mse"])
@pytest.mark.parametrize(("number_format", "num_bits"), [(INT8, 8), (INT7, 7)], ids=["int8", "int7"])
def test_agrees_with_pytorch_quantization(kind, method, number_format, num_bits):
    pytest.importorskip("pytorch_quantization", reason="pytorch-quantization 2.1.3 is not installed")
    from pytorch_quantization.calib import HistogramCalibrator

    rng = np.random.default_rng(1)
    x = {
        "normal": rng.normal(size=400_000), "relu": np.maximum(rng.normal(size=400_000), 0),
        "laplace": rng.laplace(size=400_000), "mixture": np.r_[rng.normal(size=400_000), rng.normal(size=400) * 8],
    }[kind].astype(np.float32)  # fmt: skip
    x /= np.abs(x).max()  # the maximum is then the edge of our last bin: both have the same 4,096 bins
    theirs = HistogramCalibrator(num_bits, None, False, num_bins=NUM_BINS)
    theirs.collect(torch.from_numpy(x))
    assert np.array_equal(theirs._calib_hist.numpy(), histogram_of(torch.from_numpy(x)).to_numpy())
    ours = amax_of(x, method, number_format, percentile=99.9)
    if method == "mse":  # theirs calls a CUDA kernel: the error itself instead, over their bin edges
        edges = theirs._calib_bin_edges[1:].numpy()
        least = min(squared_error(x, edge, number_format) for edge in edges[128::16])
        assert squared_error(x, ours, number_format) < 1.001 * least  # our bins stand for their centres
    elif method == "entropy":
        expected = float(theirs.compute_amax(method, stride=ENTROPY_STRIDE, start_bin=number_format.num_levels))
        assert ours == pytest.approx(expected, rel=1e-6)  # their edges are float32
    else:  # theirs takes the bin's lower edge, ours lies within the bin
        assert 0 <= ours - float(theirs.compute_amax(method, percentile=99.9)) <= 1 / NUM_BINS


def squared_error(x: np.ndarray, amax: float, number_format) -> float:
    """Return the sum of squared differences between x and its integers' values."""
    scale = amax / number_format.qmax
    codes = np.clip(np.rint(x / scale), number_format.qmin, number_format.qmax)
    return float(((codes * scale - x) ** 2).sum(dtype=np.float64))
