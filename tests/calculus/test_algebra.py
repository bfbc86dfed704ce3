import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sciml.calculus.algebra import compose, divide, downset, multiply, univariate


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3).filter(lambda t: any(map(any, t)))
)
def test_downset_holds_all_that_is_below(tops):
    algebra = downset(*tops)
    below = {(a, b) for top in tops for a in range(top[0] + 1) for b in range(top[1] + 1)}
    assert set(algebra.indices) == below
    assert algebra.indices[0] == (0, 0)
    assert algebra.order == max(map(sum, tops))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=3))
def test_products_are_all_pairs_that_add_up(tops):
    if not any(map(any, tops)):
        return
    algebra = downset(*tops)
    for index, pairs in zip(algebra.indices, algebra.products, strict=True):
        added = {tuple(map(sum, zip(algebra.indices[i], algebra.indices[j], strict=True))) for i, j in pairs}
        assert added == {index}
        ways = 1
        for n in index:
            ways *= n + 1
        assert len(set(pairs)) == ways


def test_downset_is_made_once():
    assert downset((2, 1), (0, 3)) is downset((2, 1), (0, 3))
    assert hash(univariate(3)) == hash(univariate(3))


def test_maximal_indices_are_those_below_no_other():
    algebra = downset((3, 1, 0), (0, 2, 0), (0, 1, 1))
    assert {algebra.indices[k] for k in algebra.maximal} == {(3, 1, 0), (0, 2, 0), (0, 1, 1)}


def polynomial(algebra, generator):
    return [torch.rand((), dtype=torch.float64, generator=generator) + 0.5 for _ in algebra.indices]


def test_division_undoes_multiplication():
    algebra, generator = downset((2, 2), (4, 0)), torch.Generator().manual_seed(0)
    a, b = polynomial(algebra, generator), polynomial(algebra, generator)
    again = divide(algebra, multiply(algebra, a, b), b)
    torch.testing.assert_close(again, a, rtol=1e-12, atol=1e-12)  # round-off of some ten terms of size one


def test_composition_with_a_square_is_a_product():
    algebra, generator = downset((2, 2), (4, 0)), torch.Generator().manual_seed(0)
    a = polynomial(algebra, generator)
    squared = compose(algebra, [a[0] ** 2, 2 * a[0], 1.0, None, None], a)
    torch.testing.assert_close(squared, multiply(algebra, a, a), rtol=1e-14, atol=1e-14)  # the same sums in other order


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: univariate(0), "order: expected a whole number, 1 or more, got 0"),
        (lambda: univariate(2.0), "order: expected a whole number, 1 or more, got 2.0"),
        (lambda: univariate(True), "order: expected a whole number, 1 or more, got True"),
        (lambda: downset(), "tops: expected at least one multi-index that is not zero, got"),
        (lambda: downset((0, 0)), "tops: expected at least one multi-index that is not zero, got ..0"),
        (lambda: downset((1, 2), (1,)), "tops: expected tuples of orders, 0 or more, of one length, got"),
        (lambda: downset((-1, 2)), "tops: expected tuples of orders"),
        (lambda: downset((2, 1), collapsed=[(1, 1)]), "collapsed: expected maximal multi-indices"),
    ],
)
def test_bad_orders_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
