"""The rewrite that takes small tensors apart: the same numbers, of fewer and simpler operations."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from sciml import Solver, solve
from sciml.solvers import PID, Kvaerno3, Rodas5P, compiled
from sciml.solvers.components import Components
from sciml.solvers.linear.operator import DenseOperator, LinearOperator, jacobian
from sciml.solvers.linear.solve import _elimination
from tests.solvers.stiff import ROBERTSON
from tests.solvers.systems import DTYPE

BATCH = 12  # more than an axis has that is taken apart
EYE, MIX = torch.eye(3, dtype=DTYPE), torch.linspace(-1, 1, 12, dtype=DTYPE).reshape(3, 4)


def traced(function: Callable[..., Any], *inputs: Tensor, symbolic: bool = False) -> fx.GraphModule:
    """The function's graph as a compiler's last passes see it."""
    mode = FakeTensorMode(shape_env=ShapeEnv() if symbolic else None, allow_non_fake_inputs=True)
    kind = "symbolic" if symbolic else "fake"
    fakes = inputs if symbolic else [mode.from_tensor(x) for x in inputs]
    table = select_decomp_table()
    return make_fx(function, table, tracing_mode=kind, _allow_non_fake_inputs=True)(*fakes)


def apart(function: Callable[..., Any], *inputs: Tensor, symbolic: bool = False) -> fx.GraphModule:
    module = traced(torch.func.functionalize(function), *inputs, symbolic=symbolic)
    module.graph.eliminate_dead_code()
    Components()(module.graph)
    module.graph.lint()
    module.recompile()
    return module


def operations(module: fx.GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in module.graph.nodes if node.op == "call_function")


def arithmetic(y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([a * b - c, torch.where(a > b, a, c).exp(), torch.maximum(a, 2 * b) / (1 + c * c)], -1)


def columns(function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """The Jacobian as a compiled program makes it, by products with unit vectors."""
    return LinearOperator.dense(jacobian(function, y, y.numel() // 3))


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": arithmetic,
    "cat": lambda y: torch.cat([y[..., 1:], y[..., :1].sin()], -1) + y,
    "sums": lambda y: (y.sum(-1), y.mean(-1, keepdim=True) * y, (y * y).sum(-1).sqrt(), y.sum()),
    "extremes": lambda y: (y.amax(-1), y.amin(-1, keepdim=True), (y > 0).any(-1), (y > 0).all()),
    "norm": lambda y: torch.linalg.vector_norm(y, dim=-1),
    "indices": lambda y: y[..., [2, 0, 0]] * y[..., 1:2],
    "matrices": lambda y: torch.tanh(y @ MIX) @ MIX.mT - y,
    "outer": lambda y: y[..., :, None] * y[..., None, :] + EYE,
    "views": lambda y: (2 * y).reshape(*y.shape[:-1], 3, 1).expand(*y.shape[:-1], 3, 2).flatten(-2),
    "flips": lambda y: (y + 1).flip(-1) + y.cumsum(-1),
    "turned": lambda y: (y * 3).movedim(-1, 0) - y.movedim(-1, 0).amax(0),
    "along": lambda y: y * y.mean(0) if y.ndim > 1 else y,
    "integers": lambda y: (y > 0).long() + (y < 1),
    "jacobian": lambda y: columns(arithmetic, y),
}


@pytest.mark.parametrize("symbolic", [False, True], ids=["sized", "symbolic"])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (BATCH, 3)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_graph_gives_the_same_numbers(name: str, shape: tuple[int, ...], symbolic: bool):
    function = FUNCTIONS[name]
    y = torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    found, right = apart(function, y, symbolic=symbolic)(y), function(y)
    found, right = (x if isinstance(x, tuple) else (x,) for x in (found, right))
    for a, b in zip(found, right, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert torch.allclose(a, b, rtol=1e-14, atol=1e-14)  # sums in another order


def test_random_graphs_give_the_same_numbers():
    """Vectors made of earlier ones by operations drawn at random."""
    steps: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda a, b: a + 0.5 * b,
        lambda a, b: a * b,
        lambda a, b: torch.where(a > b, a, -b),
        lambda a, b: torch.cat([a[:, 1:], b[:, :1]], -1),
        lambda a, b: (a - b.sum(-1, keepdim=True)).sin(),
        lambda a, b: torch.stack([a, b], 1).amax(1),
        lambda a, b: (a[:, None] * torch.eye(3, dtype=DTYPE) @ b[..., None]).squeeze(-1),
        lambda a, b: a.flip(-1).clamp(-1, 1) + b[:, 1, None],
        lambda a, b: torch.zeros_like(a) * b + a,
    ]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(0, 1 << 20, (12, 3), generator=generator).tolist()

        def function(y: Tensor) -> Tensor:
            known = [y, y.cos()]
            for step, i, j in drawn:  # noqa: B023
                known.append(steps[step % len(steps)](known[i % len(known)], known[j % len(known)]).clamp(-9, 9))
            return torch.stack(known[-3:])

        y = torch.randn(BATCH, 3, dtype=DTYPE, generator=generator)
        assert torch.allclose(apart(function, y)(y), function(y), rtol=1e-12, atol=1e-12), seed


def test_elimination_is_arithmetic_along_the_batch():
    """Nothing but entries read, arithmetic on them and one stack is left."""

    def function(matrix: Tensor, b: Tensor) -> Tensor:
        return _elimination(DenseOperator(matrix).dense())(b)[0]

    matrix = torch.randn(BATCH, 3, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    module = apart(function, matrix, matrix[:, 0].clone())
    assert all(node.meta["val"].shape == (BATCH,) for node in module.graph.nodes if "div" in node.name)
    assert operations(module)["aten.cat.default"] == 1
    assert torch.allclose(module(matrix, matrix[:, 0]), torch.linalg.solve(matrix, matrix[:, 0]), rtol=1e-10)


def test_unit_vectors_leave_nothing_behind():
    """The Jacobian of a linear field is constants, and one product with a zero none."""
    y = torch.ones(BATCH, 3, dtype=DTYPE)
    linear = lambda y: torch.stack([2 * y[:, 1], y[:, 2], -y[:, 0]], -1)  # noqa: E731
    module = apart(lambda y: columns(linear, y), y)
    assert not any(name.startswith(("aten.mul", "aten.add")) for name in operations(module))


def test_promotion_is_left_as_it_is():
    """A vector of doubles keeps floats from deciding, which a double without axes does not."""
    weights = torch.tensor([1.0, 1 / 3, 1e-9], dtype=DTYPE)
    y = torch.randn(BATCH, 3)
    module = apart(lambda y, w: y * w, y, weights)
    assert torch.equal(module(y, weights), y * weights)


@pytest.fixture
def _forgetting():
    yield
    compiled.forget()


class Reaction(torch.nn.Module):
    """A field with a product, a concatenation, a sum and an index beside arithmetic."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mix", torch.tensor([[-1.0, 2.0], [0.5, -300.0]], dtype=DTYPE))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        linear = y[..., :2] @ self.mix
        return torch.cat([linear, (t.cos() - y.sum(-1, keepdim=True)) * y[..., [1]]], -1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's compiler
@pytest.mark.usefixtures("_forgetting")
@pytest.mark.parametrize("lanes", ["joint", "each"])
@pytest.mark.parametrize("field", [ROBERTSON.field, Reaction()], ids=["robertson", "products"])
@pytest.mark.parametrize("stepper", [Rodas5P(), Kvaerno3(iterations=3)], ids=lambda x: type(x).__name__)
@torch.no_grad()
def test_compiled_loop_is_the_eager_march(stepper: Any, field: Any, lanes: Any):
    y0 = ROBERTSON.y0 if lanes == "joint" else ROBERTSON.y0 + torch.linspace(0, 0.1, BATCH, dtype=DTYPE)[:, None]
    run = lambda mode: solve(  # noqa: E731
        field, y0, 0.0, 3.0, Solver(stepper, PID(1e-5, 1e-8, 1e-3), lanes=lanes, compile=mode), save_at=[1.0, 3.0]
    )
    found, right = run("loop"), run(None)
    assert torch.equal(found.stats.accepted, right.stats.accepted)
    assert torch.allclose(found.ys, right.ys, rtol=1e-9, atol=1e-12)  # sums in another order choose the steps
