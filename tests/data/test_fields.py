import math

import numpy as np
import pytest
import torch

from sciml.data import TensorFields

GOOD = torch.zeros(6, 1, 4)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((6, 1, 4)), TypeError, r"expected a tensor \(n, c, \*x\), got ndarray; torch.from_numpy makes one"),
        (torch.zeros(6), ValueError, r"expected \(n, c, \*x\), got \(6,\); unsqueeze\(1\) adds a single channel"),
        (GOOD.index_fill(0, torch.tensor(3), math.nan), ValueError, "expected finite numbers, got NaN .* in sample 3"),
    ],
    ids=["numpy", "no channel", "nan"],
)
def test_what_are_no_fields_is_named(bad, error, message):
    for name, pair in (("inputs", (bad, GOOD)), ("targets", (GOOD, bad))):
        with pytest.raises(error, match=f"^{name}: {message}"):
            TensorFields(*pair, 4, 1, 1).setup("fit")
