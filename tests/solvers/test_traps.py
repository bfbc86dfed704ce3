"""Traps of torch, each in two halves: torch has it, so that a release that mends it shows here; we stay clear of it.

Some second halves are elsewhere: that batches of other sizes do not compile anew in `test_compiled`, that a matrix
without an inverse is told and does not raise in `linear.test_linear_solve` and, for whole steps, in `test_implicit`.
What selects rows by number in a compiled loop is its backward pass, which is here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from sciml import solve
from sciml.solvers import PID, Bosh3, Discrete, Grid, Solver, Stats, compiled
from sciml.solvers.linear.operator import DenseOperator
from sciml.solvers.linear.solve import Dense
from sciml.solvers.stepper import Field, Interval, Step
from tests.solvers.systems import DTYPE, Net

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")

# The same float64 operations in another order: some units in the last place a step.
ROUND_OFF = 1e-12


@pytest.fixture
def unfilled() -> Iterator[None]:
    """Memory that nobody has written to holds NaN, and not what happens to lie there."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def tripled(w: Tensor, y: Tensor) -> Tensor:
    """Three steps y <- y + w y of torch's loop."""
    i = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y + w * y), (i, y))[1]


def test_torchs_loop_has_a_wrong_gradient_where_only_weights_need_one():
    w = torch.tensor(0.5, dtype=DTYPE, requires_grad=True)
    right = 3 * (1 + w.item()) ** 2
    for y0, found in ((torch.ones((), dtype=DTYPE), 1.5**2), (torch.ones((), dtype=DTYPE, requires_grad=True), right)):
        (grad,) = torch.autograd.grad(tripled(w, y0), [w])
        assert abs(grad.item() - found) < ROUND_OFF  # without y0's, that of the last iteration alone


@pytest.mark.usefixtures("traced")
def test_compiled_loop_has_the_right_gradient_where_only_weights_need_one():
    net, y0 = Net(), torch.linspace(0.5, 1.5, 6, dtype=DTYPE).reshape(3, 2)
    grads = []
    for mode in ("loop", None):
        end = solve(net, y0, 0.0, 1.0, Solver(Bosh3(), PID(), Discrete("all"), compile=mode)).ys
        grads.append(torch.autograd.grad(end.square().sum(), [*net.parameters()]))
    for compiled_grad, eager in zip(*grads, strict=True):
        assert torch.allclose(compiled_grad, eager, rtol=1e-10, atol=ROUND_OFF)  # round-off of some 10 steps' sums


def test_torchs_selection_does_not_keep_an_infinite_derivative_out():
    y = torch.zeros(1, dtype=DTYPE, requires_grad=True)
    (grad,) = torch.autograd.grad(torch.where(y > 0, y.sqrt(), 0.0).sum(), [y])
    assert bool(grad.isnan())


