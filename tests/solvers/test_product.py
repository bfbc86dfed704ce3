"""Products of small matrices in loops of their own, against the library's in float64."""

import torch
from torch import Tensor

from sciml.solvers.product import SMALL, product, suits

ANEW = {"fx_graph_cache": False}  # which does not know what a product is made of
SHAPES = [(64, 64), (37, 19), (2, 64), (1, 5)]  # strips of rows, rests of them, few rows, one


def test_product_is_that_of_the_library_to_round_off():
    torch.manual_seed(0)
    torch._dynamo.reset()
    before, run = torch.get_num_threads(), torch.compile(everything, fullgraph=True, options=ANEW)
    torch.set_num_threads(2)
    try:
        for columns in (45, 3000):  # no multiple of a vector's length; many, which threads share
            given = [(torch.randn(m, k), torch.randn(k, columns), torch.randn(m)) for m, k in SHAPES]
            for _, b, _ in given:
                torch._dynamo.mark_dynamic(b, 1)
            for (a, b, bias), found in zip(given, run(given), strict=True):
                rest = bias.double()[:, None]
                for value, factor, start in zip(found, (b.double(), b.double().tanh()), (0 * rest, rest), strict=True):
                    exact = a.double() @ factor + start
                    assert value.shape == exact.shape
                    bound = 4e-7 * (a.double().abs() @ factor.abs() + start.abs())  # 3.4e-7 of tanh, and roundings
                    assert ((value - exact).abs() <= bound).all()
    finally:
        torch.set_num_threads(before)


def everything(given: list[tuple[Tensor, Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Plainly, and of a first factor in columns with the bounded second, plus a bias."""
    return [(product(a, b, None, False), product(a.t().contiguous().t(), b, bias, True)) for a, b, bias in given]


def test_what_is_not_finite_stays_so():
    a, b = torch.ones(1, 5), torch.zeros(5, 20)
    b[2, 3], b[1, 7], b[4, 17] = torch.nan, torch.inf, -torch.inf
    run = torch.compile(
        lambda a, b: (product(a, b, None, False), product(a, b, None, True)), fullgraph=True, options=ANEW
    )
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
