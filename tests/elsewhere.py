"""A device that is not there, for tests of what runs on one: its tensors lie in host memory, in wrappers.

Torch takes them for tensors of another device. What mixes them with the host's, draws from another device's generator
or turns them into arrays raises as it would on a GPU, and each number that the host reads of them is counted.
Kernels, streams and compiled programs are none of its business.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten = torch.ops.aten
NAME = "elsewhere"
HOST = torch.device("cpu")

MOVES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {getattr(aten, name) for name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")}
NUMBERS = {aten._local_scalar_dense.default, aten.equal.default}
COUNTED = {getattr(aten, name) for name in ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")}


class Elsewhere(Tensor):
    """A tensor of the device, around the one of the host that has its numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.detach().inner!r})"

    def untyped_storage(self) -> Any:
        return self.detach().inner.untyped_storage()

    def _read(self, what: str) -> Tensor:
        reads.append(what)
        return self.detach().inner

    def tolist(self) -> Any:
        return self._read("tolist").tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")
        return self._read("numpy").numpy(force=True)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().inner.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(copied) if isinstance(self, torch.nn.Parameter) else copied
        return memo[id(self)]


reads: list[str] = []
"""What the host has read of the device's tensors, in order."""


def run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator of torch, with the numbers of the host."""
    if op in FUSED:
        return FUSED[op](*args)
    if op is aten._has_compatible_shallow_copy_type.default:
        return False
    leaves = pytree.tree_leaves((args, kwargs))
    there = any(isinstance(x, Elsewhere) for x in leaves)
    if there and (fakes := [x for x in leaves if isinstance(x, FakeTensor)]):
        fake = fakes[0].fake_mode.from_tensor
        args, kwargs = pytree.tree_map_only(Elsewhere, lambda x: fake(x.detach()), (args, kwargs))
        return op(*args, **kwargs)
    if op not in MOVES:
        refuse_mixed(op, leaves)
    device = kwargs.get("device")
    if device is not None:
        if there and torch.device(device).type != NAME:
            reads.append(str(op))
        there = torch.device(device).type == NAME
        kwargs = {**kwargs, "device": HOST if there else device}
    if op is aten._efficientzerotensor.default:
        op = aten.zeros.default
    inner_args, inner_kwargs = pytree.tree_map_only(Elsewhere, lambda x: x.inner, (args, kwargs))
    out = op(*inner_args, **inner_kwargs)
    if there and (op in NUMBERS or op.overloadpacket in COUNTED):
        reads.append(str(op))
    if op in NUMBERS or not there or not op._schema.returns:
        return out
    if op._schema.is_mutable:
        return kwargs["out"] if "out" in kwargs else args[0]
    dense = lambda x: Elsewhere(x) if x.layout is torch.strided else x  # noqa: E731
    return pytree.tree_map_only(Tensor, dense, out)


def refuse_mixed(op: Any, leaves: list[Any]) -> None:
    """Raise where tensors of both devices meet; numbers and places may lie on the host."""
    tensors = [x for x in leaves if isinstance(x, Tensor) and x.ndim and x.layout is torch.strided]
    if op.overloadpacket in INDEXED:
        tensors = tensors[:1] + [x for x in tensors[1:] if isinstance(x, Elsewhere) or x.is_floating_point()]
    if len({isinstance(x, Elsewhere) for x in tensors}) > 1:
        what = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device: {op} of {what}")


def gru_cell(x: Tensor, h: Tensor, hx: Tensor, bias_x: Tensor | None = None, bias_h: Tensor | None = None) -> Any:
    """What torch has for cells of other devices than its own, forward.."""
    if bias_x is not None and bias_h is not None:
        x, h = x + bias_x, h + bias_h
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), h.chunk(3, 1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    n = (xn + r * hn).tanh()
    return n + z * (hx - n), torch.cat([r, z, n, hx, hn], 1)


def gru_cell_backward(grad: Tensor, workspace: Tensor, has_bias: bool) -> Any:
    """.. and backward."""
    r, z, n, hx, hn = workspace.chunk(5, 1)
    dz, dn = (hx - n) * grad * z * (1 - z), (1 - z) * grad * (1 - n * n)
    dr = dn * hn * r * (1 - r)
    gx, gh = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    return gx, gh, grad * z, *((gx.sum(0), gh.sum(0)) if has_bias else (None, None))


FUSED: dict[Any, Callable[..., Any]] = {
    aten._thnn_fused_gru_cell.default: gru_cell,
    aten._thnn_fused_gru_cell_backward.default: gru_cell_backward,
}


def batch_second(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A GRU's forward, for which the axes are put in order out of place: wrappers keep their shapes."""

    def turned(self: torch.nn.GRU, x: Tensor, h: Tensor | None = None) -> Any:
        if not self.batch_first:
            return forward(self, x, h)
        self.batch_first = False
        try:
            y, last = forward(self, x.transpose(0, 1), h)
        finally:
            self.batch_first = True
        return y.transpose(0, 1), last

    return turned