class Root(nn.Module):
    """y' = -w sqrt(y), whose derivative is infinite at 0: y = (sqrt(y0) - w t / 2)^2."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.4, dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.w * y.sqrt()


@pytest.mark.usefixtures("traced", "unfilled")
@pytest.mark.parametrize("mode", [None, "loop", "chunks"])
def test_rows_of_lanes_that_took_fewer_steps_hold_real_states(mode: Any):
    field, ends = Root(), torch.tensor([0.1, 3.0], dtype=DTYPE)
    y0 = torch.ones(2, 1, dtype=DTYPE, requires_grad=True)
    s = solve(field, y0, 0.0, ends, Solver(Bosh3(), PID(1e-6, 1e-9), Discrete("all"), lanes="each", compile=mode))
    assert s.mesh.count[0] < s.mesh.count[1]  # there are rows that nothing was written to
    grads = torch.autograd.grad(s.ys.sum(), [y0, field.w])
    w, t = field.w.item(), ends[:, None]
    root = 1 - w * t / 2
    exact = root, (-t * root).sum()
    for found, right in zip(grads, exact, strict=True):
        assert torch.allclose(found, right, rtol=1e-4)  # a hundred local errors; what is wrong here is NaN


def test_torchs_root_mean_square_has_no_derivative_at_zero():
    x = torch.zeros(3, dtype=DTYPE, requires_grad=True)
    (grad,) = torch.autograd.grad(x.square().mean().sqrt(), [x])
    assert bool(grad.isnan().all())


@pytest.mark.parametrize("lanes", ["joint", "each"])
def test_norm_of_an_error_that_vanishes_has_a_derivative(lanes: Any):
    w = torch.tensor(-1.0, dtype=DTYPE, requires_grad=True)
    y0 = torch.zeros(2, 3, dtype=DTYPE, requires_grad=True)
    s = solve(lambda t, y: w * y, y0, 0.0, 1.0, Solver(Bosh3(), PID(), lanes=lanes), folds={"sizes": Stats()})
    errors = s.folds["sizes"].error
    assert not bool(errors.any())
    for grad in torch.autograd.grad(errors.sum() + s.ys.sum(), [w, y0]):
        assert bool(grad.isfinite().all())


def compilations(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> int:
    """How many graphs torch makes of a function for some calls."""
    graphs = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    call = torch.compile(function, fullgraph=True, backend=backend)
    for arguments in calls:
        call(*arguments)
    return len(graphs)


def test_torch_compiles_anew_for_another_batch_size():
    def product(x: Tensor) -> Tensor:
        return x * x.sum(-1, keepdim=True)

    sizes = [(torch.ones(n, 2),) for n in (3, 3, 5)]
    assert compilations(product, sizes) == 2


def through(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """A loop whose body hands an entry on as it is."""
    i = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, y, x: i < 3, lambda i, y, x: (i + 1, y + x, x), (i, y, x))


def test_torchs_loop_refuses_an_entry_that_its_body_hands_on():
    with pytest.raises(torch._dynamo.exc.UncapturedHigherOrderOpError, match="aliasing"):
        through(torch.ones(2), torch.ones(2))


@dataclass(frozen=True)
class Keeping(Bosh3):
    """Bosh3 with an entry in its carry that no step changes."""

    order: ClassVar[int] = 3

    def init(self, field: Field, t: Any, y: Tensor, h: Any) -> tuple[Tensor, ...]:
        return *super().init(field, t, y, h), y.new_zeros(7)

    def step(
        self, field: Field, interval: Interval, y: Tensor, carry: tuple[Tensor, ...], dx: Any, full: bool = True
    ) -> Step:
        step = super().step(field, interval, y, carry[:1], dx, True)
        return step._replace(carry=(*step.carry, carry[1]))


@pytest.mark.usefixtures("traced")
def test_compiled_loop_takes_a_carry_that_a_step_hands_on():
    ends = [
        solve(Net(), torch.ones(2, dtype=DTYPE), 0.0, 1.0, Solver(Keeping(), Grid(n=4), compile=mode)).ys
        for mode in ("loop", None)  # on a grid sizes and memory are handed on too
    ]
    assert torch.allclose(*ends, rtol=ROUND_OFF, atol=ROUND_OFF)


def test_torch_cannot_trace_an_index_that_is_a_tensor():
    def at(x: Tensor, i: Tensor) -> Tensor:
        return x[i]

    call = torch.compile(at, fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="data-dependent"):
        call(torch.arange(3.0), torch.tensor(1))


def longer(x: Tensor, name: str) -> Tensor:
    """Compiled anew for every name."""
    return x + len(name)


NAMES = ["a" * k for k in range(torch._dynamo.config.recompile_limit + 2)]


def test_torch_counts_compilations_of_one_code_object_whoever_compiles_it():
    call = lambda name: torch.compile(longer, fullgraph=True, backend="eager")(torch.ones(2), name)  # noqa: E731
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        list(map(call, NAMES))


@pytest.mark.usefixtures("traced")
def test_programs_do_not_count_each_others_compilations():
    for name in NAMES:
        found = compiled._compiled(longer, "a test", {})(torch.ones(2), name)
        assert found[0] == 1 + len(name)


def test_torchs_factors_read_on_the_host_whether_they_exist():
    singular = torch.stack([torch.zeros(2, 2), torch.eye(2)])
    with pytest.raises(RuntimeError, match="zero"):  # whoever raises has waited for the values
        torch.linalg.lu_factor(singular)
    assert torch.linalg.lu_factor_ex(singular).info.tolist() == [1, 0]


@pytest.mark.usefixtures("lowered")
def test_compiled_functions_forget_what_they_write_to_a_0d_float64_input():
    for dtype, size, written in ((DTYPE, (), 0.0), (torch.float32, (), 1.0), (DTYPE, (1,), 1.0)):
        x = torch.zeros(size, dtype=dtype)
        torch.compile(lambda x: (x.copy_(x + 1), 2 * x)[1])(x)
        assert x.item() == written


@pytest.mark.usefixtures("lowered")
def test_chunks_which_work_in_place_carry_no_0d_tensor():
    solutions = [
        solve(Net(), torch.ones(3, 2, dtype=DTYPE), 0.0, 1.0, Solver(Bosh3(), compile=m)) for m in ("chunks", None)
    ]
    assert torch.allclose(*(solution.ys for solution in solutions), ROUND_OFF, ROUND_OFF)
    assert solutions[0].stats == solutions[1].stats


def mapped_slopes(solved: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Jacobians of p -> A(p)^-1 p with `torch.func.vmap` and one by one."""
    points = torch.tensor([[0.3, 0.7], [-0.5, 1.2], [0.9, -0.4]], dtype=DTYPE)
    matrix = lambda p: torch.eye(2, dtype=DTYPE) + 0.1 * torch.outer(p.sin(), p)  # noqa: E731
    slopes = torch.func.jacrev(lambda p: solved(matrix(p)[None], p[None])[0])
    return torch.func.vmap(slopes)(points), torch.stack([slopes(p) for p in points])


def test_torchs_jacobians_of_solves_by_factors_are_wrong_where_they_are_mapped():
    found, right = mapped_slopes(lambda a, b: torch.linalg.lu_solve(*torch.linalg.lu_factor(a), b[..., None])[..., 0])
    assert not torch.allclose(found, right, 0.1)


def test_jacobians_of_linear_solves_are_right_where_they_are_mapped():
    found, right = mapped_slopes(lambda a, b: Dense().inverse(DenseOperator(a))(b)[0])
    assert torch.allclose(found, right, ROUND_OFF)
