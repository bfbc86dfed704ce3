from fractions import Fraction
from math import factorial

from hypothesis import given
from hypothesis import strategies as st

from sciml.calculus.partitions import contents, prove


def slots(**powers: int) -> dict[tuple[int, ...], dict[str, Fraction]]:
    """A curve with one coordinate at each of some powers of t, as Shi et al. write them: t^k e / k!."""
    return {(k,): {name: Fraction(1, factorial(k))} for name, k in powers.items()}


def test_jet_that_the_paper_prints_for_kdv_is_contaminated():
    thirteen = {name: int(n * factorial(13)) for name, n in contents(slots(x=3, y=4, t=7), (13,)).items()}
    assert thirteen == {("x", "x", "x", "y"): 200200, ("t", "x", "x"): 17160}
    eleven = contents(slots(x=3, y=4, t=7), (11,))
    assert set(eleven) == {("t", "y"), ("x", "y", "y")}


def test_seven_jet_for_u_iij_is_clean():
    found = contents(slots(i=2, j=3), (7,))
    assert found == {("i", "i", "j"): Fraction(105, factorial(7))}


def test_terms_that_cancel_are_left_out():
    assert contents({(1,): {"x": 1}, (2,): {"y": Fraction(-1, 2), "x": 3}}, (2,)) == {
        ("x", "x"): Fraction(1, 2),
        ("y",): Fraction(-1, 2),
        ("x",): Fraction(3),
    }
    cancelling = contents({(1,): {"x": 1, "y": 1}, (2,): {"x": 1}, (3,): {"x": -1}}, (3,))
    assert ("x",) in cancelling  # D u[w_3] = -u_x stays: nothing else has it
    assert all(cancelling.values())


def test_one_line_per_variable_is_clean_also_where_lines_are_the_same():
    for index in ((4,), (3, 1), (2, 2), (2, 1, 1), (1, 1, 1, 1, 1, 1)):
        prove(index)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_contents_are_the_coefficients_of_a_polynomial(orders: list[int], data: st.DataObject):
    """For u = a monomial, the coefficient is that of u(n(t)) at x = 0, expanded by hand."""
    names = "xyz"[: len(orders)]
    exponents = data.draw(st.lists(st.integers(0, 2), min_size=len(names), max_size=len(names)))
    curve = {(k,): {name: data.draw(st.integers(-2, 2)) for name in names} for k in orders}
    series = {0: 1}
    for name, exponent in zip(names, exponents, strict=True):
        for _ in range(exponent):
            grown: dict[int, int] = {}
            for power, factor in series.items():
                for (k,), w in curve.items():
                    grown[power + k] = grown.get(power + k, 0) + factor * w[name]
            series = grown
    scale = 1
    for exponent in exponents:
        scale *= factorial(exponent)
    wanted = tuple(name for name, exponent in zip(names, exponents, strict=True) for _ in range(exponent))
    for n in range(1, 7):
        expected = Fraction(series.get(n, 0)) if wanted else Fraction(0)
        assert contents(curve, (n,)).get(wanted, Fraction(0)) * scale == expected