_Generator = torch.Generator
_made: "weakref.WeakSet[Any]" = weakref.WeakSet()


class _There(_Generator):
    device = property(lambda self: DEVICE)  # pyrefly: ignore


class _Generators(type):
    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, _Generator)


class Generator(metaclass=_Generators):
    """In torch.Generator's place."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type != NAME:
            return _Generator(device)
        _made.add(made := _There("cpu"))
        return made


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


class _Draws(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        if generator is not None and isinstance(out, Tensor) and (generator in _made) != (out.device.type == NAME):
            raise RuntimeError(f"Expected a generator of {out.device}: {function}")
        return out


class ElsewhereAccelerator(Accelerator):
    """For Lightning's trainer: `accelerator="elsewhere"`."""

    def setup_device(self, device: torch.device) -> None:
        assert device.type == NAME

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return [0]

    @staticmethod
    def get_parallel_devices(devices: Any) -> Any:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    return Elsewhere(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Any, into: Any, non_blocking: bool = False) -> Any:
    inner = into.inner if isinstance(into, Elsewhere) else into
    inner.copy_(source.inner if isinstance(source, Elsewhere) else source)
    return into


class _Module(_DummyBackendModule):
    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None: ...


# Made known to torch for good, before any backward pass: its engine counts devices at the first one.
# What `torch.tensor` makes there comes by the device's kernels, past every mode.
_setup_privateuseone_for_python_backend(NAME, _Module())
DEVICE = torch.device(NAME, 0)
AcceleratorRegistry.register(NAME, ElsewhereAccelerator)
_library = torch.library.Library("aten", "IMPL")
_library.impl("empty.memory_format", _empty, "PrivateUse1")
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Within it the device is there, and trainers on a single device use it."""
    reads.clear()
    start = SingleDeviceStrategy.__init__
    moved = lambda self, device=None, *args, **kwargs: start(self, DEVICE, *args, **kwargs)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch, _Factories(), _Draws():
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch.nn.GRU, "forward", batch_second(torch.nn.GRU.forward))
        patch.setattr(SingleDeviceStrategy, "__init__", moved)
        yield DEVICE


def plain(x: Tensor) -> Tensor:
    return x.detach().inner if isinstance(x, Elsewhere) else x.detach()


def agree(make: Callable[[torch.device], tuple[Any, ...]]) -> None:
    """What is made of a device are the same numbers on the host and elsewhere."""
    right = make(torch.device("cpu"))
    with elsewhere() as device:
        found = make(device)
    assert any(isinstance(x, Elsewhere) for x in found)
    for x, y in zip(found, right, strict=True):
        assert torch.allclose(plain(x), plain(y), rtol=1e-9, atol=1e-12)


def states(device: torch.device, *shape: int) -> Tensor:
    y = torch.linspace(0.5, 1.5, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    return y.to(device).requires_grad_()


def differentiated(out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return out, *torch.autograd.grad(out.square().sum(), inputs)
