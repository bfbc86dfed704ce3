"""torchsde's equations as terms of the core."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.diffusion import MatrixDiffusive, settled
from sciml.solvers.interop.problem import limited
from sciml.solvers.interop.snap import Snap
from sciml.typing import Args

NOISE_TYPES = ("additive", "diagonal", "general", "scalar")
SDE_TYPES = ("ito", "stratonovich")
# torchsde's keywords for other names of an equation's methods, and the methods. The first five can be renamed.
NAMES = {
    "drift": "f",
    "diffusion": "g",
    "prior_drift": "h",
    "drift_and_diffusion": "f_and_g",
    "drift_and_diffusion_prod": "f_and_g_prod",
}
SMALL = 1e-7  # of a diffusion that the log ratio divides by


def renamed(sde: Any, names: Mapping[str, str] | None) -> Any:
    """The equation with its methods under torchsde's own names."""
    found = {key: names[key] for key in NAMES if key in names} if names else {}
    if not found:
        return sde
    other = SimpleNamespace(noise_type=sde.noise_type, sde_type=sde.sde_type)
    places = {method: found.get(key, method) for key, method in NAMES.items()} | {"g_prod": "g_prod"}
    for method, place in places.items():
        if hasattr(sde, place):
            setattr(other, method, getattr(sde, place))
    return other


def check_types(sde: Any) -> None:
    """Refuse an equation that does not say what it is.

    Raises:
        ValueError: its noise type or its calculus is missing or unknown.
    """
    for name, known in (("noise_type", NOISE_TYPES), ("sde_type", SDE_TYPES)):
        if not hasattr(sde, name):
            raise ValueError(f"sde: expected an attribute {name}, one of {', '.join(known)}; got none")
        if getattr(sde, name) not in known:
            raise ValueError(f"sde: expected {name} to be one of {', '.join(known)}, got {getattr(sde, name)!r}")


class WithRatio:
    """An equation and, as one channel more, the logarithm of its density over that of the prior with the drift h.

    Its slope is |u|^2 / 2, where g u = f - h.

    Raises:
        AttributeError: f, g or h is missing.
    """

    def __init__(self, sde: Any):
        self.noise_type, self.sde_type = sde.noise_type, sde.sde_type
        missing = [name for name in ("f", "g", "h") if not hasattr(sde, name)]
        if missing:
            raise AttributeError(f"sde: expected f, g and h with logqp=True; {', '.join(missing)} missing")
        self.drift, self.diffusion, self.prior = sde.f, sde.g, sde.h

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Both drifts."""
        return self.f_and_g(t, y)[0]

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """The diffusion, and none of the ratio."""
        return self._wide(self.diffusion(t, y[:, :-1]))

    def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both, the diffusion evaluated once."""
        y = y[:, :-1]
        f, g, h = self.drift(t, y), self.diffusion(t, y), self.prior(t, y)
        if self.noise_type == "diagonal":
            u = (f - h) / torch.where(g.abs().detach() > SMALL, g, SMALL * g.detach().sign())
        else:
            u = (g.pinverse() @ (f - h)[..., None])[..., 0]
        return torch.cat([f, 0.5 * u.square().sum(1, keepdim=True)], 1), self._wide(g)

    def _wide(self, g: Tensor) -> Tensor:
        return torch.cat([g, g.new_zeros(g.shape[0], 1, *g.shape[2:])], 1)


class Sizes(NamedTuple):
    """Of an equation's parts."""

    batch: int
    noise: int


def sizes(sde: Any, y0: Tensor, t0: Tensor, bm: Any) -> Sizes:
    """What an equation's methods give at the start, checked.

    Raises:
        ValueError: shapes do not fit, or a method is missing.
    """
    batches, states, noises = [y0.shape[0]], [y0.shape[1]], []
    if bm is not None:
        if len(bm.shape) != 2:
            raise ValueError(f"bm: expected a motion of shape (batch, noise channels), got {tuple(bm.shape)}")
        batches.append(bm.shape[0])
        noises.append(bm.shape[1])

    def vector(name: str, value: Tensor) -> None:
        if value.ndim != 2:
            raise ValueError(f"{name}: expected shape (batch, state channels), got {tuple(value.shape)}")
        batches.append(value.shape[0])
        states.append(value.shape[1])

    def matrix(name: str, value: Tensor) -> None:
        if sde.noise_type == "diagonal":
            vector(name, value)
        elif value.ndim != 3:
            expected = "(batch, state channels, noise channels)"
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(value.shape)}")
        else:
            batches.append(value.shape[0])
            states.append(value.shape[1])
        noises.append(value.shape[-1])

    def some(name: str) -> Tensor:
        if not noises:
            raise ValueError(f"bm: expected it with {name} alone, which does not tell the number of noise channels")
        return torch.zeros(batches[0], noises[0], dtype=y0.dtype, device=y0.device)

    with torch.no_grad():
        if hasattr(sde, "f"):
            vector("f", sde.f(t0, y0))
        if hasattr(sde, "g"):
            matrix("g", sde.g(t0, y0))
        if hasattr(sde, "f_and_g"):
            f, g = sde.f_and_g(t0, y0)
            vector("f_and_g", f)
            matrix("f_and_g", g)
        if hasattr(sde, "g_prod"):
            vector("g_prod", sde.g_prod(t0, y0, some("g_prod")))
        if hasattr(sde, "f_and_g_prod"):
            for part in sde.f_and_g_prod(t0, y0, some("f_and_g_prod")):
                vector("f_and_g_prod", part)
    for what, ways in (
        ("drift", ("f", "f_and_g", "f_and_g_prod")),
        ("diffusion", ("g", "f_and_g", "g_prod", "f_and_g_prod")),
    ):
        if not any(hasattr(sde, way) for way in ways):
            raise ValueError(f"sde: expected a {what}, as one of the methods {', '.join(ways)}; got none")
    for what, found in (("batch", batches), ("state", states), ("noise", noises)):
        if len(set(found)) > 1:
            raise ValueError(f"sde: expected one {what} size of y0, bm and the equation's methods, got {found}")
    if sde.noise_type == "scalar" and noises[0] != 1:
        raise ValueError(f"sde: scalar noise has one channel, got {noises[0]}")
    return Sizes(batches[0], noises[0])


