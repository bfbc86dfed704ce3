"""Calls past the compiler's front end."""

from types import FunctionType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.output_code import CompiledFxGraph
from torch._inductor.utils import fresh_cache

from sciml.solvers.direct import Direct

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.factor = 3.0


class Pair(NamedTuple):
    first: Tensor
    rest: Any


def product(module: Scaled, x: Tensor, out: Tensor) -> Pair:
    out.copy_(x)
    return Pair(module.weight * x * module.factor, [x.sum(), None, ()])


def run(direct: Direct, module: Scaled, x: Tensor) -> Pair:
    out = torch.zeros_like(x)
    found = direct(module, x, out)
    assert torch.equal(out, x)
    assert torch.equal(found.first, module.weight.detach() * x * module.factor)
    assert torch.equal(found.rest[0], x.sum())
    assert found.rest[1:] == [None, ()]
    return found


@torch.no_grad()
def test_calls_whose_guards_hold_go_past_the_compiler_and_others_through_it():
    direct, module, through = Direct(product, {}, lambda guards: [True] * len(guards)), Scaled(), []
    inner = direct.compiled
    direct.compiled = lambda *args: (through.append(len(args)), inner(*args))[1]
    run(direct, module, torch.arange(4.0))
    run(direct, module, torch.arange(4.0) + 1)
    assert len(through) == 1
    module.weight.fill_(-1.0)  # a parameter is read anew
    run(direct, module, torch.arange(4.0))
    assert len(through) == 1
    module.factor = 5.0  # a number was compiled in
    run(direct, module, torch.arange(4.0))
    assert len(through) == 2
    module.factor = 3.0
    run(direct, module, torch.arange(4.0))
    assert len(through) == 2


@torch.no_grad()
def test_a_result_that_is_no_output_of_the_graph_goes_through_the_compiler():
    def same(x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x

    direct = Direct(same, {}, lambda guards: [True] * len(guards))
    for x in (torch.zeros(2), torch.ones(2)):
        one, other = direct(x)
        assert torch.equal(one, x + 1)
        assert other is x
    assert not direct.entries


@torch.no_grad()
def test_code_from_the_compilers_cache_is_called_as_directly_as_code_made_now(monkeypatch: pytest.MonkeyPatch):
    def plus(x: Tensor) -> Tensor:
        return x + 1

    wrapped = []
    call = CompiledFxGraph.__call__
    monkeypatch.setattr(CompiledFxGraph, "__call__", lambda *args: (wrapped.append(1), call(*args))[1])
    with fresh_cache():
        for hits in (0, 1):
            counters.clear()
            own = FunctionType(plus.__code__.replace(co_name=f"plus_{hits}"), plus.__globals__)  # compiled for itself
            direct = Direct(own, {}, lambda guards: [True] * len(guards))
            for x in (torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)):
                assert torch.equal(direct(x), x + 1)
            assert counters["aot_autograd"]["autograd_cache_hit"] == hits
            assert len(wrapped) == hits + 1  # the first call alone
