"""A rewrite of the compiler's C++ around kernels: pointers in the place of handles that only give one.

The loop of a compiled march makes a handle for every input of its condition and body at every turn, and one for every
part of a tensor that is put together of parts. Each takes memory and returns it, and for small states all of them take
longer than the arithmetic. Most are only asked where their numbers lie; their source is asked for that instead. What is
not written as torch 2.13 writes it stays as it is.
"""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

VIEW = r"wrap_with_raii_handle_if_needed\(reinterpret_tensor_wrapper\((\w+), \d+, \w+, \w+, (\d+)L\)\)"
PART = re.compile(rf"^ *auto (\w+) = {VIEW}; *// alias\n", re.MULTILINE)
INPUT = re.compile(
    r"^ *AtenTensorHandle (\w+)_handle;\n"
    rf" *AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_assign_tensors_out\((?:(\w+)|{VIEW}), &\1_handle\)\);\n"
    r" *RAIIAtenTensorHandle \1\(\1_handle\);\n",
    re.MULTILINE,
)
ASKED = re.compile(r"\*\)\((\w+)\.data_ptr\(\)\)")  # as an argument of a kernel
DROPPED = re.compile(r"^ *(\w+)\.reset\(\);\n", re.MULTILINE)
GONE = re.compile(r"\b(\w+) = |\b(\w+)\.(?:reset|release)\(|std::move\((\w+)\)")


class Handle(NamedTuple):
    """One that a program declares."""

    name: str
    source: str
    offset: int  # in entries of the source
    start: int  # where the declaration begins
    end: int


def without_handles(program: str) -> str:
    """The same program with pointers in their place where that is enough."""
    spare = spared(program)
    if not spare:
        return program
    edits = [(handle.start, handle.end, "") for handle in spare.values()]
    edits += [(*m.span(), "") for m in DROPPED.finditer(program) if m[1] in spare]
    for m in ASKED.finditer(program):
        if m[1] in spare:
            source, offset = m[1], 0
            while source in spare:
                offset, source = offset + spare[source].offset, spare[source].source
            edits.append((*m.span(), f"*)({source}.data_ptr()) + {offset}L"))
    parts, done = [], 0
    for start, end, text in sorted(edits):
        parts += [program[done:start], text]
        done = end
    return "".join([*parts, program[done:]])


def spared(program: str) -> dict[str, Handle]:
    """The handles that give pointers to kernels and nothing else, while their source is there."""
    handles = declared(program)
    names = {handle.name for handle in handles}
    asked = _places(ASKED, program, names)
    dropped, gone = _places(DROPPED, program, names), _places(GONE, program, {handle.source for handle in handles})
    words = Counter(word for word in re.findall(r"\w+", program) if word in names)
    spare: dict[str, Handle] = {}
    last: dict[str, int] = {}  # where one is asked for the last time, itself or by another one
    inherited: Counter[str] = Counter()  # by how many others
    for handle in reversed(handles):
        name, source = handle.name, handle.source
        known = 1 + len(asked[name]) + len(dropped[name]) + inherited[name]
        end = max([*asked[name], last.get(name, 0), handle.end])
        if words[name] == known and not any(handle.end <= place < end for place in gone[source]):
            spare[name] = handle
            inherited[source] += 1
            last[source] = max(last.get(source, 0), end)
    return spare


def declared(program: str) -> list[Handle]:
    """The handles of parts of tensors and of inputs, in their order."""
    found = [Handle(m[1], m[2], int(m[3]), *m.span()) for m in PART.finditer(program)]
    found += [Handle(m[1], m[2] or m[3], int(m[4] or 0), *m.span()) for m in INPUT.finditer(program)]
    return sorted(found, key=lambda handle: handle.start)


def _places(pattern: re.Pattern[str], program: str, names: set[str]) -> Mapping[str, list[int]]:
    """Where a pattern holds, by the name in it."""
    places: dict[str, list[int]] = {name: [] for name in names}
    for m in pattern.finditer(program):
        name = next(group for group in m.groups() if group)
        if name in places:
            places[name].append(m.start())
    return places


class Rewritten(CustomGraphPass):
    """Leaves a graph as it is, and tells the cache on disk what programs are rewritten by."""

    def __call__(self, graph: fx.Graph) -> None:
        """Nothing."""

    def uuid(self) -> str:
        """What compiled code is cached by, beside its graph."""
        return inspect.getsource(sys.modules[__name__])


@contextmanager
def fewer_handles() -> Iterator[None]:
    """While it lasts, programs are compiled without them."""
    from torch._inductor.graph import GraphLowering

    written = GraphLowering.codegen_with_cpp_wrapper

    def rewritten(graph: Any) -> Any:
        wrapper, kernels = written(graph)
        wrapper.value = without_handles(wrapper.value)
        return wrapper, kernels

    GraphLowering.codegen_with_cpp_wrapper = rewritten
    try:
        yield
    finally:
        GraphLowering.codegen_with_cpp_wrapper = written
