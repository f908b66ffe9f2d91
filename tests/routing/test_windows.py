"""The vector of a text is the mean of its windows, each weighed by its tokens."""

import numpy as np

from fedmem.routing.windows import joined


def test_windows_weigh_by_their_tokens_and_one_window_is_itself() -> None:
    windows = np.array([[2.0, 0.0], [0.0, 5.0]], dtype=np.float32)
    np.testing.assert_allclose(joined(windows, [4, 3]), [0.8, 0.6], atol=1e-6)
    assert joined(windows[:1], [7]).tolist() == [1, 0]


def test_no_tokens_give_zero_and_no_nan() -> None:
    assert joined(np.eye(2, dtype=np.float32), [0, 0]).tolist() == [0, 0]


def test_the_order_of_windows_changes_nothing() -> None:
    windows_WD = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    np.testing.assert_allclose(joined(windows_WD, [9, 4, 1]), joined(windows_WD[::-1], [1, 4, 9]), atol=1e-6)