class Equation(MatrixDiffusive):
    """An equation of torchsde's as a term.

    Args:
        sde: the equation.
        noise: number of noise channels.
        pairs: whether f and g are wanted at the same places, so that one call of ``f_and_g`` serves both.
        nodes: times that it sees exactly.
        params: the only tensors that get gradients, which the solve takes as ``args`` too; None: all that are read.
        declared: parameters that a solve finds, where they are all that is read.
    """

    def __init__(
        self,
        sde: Any,
        noise: int,
        pairs: bool,
        nodes: list[float],
        params: tuple[Tensor, ...] | None,
        declared: tuple[Tensor, ...] = (),
    ):
        self.noise, self.noise_type, self.calculus = noise, sde.noise_type, sde.sde_type
        self.method: Callable[[str], Any] = lambda name: getattr(
            sde, name, None
        )  # its parameters are not declared by being found
        self.params, self.snapped = params, Snap(nodes)
        self.pairs = self.method("f_and_g") is not None and (pairs or self.method("f") is None)
        self.last: Any = None  # the place of the last pair, and its diffusion
        for k, parameter in enumerate(declared):
            setattr(self, f"parameter{k}", parameter)
        self.free = self if params is None else Equation(sde, noise, pairs, nodes, None)

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The drift; where pairs are wanted the diffusion is kept for the next question."""
        if self.pairs:
            f, g = self._only(self.method("f_and_g"), t, y, args)
            self.last = (t, y, torch.is_grad_enabled(), g)
            return f
        f = self.method("f")
        if f is None:
            both, none = self.method("f_and_g_prod"), y.new_zeros(y.shape[0], self.noise)
            f = lambda t, y: both(t, y, none)[0]  # noqa: E731
        return self._only(f, t, y, args)

    def diffusion(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The diffusion."""
        if self.last is not None:
            at, state, graph, g = self.last
            if at is t and state is y and graph == torch.is_grad_enabled():
                return g
        g = self.method("g")
        if g is None:
            both = self.method("f_and_g")
            g = lambda t, y: both(t, y)[1]  # noqa: E731
        return self._only(g, t, y, args)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The product of diffusion and increment, the equation's own where it has one."""
        product, both = self.method("g_prod"), self.method("f_and_g_prod")
        if product is not None:
            return self._only(lambda t, y: product(t, y, dw), t, y, args)
        if both is not None and self.method("g") is None and self.method("f_and_g") is None:
            return self._only(lambda t, y: both(t, y, dw)[1], t, y, args)
        return super().diffuse(t, y, dw, args)

    def along(self, t: Tensor, y: Tensor, ways: Callable[[Tensor], Tensor], args: Args) -> Tensor:
        """As of any term, differentiated once more in one piece."""
        if self.free is self:
            return super().along(t, y, ways, args)
        return limited(lambda t, y: self.free.along(t, y, ways, args), self.params, t, y, args)

    def turned(self, t: Tensor, y: Tensor, v: Tensor, args: Args) -> Tensor:
        """sum_il g_il v_l dg_il/dy_j: what torchsde's Milstein methods take for sum_il (dg_jl/dy_i) g_il v_l.

        They are the same where entry i of g depends on y_i alone.
        """

        def pulled(t: Tensor, y: Tensor) -> Tensor:
            with torch.enable_grad():
                at = y if y.requires_grad else y.detach().requires_grad_()
                g = self.method("g")(t, at)
                way = g * (v if self.noise_type == "diagonal" else v[:, None])
                found = None
                if g.requires_grad:
                    (found,) = torch.autograd.grad(g, at, way, create_graph=True, allow_unused=True)
            return settled(found, y, at, g)

        return self._only(pulled, t, y, args)

    def _only(self, function: Any, t: Tensor, y: Tensor, args: Args) -> Any:
        return limited(function, self.params, self.snapped(t), y, args)
