"""A rewrite of the compiler's C++ around kernels: fewer handles of tensors, and memory that is used again.

The loop of a compiled march makes a handle for every input of its condition and body at every turn, one for every part
of a tensor that is put together of parts, and new tensors. Each takes memory and returns it, and for small states that
takes far longer than the arithmetic. Most handles are only asked where their numbers lie: their source is asked
instead. Tensors that a turn made are written to again two turns later, when nothing reads them any more. What is not
written as torch 2.13 writes it stays as it is.
"""

import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

SMALL = 1024  # entries of a tensor within a turn that is kept for the next one
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
LOOP = re.compile(r"^( *)while \(1\) \{\n(.*?)^\1\}\n", re.MULTILINE | re.DOTALL)
MADE = re.compile(
    r"^ *AtenTensorHandle (\w+)_handle;\n"
    r" *AOTI_TORCH_ERROR_CODE_CHECK\((aoti_torch_empty_strided\(.*), &\1_handle\)\);\n"
    r" *RAIIAtenTensorHandle \1\(\1_handle\);\n",
    re.MULTILINE,
)
CARRIED = re.compile(rf"^ *(\w+)\.reset\(\);\n *\1 = std::move\((?:(\w+)|({VIEW}))\);\n", re.MULTILINE)
BLOCKS = re.compile(r"while \(1\)|else|if \((?!!\w+_scalar\) break;)")
ENTRY = "void inductor_entry_impl("
QUICKLY = """#if defined(__GNUC__) && !defined(__clang__)
__attribute__((optimize("O1")))  // GCC takes minutes otherwise
#endif
"""
TOLD = re.compile(
    rf"^ *(\w+)\.reset\(\);\n *\1 = std::move\((?:(\w+)|{VIEW})\);\n *bool \1_scalar;\n"
    r" *AOTI_TORCH_ERROR_CODE_CHECK\(aoti_torch_item_bool\(\1, &\1_scalar\)\);\n",
    re.MULTILINE,
)


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
    return edited(program, edits)


def edited(program: str, edits: list[tuple[int, int, str]]) -> str:
    """The program with other text in the place of some."""
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


def with_kept_memory(program: str) -> str:
    """The same program; its loops allocate in two turns only where all that is done with the memory is known."""
    found = LOOP.sub(lambda m: kept(m[2], m[1], m.start()) or m[0], program)
    return program if found == program else found.replace(ENTRY, QUICKLY + ENTRY)


def kept(body: str, indent: str, place: int) -> str | None:
    """A loop that writes to what it wrote to two turns ago; None where there is nothing to gain."""
    if BLOCKS.search(body):
        return None
    body = TOLD.sub(
        lambda m: f"bool {m[1]}_scalar = *((const bool*)({m[2] or m[3]}.data_ptr()) + {m[4] or 0}L);\n", body
    )
    words = Counter(re.findall(r"\w+", body))
    asked, dropped = Counter(ASKED.findall(body)), Counter(DROPPED.findall(body))
    goes = {}
    for m in CARRIED.finditer(body):
        if words[m[1]] == asked[m[1]] + 2 and (m[2] or m[5] == "0"):
            goes[m[2] or m[4]] = m
    mine = {}
    for m in MADE.finditer(body):
        name = m[1]
        known = words[name] == 1 + asked[name] + dropped[name] + (name in goes)
        if known and (name in goes or small(m[2], body)):
            mine[name] = m
    if not mine:
        return None
    edits, turn = [(*m.span(), "") for m in DROPPED.finditer(body) if m[1] in mine], f"turn_{place}"
    for name, m in mine.items():
        made = f"AOTI_TORCH_ERROR_CODE_CHECK({m[2]}, &{name}_handle));"
        new = f"AtenTensorHandle {name}_handle; {made} {name} = RAIIAtenTensorHandle({name}_handle);"
        edits.append((*m.span(), f"if ({turn} < 2) {{ {new} }}\n"))
        if name in goes:
            m = goes[name]
            view = f"if ({turn} < 2) {name} = {m[3]};\n" if m[3] else ""
            edits.append((*m.span(), f"{view}std::swap({m[1]}, {name});\n"))
    names = "".join(f"RAIIAtenTensorHandle {name};\n" for name in mine)
    return (
        f"volatile int64_t {turn} = 0;\n{names}{indent}while (1) {{\n{edited(body, edits)}"
        f"{turn} = {turn} + 1;\n{indent}}}\n"
    )


def small(call: str, body: str) -> bool:
    """Whether a call that makes a tensor is for few entries, so that keeping it displaces nothing in the cache."""
    sizes = re.search(rf"\b{call.split(', ')[1]}(?:\[\] = \{{(.*?)\}}|=nullptr);", body)
    if sizes is None:
        return False
    numbers = re.findall(r"[^, ]+", sizes[1] or "")
    return all(re.fullmatch(r"\d+L", n) for n in numbers) and prod(int(n[:-1]) for n in numbers) <= SMALL


class Rewritten(CustomGraphPass):
    """Leaves a graph as it is, and tells the cache on disk what programs are rewritten by."""

    def __call__(self, graph: fx.Graph) -> None:
        """Nothing."""

    def uuid(self) -> str:
        """What compiled code is cached by, beside its graph."""
        return inspect.getsource(sys.modules[__name__])


@contextmanager
def lean_programs() -> Iterator[None]:
    """While it lasts, compiled programs are rewritten."""
    from torch._inductor.graph import GraphLowering

    written = GraphLowering.codegen_with_cpp_wrapper

    def rewritten(self: Any) -> Any:
        wrapper, kernels = written(self)
        wrapper.value = with_kept_memory(without_handles(wrapper.value))
        return wrapper, kernels

    GraphLowering.codegen_with_cpp_wrapper = rewritten
    try:
        yield
    finally:
        GraphLowering.codegen_with_cpp_wrapper = written
