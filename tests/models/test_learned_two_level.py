import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sciml.models import LearnedTwoLevel
from sciml.models.matrix_features import DAMPING, matrix_features
from sciml.problems import Diffusion, FiniteElements, TwoPhase
from sciml.solvers.linear import FSAI, FunctionOperator, Prepared, SparseOperator, kernels, pcg
from sciml.solvers.linear.aggregation import Coarse, TwoLevel, pairwise, soft
from sciml.solvers.linear.approximate_inverse import Inverse
from sciml.training.preconditioner_losses import UnrolledPCG, reduction
from tests.solvers.linear.spd import draw
from tests.solvers.systems import DTYPE

JUMPS = TwoPhase(contrast=1e3, correlation=0.1)
SYSTEMS = {
    "jumps": (Diffusion(cells=12, coefficient=JUMPS), 3),
    "3d": (Diffusion(cells=6, dimension=3), 2),
    "elements": (FiniteElements(cells=9, coefficient=JUMPS), None),
    "elements 3d": (FiniteElements(cells=4, dimension=3), None),
}


def system(name: str = "jumps") -> tuple[SparseOperator, Tensor]:
    family, edge = SYSTEMS[name]
    found = family.system(seed=3)
    a = SparseOperator.from_scipy(found.matrix)
    return a, pairwise(a, 3) if edge is None else torch.from_numpy(found.aggregates(edge))


def model(size: float = 1.0, dtype: torch.dtype = torch.float32, **options: int) -> LearnedTwoLevel:
    """A network with random weights, the larger the wilder its corrections."""
    torch.manual_seed(0)
    net = LearnedTwoLevel(**options).to(dtype)
    with torch.no_grad():
        for last in (net.network.edge_out, net.pair_out, net.network.ends):
            last.weight.mul_(size)
    return net


@pytest.mark.parametrize("size", [1.0, 100.0], ids=["near", "wild"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_whatever_the_weights_it_is_definite_and_its_coarse_space_holds_constants(name: str, size: float):
    (a, aggregates), net = system(name), model(size)
    with torch.no_grad():
        made = net.on(aggregates).setup(a)
    assert isinstance(made, TwoLevel)
    assert isinstance(made.smoother, Inverse)
    assert isinstance(made.coarse, Coarse)
    z = made.coarse.z.to_scipy()
    assert np.abs(z.sum(1) - 1).max() < 1e-14  # some ten roundings of numbers of size 1
    g, dense = made.smoother.g.dense(), a.dense()[0]
    assert (g.diagonal() > 0).all()
    # triangular in some order of the unknowns
    torch.testing.assert_close(torch.linalg.slogdet(g).logabsdet, g.diagonal().log().sum(), rtol=1e-10, atol=1e-10)
    # two levels are similar to a definite matrix: products with A have a positive spectrum
    spectrum = torch.linalg.eigvals(made.apply(torch.eye(len(g), dtype=DTYPE)).mT @ dense)
    assert spectrum.real.min() > 0
    assert spectrum.imag.abs().max() < 1e-6 * spectrum.real.max()  # a root of rounding: eigenvalues 1 are many
    b = draw(2, len(g))
    solution = pcg(a, b, net.on(aggregates))
    assert solution.converged.all()
    assert not solution.fell_back.any()


def test_corrections_are_within_their_bounds_and_begin_small():
    a, aggregates = system()
    for size, share in ((1.0, 0.3), (1e4, 1.0)):
        net = model(size)
        with torch.no_grad():
            seen = net.look(a, aggregates)
            found = net.corrections(seen)
        assert all(x.abs().max() <= share for x in found)
        assert size == 1.0 or all(x.abs().max() > 0.9 for x in found)  # the bound is met


def test_compiled_loops_see_and_make_what_torch_does(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("numba")
    for name in ("jumps", "elements"):
        (a, aggregates), net = system(name), model(20.0, rounds=2)
        with torch.no_grad():
            fast = net.look(a, aggregates), net.on(aggregates).setup(a)
            with monkeypatch.context() as patch:
                patch.setattr(kernels, "available", lambda: False)
                slow = net.look(a, aggregates), net.on(aggregates).setup(a)
        for x, y in zip(fast[0], slow[0], strict=True):
            pair = [t if isinstance(t, Tensor) else t.values for t in (x, y)]
            torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6)  # single precision
            patterns = [(t.crow, t.col, t.row) for t in (x, y) if not isinstance(t, Tensor)]
            assert not patterns or all(map(torch.equal, *patterns))
        b = draw(2, len(aggregates))
        torch.testing.assert_close(fast[1].apply(b), slow[1].apply(b), rtol=1e-4, atol=1e-5)


def test_a_multiple_of_the_matrix_has_a_fraction_of_the_preconditioner():
    (a, aggregates), net = system("elements"), model(20.0)
    four = a.with_values(4 * a.compressed.values)  # roots of powers of four are exact
    g, h = (net.on(aggregates).setup(x).smoother.g.values for x in (a, four))
    assert torch.equal(g, 2 * h)


def test_names_of_aggregates_do_not_matter():
    (a, aggregates), net = system("elements"), model(20.0)
    turned = aggregates.max() - aggregates
    b = draw(2, len(aggregates))
    one, other = (net.on(x).setup(a).apply(b) for x in (aggregates, turned))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # single precision inside


def test_differentiable_preconditioner_is_the_one_to_solve_with():
    (a, aggregates), net = system("elements"), model(20.0, DTYPE)
    b = draw(3, len(aggregates))
    with torch.no_grad():
        seen = net.look(a, aggregates)
        one, other = net(seen), net.prepare(seen)
        torch.testing.assert_close(one.apply(b), other.apply(b), rtol=1e-9, atol=1e-9)  # two ways to factor
        rate = reduction(a, one, b, 6)
    history = pcg(a, b, other, rtol=1e-14, max_iter=6, throw=False).history
    expected = torch.log(b.norm(dim=1) / history[6]).mean() / 6
    assert rate.item() == pytest.approx(expected.item(), rel=1e-7)


def test_gradient_of_the_unrolled_loss_is_that_of_differences():
    (a, aggregates), net = system(), model(20.0, DTYPE, width=5)
    loss, b = UnrolledPCG(4), draw(3, len(aggregates))
    seen = net.look(a, aggregates)
    loss(a, net(seen), b).backward()
    weights = list(net.parameters())
    directions = [draw(*w.shape, seed=i) for i, w in enumerate(weights)]
    slope = sum((w.grad * d).sum() for w, d in zip(weights, directions, strict=True) if w.grad is not None)
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in weights)
    step, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for w, d in zip(weights, directions, strict=True):
                w.add_(d, alpha=sign * step)
            values.append(loss(a, net(seen), b).item())
            for w, d in zip(weights, directions, strict=True):
                w.sub_(d, alpha=sign * step)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(slope), rel=1e-5)  # of differences


