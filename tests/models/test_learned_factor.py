import pytest
import torch

from sciml.models import LearnedFactor
from sciml.problems import Diffusion, FiniteElements, Lognormal
from sciml.solvers.linear import FunctionOperator, IncompleteCholesky, Jacobi, SparseOperator, kernels, pcg
from sciml.training.preconditioner_losses import Frobenius, SolutionWeighted, UnrolledPCG

DTYPE = torch.float64
FAMILY = Diffusion(cells=7, coefficient=Lognormal(contrast=100.0, correlation=0.2))


def system(seed: int = 0, cells: int | None = None):
    made = FAMILY.system(seed, cells)
    return SparseOperator.from_scipy(made.matrix), torch.from_numpy(made.draw(3, seed))


def model(size: float = 1.0, **options) -> LearnedFactor:
    torch.manual_seed(3)
    net = LearnedFactor(**options).double()
    with torch.no_grad():
        for weights in net.parameters():
            weights.mul_(size)
    return net


@pytest.mark.parametrize(("base", "modified"), [("ic", 0.0), ("mic", 0.99), ("mic", 0.8)])
def test_without_corrections_it_is_the_classic_factor(base: str, modified: float):
    a, _ = system()
    found = model(0.0, base=base, modified=modified or 0.99).setup(a).lower.compressed.dense()
    classic = IncompleteCholesky(modified).setup(a).lower.compressed.dense()
    assert torch.allclose(found, classic, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("base", ["matrix", "ic", "mic"])
def test_preconditioner_is_positive_definite_whatever_the_weights_and_scales_with_the_matrix(base: str):
    a, b = system(1)
    net = model(2.0, base=base)
    prepared = net.setup(a)
    m = prepared.apply(torch.eye(49, dtype=DTYPE))
    assert torch.allclose(m, m.mT, rtol=1e-9, atol=1e-12 * float(m.abs().max()))
    assert float(torch.linalg.eigvalsh((m + m.mT) / 2)[0]) > 0
    assert torch.allclose(prepared.inverse(prepared.apply(b)), b, rtol=1e-6)  # a condition of a million
    scaled = net.setup(a.with_values(1e6 * a.compressed.values))
    assert torch.allclose(1e6 * scaled.apply(b), prepared.apply(b), rtol=1e-6)


@pytest.mark.parametrize("base", ["matrix", "mic"])
def test_compiled_loops_see_and_make_what_torch_does(base, monkeypatch):
    pytest.importorskip("numba")
    made = FiniteElements(cells=9, dimension=2).system(0)
    a, b = SparseOperator.from_scipy(made.matrix), torch.from_numpy(made.draw(2, 1))
    net, factor = LearnedFactor(base, 5, 2), IncompleteCholesky(0.99).setup(a)
    with torch.no_grad():
        for weights in net.parameters():
            weights.mul_(5)
        fast = net.look(a, None), net.setup(a)
        monkeypatch.setattr(kernels, "available", lambda: False)
        monkeypatch.setattr(IncompleteCholesky, "factor", lambda self, lower: factor)
        slow = net.look(a, None), net.setup(a)
    for name in ("row", "col", "nodes", "edges"):
        torch.testing.assert_close(getattr(fast[0], name), getattr(slow[0], name), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast[1].apply(b), slow[1].apply(b), rtol=1e-4, atol=1e-5)  # single precision inside


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_have_the_precision_of_the_matrix(dtype):
    a, b = system()
    a, b = a.to(dtype), b.to(dtype)
    for net in (LearnedFactor("matrix", 4, 1), model(base="matrix", width=4, rounds=1)):
        prepared = net(net.look(a, None)), net.setup(a)
        assert all(m.dtype == dtype and m.apply(b).dtype == dtype for m in prepared)


def test_losses_are_their_formulas():
    a, b = system()
    x = torch.linalg.solve(a.dense()[0], b.mT).mT
    with torch.no_grad():
        prepared = model().forward(model().look(a, None))
    lower = prepared.lower.compressed.dense()
    residual = x @ lower @ lower.mT - b
    expected = (residual.square().sum(1) / b.square().sum(1)).mean()
    assert torch.allclose(SolutionWeighted()(a, prepared, b, x), expected, rtol=1e-10)
    gap = lower @ lower.mT - a.dense()[0]
    probes = torch.randn(20_000, 49, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    mean = Frobenius()(a, prepared, probes) * 49
    assert abs(float(mean / gap.square().sum() - 1)) < 0.05  # standard error about 1 %


@pytest.mark.parametrize("loss", [SolutionWeighted(), Frobenius(), UnrolledPCG(3)], ids=lambda x: type(x).__name__)
def test_gradients_are_those_of_differences(loss):
    a, b = system()
    x = torch.linalg.solve(a.dense()[0], b.mT).mT
    net = model(base="matrix", width=4, rounds=1)
    seen = net.look(a, None)
    value = loss(a, net(seen), b, x)
    weights = net.network.edge.weight
    (gradient,) = torch.autograd.grad(value, weights)
    way, step = torch.randn_like(weights), 1e-5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weights.add_(sign * step * way)
            ends.append(float(loss(a, net(seen), b, x)))
            weights.sub_(sign * step * way)
    difference = (ends[0] - ends[1]) / (2 * step)
    assert abs(float((gradient * way).sum()) - difference) < 1e-6 * abs(difference) + 1e-10  # second order in the step


def test_training_saves_iterations_on_other_and_larger_systems():
    net = model(base="matrix", width=8, rounds=2)
    examples = [(a, net.look(a, None), b) for a, b in [system(seed, 12) for seed in range(8)]]
    optimizer, loss = torch.optim.Adam(net.parameters(), lr=1e-2), UnrolledPCG(8)
    counts = lambda m: sum(int(pcg(a, b, m).iterations.sum()) for a, b in (system(100, 12), system(101, 30)))  # noqa: E731
    before = counts(net)
    for step in range(160):
        a, seen, b = examples[step % len(examples)]
        optimizer.zero_grad()
        loss(a, net(seen), b, None).backward()
        optimizer.step()
    after = counts(net)
    assert after < 0.8 * before
    assert after < counts(IncompleteCholesky())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="base: expected 'matrix', 'ic' or 'mic', got 'lu'"):
        LearnedFactor("lu")  # pyrefly: ignore[bad-argument-type]
    with pytest.raises(ValueError, match="rounds: expected at least 0"):
        LearnedFactor(rounds=-1)
    with pytest.raises(ValueError, match=r"modified: expected a share in \[0, 1\], got 2"):
        LearnedFactor(modified=2.0)
    with pytest.raises(TypeError, match="LearnedFactor expects a SparseOperator"):
        LearnedFactor().setup(FunctionOperator(lambda x: x, 3))
    a, b = system()
    with pytest.raises(ValueError, match="x: SolutionWeighted expects solutions"):
        SolutionWeighted()(a, LearnedFactor().setup(a), b, None)
    with pytest.raises(TypeError, match="expected a model that makes factors"):
        Frobenius()(a, Jacobi().setup(a), b)
    broken = LearnedFactor()
    torch.nn.init.constant_(broken.network.enter.bias, torch.nan)
    with pytest.raises(ValueError, match="weights: expected finite numbers"):
        broken.setup(a)
