"""Calibrators on distributions whose answer is known, and against pytorch-quantization's."""

import numpy as np
import pytest
import torch

from calib.calibrators import CALIBRATORS, ENTROPY_STRIDE, compute_amax
from calib.histogram import Histogram
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
    theirs = HistogramCalibrator(num_bits, None, False, num_bins=2048)
    theirs.collect(torch.from_numpy(x))
    if method == "mse":  # theirs calls a CUDA kernel: the same search by numpy, over its 2,048 bin edges
        edges = theirs._calib_bin_edges[1:].numpy()
        qmin, qmax = number_format.qmin, number_format.qmax
        errors = [((np.clip(np.rint(x / (e / qmax)), qmin, qmax) * (e / qmax) - x) ** 2).sum() for e in edges[128::16]]
        expected = edges[128::16][int(np.argmin(errors))]
    else:
        options = {"percentile": 99.9} if method == "percentile" else {}
        expected = float(theirs.compute_amax(method, **options))
    ours = amax_of(x, method, number_format, percentile=99.9)
    # Bins of another width; the minimum of the divergence is flat and noisy, so that its place moves by up to 20 %.
    assert ours == pytest.approx(expected, rel=0.2 if method == "entropy" else 0.05)


@pytest.mark.parametrize(("number_format", "num_bits"), [(INT8, 8), (INT7, 7)], ids=["int8", "int7"])
def test_entropy_of_the_same_counts_is_theirs(number_format, num_bits):
    """On pytorch-quantization's own histogram and candidates the two searches choose the same bin."""
    pytest.importorskip("pytorch_quantization", reason="pytorch-quantization 2.1.3 is not installed")
    from pytorch_quantization.calib import HistogramCalibrator

    theirs = HistogramCalibrator(num_bits, None, False, num_bins=2048)
    theirs.collect(torch.from_numpy(np.random.default_rng(1).laplace(size=100_000).astype(np.float32)))
    expected = float(theirs.compute_amax("entropy", stride=ENTROPY_STRIDE, start_bin=number_format.num_levels))
    top = float(theirs._calib_bin_edges[-1])
    ours = compute_amax(
        Histogram.from_counts(theirs._calib_hist.numpy(), top, top), CalibratorOptions("entropy"), number_format
    )
    assert ours == pytest.approx(expected, rel=1e-6)  # theirs keeps its edges in float32


def test_fewer_levels_clip_more():
    x = np.random.default_rng(0).normal(size=400_000)
    assert amax_of(x, "mse", INT7) < 0.97 * amax_of(x, "mse", INT8)
    assert amax_of(x, "max", INT7) == amax_of(x, "max", INT8)
