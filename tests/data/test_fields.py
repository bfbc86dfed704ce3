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


def test_targets_of_another_number_than_inputs_and_too_few_samples_are_named():
    with pytest.raises(ValueError, match=r"^targets: expected as many samples as inputs, 6, got 5"):
        TensorFields(GOOD, GOOD[:5], 4, 1, 1).setup("fit")
    with pytest.raises(
        ValueError, match=r"^train \+ val \+ test: expected at most the 6 samples there are, got 4 \+ 2 \+ 1"
    ):
        TensorFields(GOOD, GOOD, 4, 2, 1).setup("fit")
