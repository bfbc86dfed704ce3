"""Programs of the compiler without handles that only give a pointer."""

import re

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from sciml.solvers import handles
from sciml.solvers.direct import Direct
from sciml.solvers.handles import with_kept_memory, without_handles

SHAPE = "1, int_array_1, int_array_1"
PART = f"    auto part = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(whole, {SHAPE}, 4L));  // alias\n"
VIEWED = f"wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(whole, {SHAPE}, 4L))"
CALL = "    kernel((const double*)(x.data_ptr()), (double*)(part.data_ptr()), n);\n"


def taken(name: str, source: str) -> str:
    return (
        f"    AtenTensorHandle {name}_handle;\n"
        f"    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_assign_tensors_out({source}, &{name}_handle));\n"
        f"    RAIIAtenTensorHandle {name}({name}_handle);\n"
    )


@pytest.mark.parametrize("declaration", [PART, taken("part", VIEWED)])
def test_pointer_takes_the_place_of_a_handle(declaration: str):
    program = f"    a();\n{declaration}{CALL}    part.reset();\n    whole.reset();\n"
    call = CALL.replace("(part.data_ptr())", "(whole.data_ptr()) + 4L")
    assert without_handles(program) == f"    a();\n{call}    whole.reset();\n"


def test_handle_of_a_handle_goes_as_well():
    program = taken("middle", "x") + taken("whole", "middle") + PART + CALL + "    middle.reset();\n"
    assert without_handles(program) == CALL.replace("(part.data_ptr())", "(x.data_ptr()) + 4L")


@pytest.mark.parametrize(
    "rest",
    [
        f"{CALL}    other(part);\n",  # a tensor is asked for
        f"    whole.reset();\n{CALL}",  # the source is gone
        f"    kept = std::move(whole);\n{CALL}",
        f"    whole.reset();\n    whole = std::move(y);\n{CALL}",  # the source is another one
        f"{CALL}{PART}{CALL}",  # declared twice
        f"{CALL}    part = std::move(y);\n",  # carried
    ],
    ids=["asked", "reset", "moved", "replaced", "twice", "carried"],
)
def test_other_handles_stay(rest: str):
    assert without_handles(PART + rest) == PART + rest


def test_handle_stays_where_the_source_of_its_source_is_gone():
    program = taken("middle", "whole") + "    whole.reset();\n" + PART.replace("whole", "middle") + CALL
    assert without_handles(program) == program.replace(PART.replace("whole", "middle"), "").replace(
        "(part.data_ptr())", "(middle.data_ptr()) + 4L"
    )


def made(name: str) -> str:
    return (
        f"        AtenTensorHandle {name}_handle;\n"
        f"        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, n, n, cpu, 0, &{name}_handle));\n"
        f"        RAIIAtenTensorHandle {name}({name}_handle);\n"
    )


WRITE = "        kernel((const double*)(state.data_ptr()), (double*)(next.data_ptr()));\n"
PASS = "        state.reset();\n        state = std::move(next);\n"


def loop(body: str) -> str:
    return f"    RAIIAtenTensorHandle state(state_handle);\n    while (1) {{\n{body}    }}\n"


def test_memory_of_a_turn_is_written_to_again_two_turns_later():
    found = with_kept_memory(loop(made("next") + WRITE + PASS))
    assert "std::swap(state, next)" in found
    assert "if (turn_" in found
    assert re.search(r"RAIIAtenTensorHandle next;\n *while", found)


@pytest.mark.parametrize(("size", "again"), [("{2L, 3L, }", True), ("{2L, 3000L, }", False), ("{2L, s4, }", False)])
def test_what_only_a_turn_needs_is_kept_if_it_is_small(size: str, again: bool):
    sizes, write = f"        static constexpr int64_t n[] = {size};\n", WRITE.replace("next", "part")
    body = f"{sizes}{made('part')}{write}        part.reset();\n"
    found = with_kept_memory(loop(body))
    assert (found != loop(body)) == again


@pytest.mark.parametrize(
    "body",
    [
        made("next") + WRITE + "        other(next);\n" + PASS,  # a tensor is asked for, which may be kept
        made("next") + WRITE + "        kept = std::move(state);\n" + PASS,
        made("next") + WRITE + PASS + "        more = std::move(next);\n",
        f"    while (1) {{\n{made('next')}{WRITE}{PASS}    other(state);\n    }}\n",
    ],
    ids=["asked", "moved", "twice", "state"],
)
def test_other_memory_is_new_in_every_turn(body: str):
    assert with_kept_memory(loop(body)) == loop(body)


def turns(x: Tensor, factor: Tensor) -> Tensor:
    """Several turns of a loop over two parts of a tensor."""

    def body(i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.unbind()
        return i + 1, torch.stack([a * factor + b, a.sin() - b])

    return while_loop(lambda i, x: i < 5, body, (torch.zeros((), dtype=torch.int64), x))[1]


def test_compiled_loops_have_fewer_handles_and_the_same_values(monkeypatch: pytest.MonkeyPatch):
    """As torch writes them now; a new version that writes them otherwise shows here."""
    found = []

    def noted(program: str) -> str:
        found.append((program, without_handles(program)))
        return found[-1][1]

    kept = []
    monkeypatch.setattr(handles, "without_handles", noted)
    monkeypatch.setattr(handles, "with_kept_memory", lambda program: kept.append(with_kept_memory(program)) or kept[-1])
    torch.manual_seed(0)
    x, factor = torch.randn(2, 3, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    torch._dynamo.reset()
    options = {"fx_graph_cache": False}
    call, exact = Direct(turns, options, lambda guards: [True] * len(guards)), turns(x, factor)
    given = x.clone()
    values = [call(x, factor) for _ in range(3)]
    for value in values:  # none has the memory of another one
        torch.testing.assert_close(value, exact, rtol=1e-14, atol=1e-14)
    assert torch.equal(x, given)
    ((before, after),) = found
    inside = [re.search(r"while \(1\) \{.*", program, re.DOTALL)[0] for program in (before, after)]  # pyrefly: ignore
    count = [len(re.findall("aoti_torch_assign_tensors_out|// alias", program)) for program in inside]
    assert count[0] >= 6
    assert count[1] == 0
    assert len(re.findall("std::swap", kept[0])) == 2  # the count and the state
    assert not re.search(r"while \(1\) \{.*item_bool.*std::swap", kept[0], re.DOTALL)
