"""Products of small matrices in loops of their own, against the library's in float64."""

import torch
from torch import Tensor

from sciml.solvers.product import SMALL, product, suits

ANEW = {"fx_graph_cache": False}  # which does not know what a product is made of
SHAPES = [(64, 64), (37, 19), (19, 7), (1, 5)]  # strips of rows, rests of them, few rows, one


def test_product_is_that_of_the_library_to_round_off():
    torch.manual_seed(0)
    torch._dynamo.reset()
    before, run = torch.get_num_threads(), torch.compile(everything, fullgraph=True, options=ANEW)
    torch.set_num_threads(2)
    try:
        for columns in (45, 3000):  # no multiple of a vector's length; many, which threads share
            pairs = [(torch.randn(m, k), torch.randn(k, columns)) for m, k in SHAPES]
            for _, b in pairs:
                torch._dynamo.mark_dynamic(b, 1)
            for (a, b), found in zip(pairs, run(pairs), strict=True):
                for value, factor in zip(found, (b.double(), b.double().tanh()), strict=True):
                    exact = a.double() @ factor
                    assert value.shape == exact.shape
                    bound = 4e-7 * (a.double().abs() @ factor.abs())  # 3.4e-7 of tanh, and roundings of the sums
                    assert ((value - exact).abs() <= bound).all()
    finally:
        torch.set_num_threads(before)


def everything(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Plainly, and of a first factor in columns with the bounded second."""
    return [(product(a, b, False), product(a.t().contiguous().t(), b, True)) for a, b in pairs]


def test_what_is_not_finite_stays_so():
    a, b = torch.ones(1, 5), torch.zeros(5, 20)
    b[2, 3], b[1, 7], b[4, 17] = torch.nan, torch.inf, -torch.inf
    run = torch.compile(lambda a, b: (product(a, b, False), product(a, b, True)), fullgraph=True, options=ANEW)
    plain, bounded = run(a, b)
    assert torch.equal(plain.isfinite().logical_not().nonzero()[:, 1], torch.tensor([3, 7, 17]))
    assert bounded[0, 3].isnan()
    assert bounded[0, 7] == 1
    assert bounded[0, 17] == -1


def test_large_products_and_other_numbers_are_left_to_the_library():
    b = torch.ones(64, 3)
    assert suits(torch.ones(64, 64), b)
    assert not suits(torch.ones(SMALL // 64 + 1, 64), b)
    assert not suits(torch.ones(64, 64).double(), b.double())
