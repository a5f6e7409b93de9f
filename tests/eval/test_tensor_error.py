import numpy as np
import pytest

from eval import tensor_error
from eval.tensor_error import ErrorStream


def test_every_figure_on_a_known_case():
    ref = np.array([1.0, -2.0, 4.0, 0.0], np.float32)
    error = tensor_error.tensor_error(ref + np.array([0.1, 0.2, 0.0, 0.0005], np.float32), ref)
    assert error.abs_max == pytest.approx(0.2, rel=1e-5)
    assert error.abs_mean == pytest.approx(0.3005 / 4, rel=1e-5)
    assert error.abs_median == pytest.approx((0.1 + 0.0005) / 2, rel=1e-4)
    assert error.rel_max == pytest.approx(0.5, rel=1e-5)  # 0.0005 against the floor of 1e-3, not infinite
    assert error.rel_mean == pytest.approx((0.1 + 0.1 + 0.5) / 4, rel=1e-5)
    assert error.sqnr_db == pytest.approx(10 * np.log10(21 / (0.01 + 0.04 + 0.0005**2)), rel=1e-5)
    assert 0.99 < error.cosine < 1


def test_equal_tensors_have_no_sqnr_and_zero_error():
    x = np.ones((3, 2), np.float32)
    error = tensor_error.tensor_error(x, x)
    assert error.abs_max == 0 and error.sqnr_db is None and error.cosine == pytest.approx(1)


def test_batches_give_what_the_whole_gives(monkeypatch):
    rng = np.random.default_rng(0)
    ref = rng.normal(size=(1000, 7))
    x = ref + rng.normal(size=ref.shape) * 0.1
    whole = tensor_error.tensor_error(x, ref)
    monkeypatch.setattr(tensor_error, "KEPT_ELEMENTS", 2000)
    stream = ErrorStream()
    for start in range(0, 1000, 100):
        stream.add("logits", x[start : start + 100], ref[start : start + 100])
    parts = stream.result()
    assert parts.abs_mean == pytest.approx(whole.abs_mean) and parts.sqnr_db == pytest.approx(whole.sqnr_db)
    assert parts.abs_median == pytest.approx(whole.abs_median, rel=0.1)  # from a part of the elements
    assert stream._num_kept <= 2000


def test_nan_shape_and_emptiness_are_named():
    with pytest.raises(
        ValueError, match=r"output logits holds 1 NaN and 1 infinite of 4 values, the first at \(0, 1\)"
    ):
        ErrorStream().add("logits", np.array([[0, np.nan], [np.inf, 1]]), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="shape"):
        ErrorStream().add("logits", np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(RuntimeError, match="no outputs were compared"):
        ErrorStream().result()
