"""What the method names of torchsde mean in the core."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sciml.solvers.log_ode import LogODE
from sciml.solvers.srk import SRK
from sciml.solvers.stepper import Field, Interval
from sciml.solvers.stochastic import EulerHeun, EulerMaruyama, Stochastic, StratonovichHeun, Unjudged, with_root
from sciml.solvers.stratonovich import StratonovichMidpoint, StratonovichReversibleHeun
from sciml.typing import Calculus, NoiseType, Number

LEVY = ("space-time", "davie", "foster")


@dataclass(frozen=True)
class _Milstein(Unjudged):
    """torchsde's Milstein methods, with the derivative of g, or with a difference instead (``grad_free``)."""

    grad_free: bool = False

    evaluations: ClassVar[int] = 1
    noise_types: ClassVar[tuple[NoiseType, ...]] = ("diagonal", "additive", "scalar")

    def end(self, field: Field, interval: Interval, y: Tensor, dw: Tensor) -> Tensor:
        """The state at the end of the step."""
        t, h, term = field.clock(interval.t, y), interval.scale, field.term
        rise = h * field.fitting(field(t, y), y)
        if term.noise_type == "additive":
            return y + (rise + field.diffused(t, y, dw))
        v = dw * dw - h if self.calculus == "ito" else dw * dw
        if not self.grad_free:
            return y + (rise + field.diffused(t, y, dw) + term.turned(t, y, 0.5 * v, field.args))
        g = term.diffusion(t, y, field.args)
        _, root = with_root(h, dw)
        support = y + term.product(g, torch.ones_like(dw) * root)
        support = support + rise if self.calculus == "ito" else support
        turn = term.product(term.diffusion(t, support, field.args) - g, v) / (2 * root)
        return y + (rise + term.product(g, dw) + turn)


@dataclass(frozen=True)
class MilsteinIto(_Milstein):
    """Of Ito equations; without derivatives the difference is taken from Euler's step on."""

    calculus: ClassVar[Calculus] = "ito"


@dataclass(frozen=True)
class MilsteinStratonovich(_Milstein):
    """Of Stratonovich equations; without derivatives of strong order 1/2 only, see `StratonovichMilstein`."""

    calculus: ClassVar[Calculus] = "stratonovich"


class Continued(StratonovichReversibleHeun):
    """The reversible Heun method that goes on from where it was left."""

    def __init__(self, carry: tuple[Tensor, ...]):
        object.__setattr__(self, "carry", carry)

    def init(self, field: Field, t: Number, y: Tensor, h: Number | None) -> tuple[Tensor, ...]:
        """What is given."""
        return self.carry  # pyrefly: ignore[missing-attribute]


class Method(NamedTuple):
    """A method of torchsde's.

    Attributes:
        kinds: the steppers of the calculi that it knows.
        reads: what it calls of an equation, of additive noise and of other noise.
        levy: the approximations of Levy area that the motion may have.
        pairs: whether drift and diffusion are wanted at the same places.
    """

    kinds: dict[Calculus, type[Stochastic]]
    reads: tuple[tuple[str, ...], tuple[str, ...]]
    levy: tuple[str, ...] = ("none", *LEVY)
    pairs: bool = True


_PRODUCTS = (("f_and_g_prod",), ("f_and_g_prod",))
METHODS: dict[str, Method] = {
    "euler": Method({"ito": EulerMaruyama}, _PRODUCTS),
    "milstein": Method(
        {"ito": MilsteinIto, "stratonovich": MilsteinStratonovich}, (("f", "g_prod"), ("f", "g")), pairs=False
    ),
    "srk": Method({"ito": SRK}, (("f", "g_prod"), ("f", "g", "g_prod")), LEVY, pairs=False),
    "midpoint": Method({"stratonovich": StratonovichMidpoint}, _PRODUCTS),
    "reversible_heun": Method({"stratonovich": StratonovichReversibleHeun}, (("f_and_g",), ("f_and_g",))),
    "adjoint_reversible_heun": Method({"stratonovich": StratonovichReversibleHeun}, ((), ())),
    "heun": Method({"stratonovich": StratonovichHeun}, _PRODUCTS),
    "log_ode": Method({"stratonovich": LogODE}, _PRODUCTS, LEVY[1:]),
    "euler_heun": Method({"stratonovich": EulerHeun}, (("f_and_g_prod", "g_prod"),) * 2),
}


