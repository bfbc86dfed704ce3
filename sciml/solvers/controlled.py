"""Stochastic equations under a control, and the divergence of their law from that without one."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from sciml.solvers.expect import expect
from sciml.solvers.term import Diffusive
from sciml.typing import Args, Number


class Controlled(Diffusive):
    r"""dy = (f + g u) dt + g dW with a control u(t, y), beside a `Diffusive` term's dy = f dt + g dW.

    The state has one number more for each sample, :math:`\int |u|^2 / 2\,dt` so far. By Girsanov's theorem its mean at
    the end is the Kullback-Leibler divergence of the law of the controlled paths from that of the term's own, both from
    the same start. With a posterior as the controlled law, data D and states that start from the prior,

    .. math:: \log p(D) \ge E[\log p(D \mid y) - \int |u|^2 / 2\,dt],

    and what a start of its own diverges from the prior's is to be taken off too. On a grid the bound is one on the
    evidence of the discrete model where a stepper holds the control over a step, as `EulerMaruyama` and
    `FractionalHeun` do. What a drift cannot do within a step, make the noise narrower, is lost, in proportion to the
    step. One that `narrows` may do so, under `FractionalHeun` only: a pair (u, c) with :math:`c \ge 0` of u's shape
    weighs W's increment over a step by :math:`e^{u \Delta W - c \Delta W^2 / 2}`, which makes of its variance h
    :math:`s^2 h`, :math:`s^2 = 1 / (1 + c h)`, and gives it the mean :math:`s^2 u h`; this diverges by
    :math:`(s^2 - 1 - \log s^2 + (s^2 u)^2 h) / 2`. For linear equations and Gaussian observations the bound then
    reaches the evidence of the discrete model, whatever the step.

    Args:
        term: the uncontrolled equation, on states (b, \*shape).
        control: u, a callable (t, y, args) with values of W's shape (b, \*noise); t is 0-d with joint lanes and
            (b, 1, .., 1) where each sample steps by itself.
        shape: of a sample of the term's state; None takes states (b, n) of whatever n.
        noise: of a sample of W; None takes that of a `Fractional` term, the shape of diagonal and (1) of scalar noise.
        narrows: whether the control's values are pairs (u, c).

    References:
        X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, Scalable gradients for stochastic differential equations
        (2020), arXiv:2001.01328, section 5; for fractional noise Daems et al. (ICLR 2024), arXiv:2310.12975.

    Example:
        >>> import torch
        >>> from sciml import Solver, solve
        >>> from sciml.solvers import Brownian, Controlled, Diffusive, EulerMaruyama, Grid
        >>> class Wiener(Diffusive):
        ...     noise_type = "diagonal"
        ...     def drift(self, t, y, args):
        ...         return 0 * y
        ...     def diffuse(self, t, y, dw, args):
        ...         return dw
        >>> term = Controlled(Wiener(), lambda t, y, args: torch.full_like(y, 2.0))
        >>> y0 = term.start(torch.zeros(100, 3))
        >>> solution = solve(term, y0, 0.0, 1.0, Solver(EulerMaruyama(), Grid(n=10)), path=Brownian((100, 3)))
        >>> y, divergence = term.split(solution.ys)
        >>> y.shape, round(divergence.mean().item(), 3)
        (torch.Size([100, 3]), 6.0)
    """

    def __init__(
        self,
        term: Diffusive,
        control: Callable[..., Tensor | tuple[Tensor, Tensor]],
        shape: Sequence[int] | None = None,
        noise: Sequence[int] | None = None,
        narrows: bool = False,
    ):
        expect("term", term, Diffusive, "a Diffusive term")
        if not callable(control):
            raise TypeError(f"control: expected a callable (t, y, args), got {type(control).__name__}")
        self.term, self.control, self.narrows = term, control, narrows
        self.shape = None if shape is None else tuple(shape)
        self.noise_shape = shape_of_noise(term, self.shape, noise)
        self.calculus = term.calculus
        self.noise_type = "general" if term.noise_type == "diagonal" else term.noise_type

    def start(self, y: Tensor) -> Tensor:
        """The state (b, n + 1) at the term's state y (b, ...), with nothing diverged yet."""
        y = flat(y)
        return torch.cat([y, torch.zeros(len(y), 1, dtype=y.dtype, device=y.device)], 1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The term's states (..., *shape) and the divergences (...) of states (..., n + 1)."""
        y = state[..., :-1]
        return y if self.shape is None else y.reshape(*y.shape[:-1], *self.shape), state[..., -1]

    def controls(self, t: Tensor, y: Tensor, args: Args) -> tuple[Tensor, Tensor | None]:
        """The control u and, if it narrows, c at the term's state; refused where they lack the shape of the noise."""
        found = self.control(t, y, args)
        if self.narrows != isinstance(found, tuple):
            expected = "a pair (u, c)" if self.narrows else "a tensor"
            raise TypeError(f"control: expected {expected} with narrows={self.narrows}, got {type(found).__name__}")
        u, c = found if isinstance(found, tuple) else (found, None)
        expected = (len(y), *(y.shape[1:] if self.noise_shape is None else self.noise_shape))
        for value in (u, u if c is None else c):
            if tuple(value.shape) != expected:
                raise ValueError(f"control: expected values of the noise's shape {expected}, got {tuple(value.shape)}")
        return u, c

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The controlled drift f + g u, and the rate |u|^2 / 2."""
        y, _ = self.split(y)
        t = time_for(t, y)
        u, _ = self.controls(t, y, args)
        dy = self.term.drift(t, y, args) + self.term.diffuse(t, y, u, args)
        return torch.cat([flat(dy), rate(u)], 1)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """G dw, which leaves the divergence alone.

        Raises:
            ValueError: of a control that narrows; `FractionalHeun` does not ask for it.
        """
        if self.narrows:
            raise ValueError("narrows: expected False but for FractionalHeun and a Fractional term, got True")
        y, _ = self.split(y)
        rise = flat(self.term.diffuse(time_for(t, y), y, dw, args))
        return torch.cat([rise, torch.zeros_like(rise[:, :1])], 1)


def rate(u: Tensor) -> Tensor:
    """|u|^2 / 2 of each sample, (b, 1)."""
    return 0.5 * flat(u).square().sum(1, keepdim=True)


def narrowed(c: Tensor, h: Number) -> tuple[Tensor, Tensor]:
    """The factor s^2 of a step's variance under c, and by how much each sample diverges so, (b, 1)."""
    excess = c * h
    lost = torch.log1p(excess) - excess / (1 + excess)
    return 1 / (1 + excess), 0.5 * flat(lost).sum(1, keepdim=True)


def flat(y: Tensor) -> Tensor:
    """States (b, ...) as (b, n)."""
    return y.flatten(1) if y.ndim > 1 else y[:, None]


def time_for(t: Tensor, y: Tensor) -> Tensor:
    """A time of flat states, 0-d or (b, 1), shaped as a term on states y (b, ...) sees it."""
    return t.reshape(t.shape[:1] + (1,) * (y.ndim - 1)) if t.ndim else t


def shape_of_noise(
    term: Diffusive, shape: tuple[int, ...] | None, noise: Sequence[int] | None
) -> tuple[int, ...] | None:
    """The shape of a sample of W; None for one of the state's shape, whatever that is."""
    if noise is not None:
        if term.noise_type == "scalar" and prod(noise) != 1:
            raise ValueError(f"noise: scalar noise is one number for each sample, got {tuple(noise)}")
        return tuple(noise)
    own = getattr(term, "noise_shape", None)
    if own is not None:
        return own
    if term.noise_type == "scalar":
        return (1,)
    if term.noise_type == "diagonal":
        return shape
    raise ValueError(f"noise: expected the shape of a sample of W for {term.noise_type} noise, got None")