class Indefinite(Prepared):
    dtype = DTYPE

    def apply(self, r: Tensor) -> Tensor:
        return -r


def test_what_breaks_down_is_finished_by_aggregates_and_counted(monkeypatch: pytest.MonkeyPatch):
    (a, aggregates), net = system(), model()
    monkeypatch.setattr(net, "prepare", lambda seen: Indefinite())
    for m in (net.on(aggregates), net.on(aggregates).setup(a), net.setup(a)):
        solution = pcg(a, draw(3, len(aggregates)), m)
        assert solution.converged.all()
        assert solution.fell_back.all()


def test_bad_input_is_refused():
    (a, aggregates), net = system(), model()
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        LearnedTwoLevel(width=0)
    with pytest.raises(ValueError, match=r"aggregates: expected the shape \(144,\), got \(143,\)"):
        net.on(aggregates[1:]).setup(a)
    with pytest.raises(ValueError, match="aggregates: expected every number from 0 to the largest"):
        net.on(2 * aggregates).setup(a)
    with pytest.raises(TypeError, match="LearnedTwoLevel expects a SparseOperator"):
        net.setup(FunctionOperator(a.matvec, 144, DTYPE))
    with pytest.raises(ValueError, match="a learned preconditioner expects a positive diagonal"):
        net.on(aggregates).setup(a.with_values(-a.compressed.values))
    with pytest.raises(ValueError, match="iterations: expected at least 1"):
        UnrolledPCG(0)
    nn.init.constant_(net.network.enter.bias, torch.nan)
    with pytest.raises(ValueError, match="weights: expected finite numbers"):
        net.on(aggregates).setup(a)


@pytest.mark.parametrize("contrast", [1e3, 1e6, 1e9])
def test_coarse_vectors_lose_energy_whatever_the_contrast(contrast: float):
    found = Diffusion(cells=32, coefficient=TwoPhase(contrast=contrast, correlation=0.06)).system(seed=777)
    a, aggregates = SparseOperator.from_scipy(found.matrix), torch.from_numpy(found.aggregates(4))
    start = soft(a.compressed, aggregates, DAMPING)
    seen = matrix_features(a, aggregates)

    def energy(z: Tensor) -> Tensor:  # of every coarse vector, where it is largest
        dense = start.with_values(z).dense()
        return ((a.dense()[0] @ dense) * dense).sum(0)

    before, after = energy(start.values), energy(seen.z.values)
    assert (after <= 1.01 * before).all()  # the sum over vectors falls; one alone may rise a little
    assert after.sum() < 0.99 * before.sum()
    smoother, b = FSAI().setup(a), draw(2, len(aggregates))
    counts = [pcg(a, b, TwoLevel(smoother, Coarse(a.compressed, z))).iterations for z in (seen.z, start)]
    assert (counts[0] <= counts[1]).all()


def test_unknowns_without_neighbours_are_seen():
    a = SparseOperator.from_scipy(np.diag([2.0, 3.0, 4.0]))
    seen = matrix_features(a, torch.tensor([0, 1, 1]))
    assert all(x.isfinite().all() for x in (seen.nodes, seen.edges, seen.pairs, seen.z.values))
    assert pcg(a, draw(2, 3), model().on(torch.tensor([0, 1, 1]))).converged.all()