def chosen(method: str | None, sde: Any) -> str:
    """The name of a method, torchsde's default where it is None.

    Raises:
        ValueError: there is no such method.
    """
    if method is None:
        if sde.sde_type == "stratonovich":
            return "midpoint"
        return "euler" if sde.noise_type == "general" else "srk"
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(sorted(METHODS))}, got {method!r}")
    return method


def stepper(name: str, sde: Any, bm: Any, options: dict[str, Any] | None, extra: Any) -> Stochastic:
    """The stepper of a method for an equation and a motion.

    Raises:
        ValueError: they do not fit together.
        RuntimeError: the equation lacks what the method calls.
    """
    kinds, reads, levy, _ = METHODS[name]
    if name == "adjoint_reversible_heun":
        raise ValueError("method: adjoint_reversible_heun is an adjoint_method only; expected reversible_heun")
    if sde.sde_type not in kinds:
        raise ValueError(f"method: {name} expects an equation of type {' or '.join(kinds)}, found {sde.sde_type}")
    kind = kinds[sde.sde_type]
    if sde.noise_type not in kind.noise_types:
        raise ValueError(f"method: {name} expects {', '.join(kind.noise_types)} noise, found {sde.noise_type}")
    if bm is not None and bm.levy_area_approximation not in levy:
        raise ValueError(
            f"bm: {name} expects a motion of levy_area_approximation {', '.join(levy)}, "
            f"found {bm.levy_area_approximation}"
        )
    wanted = reads[sde.noise_type != "additive"]
    if name == "log_ode" and sde.noise_type == "general":
        wanted = (*wanted, "g")
    for call in wanted:
        if not _callable(sde, call):
            raise RuntimeError(f"sde: {name} calls {call}, which the equation does not give")
    if issubclass(kind, _Milstein):
        return kind(bool((options or {}).get("grad_free", False)))
    return Continued(tuple(extra)) if name == "reversible_heun" and extra is not None else kind()


def check_adjoint(name: str, method: str, sde: Any, bm: Any, options: dict[str, Any] | None) -> None:
    """Refuse an adjoint method that torchsde refuses, although another gradient is taken here.

    Raises:
        ValueError: it cannot integrate the adjoint equation.
        NotImplementedError: likewise, of Milstein's methods.
        RuntimeError: likewise, of reversible methods.
    """
    if name not in METHODS:
        raise ValueError(f"adjoint_method: expected one of {', '.join(sorted(METHODS))}, got {name!r}")
    noise = "general" if sde.noise_type == "additive" else sde.noise_type
    kinds, _, levy, _ = METHODS[name]
    if name in ("srk", "log_ode") or sde.sde_type not in kinds or noise not in kinds[sde.sde_type].noise_types:
        raise ValueError(f"adjoint_method: {name} cannot integrate an adjoint of {sde.sde_type} and {noise} noise")
    if bm is not None and bm.levy_area_approximation not in levy:
        raise ValueError(f"bm: {name} expects a motion of levy_area_approximation {', '.join(levy)}")
    if name == "milstein":
        if (options or {}).get("grad_free"):
            raise ValueError("adjoint_options: expected grad_free=False for an adjoint, got True")
        if noise == "scalar":
            raise NotImplementedError("adjoint_method: milstein knows no adjoint of scalar noise")
    if name == "reversible_heun" or (name == "adjoint_reversible_heun" and method != "reversible_heun"):
        expected = "adjoint_reversible_heun with method='reversible_heun'"
        raise RuntimeError(f"adjoint_method: expected {expected}, got {name} with {method}")


def _callable(sde: Any, name: str) -> bool:
    """Whether an equation's method is given or follows from others as in torchsde."""
    has = lambda *names: all(hasattr(sde, each) for each in names)  # noqa: E731
    ways = {
        "g_prod": has("g"),
        "f_and_g": has("f", "g"),
        "f_and_g_prod": has("f", "g_prod") or has("f_and_g") or has("f", "g"),
    }
    return has(name) or ways.get(name, False)
