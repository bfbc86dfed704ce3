"""Calls of compiled functions past the compiler's front end.

At every call `torch.compile` goes through wrappers that cost as much as several steps of a small state. A program that
has run once is called here as soon as the guards of its compilation hold: its inputs are taken from where the compiler
found them, and its outputs are put where it put them. What cannot be followed goes through the compiler as before.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._guards import CompileContext

from sciml.solvers.captured import Captured, capturable
from sciml.solvers.handles import Rewritten, lean_programs

# elsewhere a wrapper in C++ needs the device's headers, and a replayed graph has none
HOST = {"cpp_wrapper": True, "post_grad_custom_pre_pass": Rewritten()}


class Graph(NamedTuple):
    """A graph that was compiled."""

    identity: Any  # of its compilation
    run: Callable[..., Any]
    sources: list[str | None]  # where its inputs come from, as expressions in the function's locals


class Entry(NamedTuple):
    """A way past the front end."""

    guards: Any
    inputs: Callable[[Mapping[str, Any]], Sequence[Any]]
    run: Callable[..., Any]
    result: Callable[[Sequence[Any]], Any]


class Direct:
    """A function compiled as one graph, free of effects but on tensors.

    Args:
        function: what to compile.
        options: of the compiler.
        guards: says which guards to check.
        captured: whether its kernels may be replayed as a graph, where the device has such: it reads no number from
            the device, and its outputs are read before the next call.
    """

    def __init__(
        self,
        function: FunctionType,
        options: dict[str, Any],
        guards: Callable[[Sequence[Any]], list[bool]],
        captured: bool = False,
    ):
        self.captured = captured
        self.function, self.options, self.names = function, options, tuple(signature(function).parameters)
        self.entries: list[Entry] = []
        self.ran: tuple[Graph, Sequence[Any]] | None = None
        self.compiled = torch.compile(
            function, fullgraph=True, backend=self._backend, options={"guard_filter_fn": guards}
        )

    def __call__(self, *args: Any) -> Any:
        """The function's value."""
        local = dict(zip(self.names, args, strict=True))
        for entry in self.entries:
            if entry.guards.check(local):
                return entry.result(entry.run(*entry.inputs(local)))
        self.ran = None
        found = self.compiled(*args)
        if self.ran is not None:
            graph, outputs = self.ran
            self._learn(graph, outputs, found)
        return found

    def _backend(self, module: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        tensors = [x for x in examples if isinstance(x, Tensor)]
        host = all(x.device.type == "cpu" for x in tensors)
        options = self.options | (HOST if host else {})
        with _gathering() as made, lean_programs() if host else nullcontext():  # programs read conditions on the host
            run: Any = compile_fx(module, list(examples), config_patches=options)
        places = [node.meta.get("grapharg") for node in module.graph.find_nodes(op="placeholder")]
        sources = [None if place is None or place.source is None else place.source.name for place in places]
        identity = CompileContext.current_compile_id()

        def noted(*inputs: Any) -> Any:
            outputs, quick = _watched(run, made, inputs)
            if self.captured and capturable(inputs):
                quick = Captured(quick)
            self.ran = Graph(identity, quick, sources), outputs
            return outputs

        return noted

    def _learn(self, graph: Graph, outputs: Sequence[Any], result: Any) -> None:
        """Remember the way that a call took."""
        entries = [e for e in _debug_get_cache_entry_list(self.function.__code__) if e.compile_id == graph.identity]
        if len(entries) != 1 or None in graph.sources:
            return
        places = {id(x): i for i, x in enumerate(outputs)}
        scope: dict[str, Any] = {"G": self.function.__globals__}
        try:
            built = _expression(result, places, scope)
        except LookupError:
            return
        inputs = eval(f"lambda L: ({', '.join(map(str, graph.sources))},)", scope)
        self.entries.append(Entry(entries[0].guard_manager, inputs, graph.run, eval(f"lambda out: {built}", scope)))


@contextmanager
def _gathering() -> Iterator[list[Any]]:
    """The kernels that come of a compilation, compiled now or taken from the cache on disk."""
    from torch._inductor.output_code import CompiledFxGraph

    made: list[Any] = []
    ready = CompiledFxGraph.post_compile

    def noted(graph: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(graph)
        return ready(graph, *args, **kwargs)

    CompiledFxGraph.post_compile = noted
    try:
        yield made
    finally:
        CompiledFxGraph.post_compile = ready


def _watched(run: Callable[..., Any], made: Sequence[Any], inputs: Sequence[Any]) -> tuple[Any, Callable[..., Any]]:
    """The outputs of compiled code, and what gives them for other inputs.

    That is its kernels alone, if they take and give the same tensors as the code around them does.
    """
    if len(made) != 1 or torch.is_grad_enabled() or not hasattr(made[0], "current_callable"):
        return run(*inputs), run
    kernels, seen = made[0].current_callable, []

    def watch(args: list[Any]) -> Any:
        given = tuple(args)
        found = kernels(args)
        seen.append((given, found))
        return found

    made[0].current_callable = watch
    try:
        outputs = run(*inputs)
    finally:
        made[0].current_callable = kernels
    same = lambda some, others: len(some) == len(others) and all(map(operator.is_, some, others))  # noqa: E731
    if len(seen) == 1 and same(seen[0][0], inputs) and same(seen[0][1], outputs):
        return outputs, lambda *inputs: kernels(list(inputs))
    return outputs, run


def _expression(tree: Any, places: Mapping[int, int], scope: dict[str, Any]) -> str:
    """Python that builds a tree out of the outputs ``out``.

    Raises:
        LookupError: a part of it is not among them.
    """
    if isinstance(tree, Tensor):
        return f"out[{places[id(tree)]}]"
    if tree is None:
        return "None"
    if not isinstance(tree, tuple | list):
        raise LookupError(f"expected a tensor, a tuple or a list, got {type(tree).__name__}")
    parts = ", ".join(_expression(part, places, scope) for part in tree)
    if isinstance(tree, list):
        return f"[{parts}]"
    if type(tree) is tuple:
        return f"({parts},)" if tree else "()"
    scope[type(tree).__name__] = type(tree)
    return f"{type(tree).__name__}({parts})"
