"""Stochastic equations whose diffusion is at hand as a tensor, not only as its product with an increment."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from sciml.solvers.stepper import Field
from sciml.solvers.term import Diffusive
from sciml.solvers.undeclared import graph_leaves
from sciml.typing import Args


class MatrixDiffusive(Diffusive):
    """dy = f(t, y) dt + g(t, y) dW with g itself, so that what needs it twice evaluates it once.

    Of diagonal noise g has y's shape, like W; of other noise it is (*y.shape, m) with W (b, m).

    Example:
        >>> import torch
        >>> from sciml import Solver, solve
        >>> from sciml.solvers import Brownian, EulerMaruyama, Grid, MatrixDiffusive
        >>> class Mixed(MatrixDiffusive):
        ...     noise_type = "general"
        ...     def drift(self, t, y, args):
        ...         return -y
        ...     def diffusion(self, t, y, args):
        ...         return y[..., None] * args[0]
        >>> mix, solver = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]), Solver(EulerMaruyama(), Grid(n=100))
        >>> solve(Mixed(), torch.ones(7, 2), 0.0, 1.0, solver, args=(mix,), path=Brownian((7, 3))).ys.shape
        torch.Size([7, 2])
    """

    @abstractmethod
    def diffusion(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """g(t, y); arguments as those of `drift`."""

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The product g(t, y) dw."""
        return self.product(self.diffusion(t, y, args), dw)

    def product(self, g: Tensor, dw: Tensor) -> Tensor:
        """The product of a diffusion and an increment."""
        return g * dw if self.noise_type == "diagonal" else applied(g, dw)

    def along(self, t: Tensor, y: Tensor, ways: Callable[[Tensor], Tensor], args: Args) -> Tensor:
        """The derivatives of the columns of g, each along a direction of its own, added up (b, d).

        Of diagonal noise these are entries: dg_i/dy_i times the direction's entry i.

        Args:
            t: time.
            y: state (b, d).
            ways: makes directions, of g's shape, of g.
            args: as for `drift`.
        """
        with torch.enable_grad():
            at = y if y.requires_grad else y.detach().requires_grad_()
            g = self.diffusion(t, at, args)
            way = ways(g)
            found = _entries(g, at, way) if self.noise_type == "diagonal" else _columns(g, at, way)
        return settled(found, y, at, g)


def _entries(g: Tensor, y: Tensor, way: Tensor) -> Tensor | None:
    return torch.autograd.grad(g, y, way, create_graph=True, allow_unused=True)[0] if g.requires_grad else None


def _columns(g: Tensor, y: Tensor, way: Tensor) -> Tensor | None:
    if not g.requires_grad:
        return None
    probe = torch.zeros_like(g, requires_grad=True)  # the transposed product is linear in it
    (pulled,) = torch.autograd.grad(g, y, probe, create_graph=True, allow_unused=True)
    if pulled is None or not pulled.requires_grad:
        return None
    several = (torch.autograd.grad(pulled, probe, w, create_graph=True, allow_unused=True)[0] for w in way.unbind(-1))
    columns = [column[..., k] for k, column in enumerate(several) if column is not None]
    return torch.stack(columns).sum(0) if columns else None


def settled(found: Tensor | None, y: Tensor, at: Tensor, g: Tensor) -> Tensor:
    """A derivative of g at the state y, with a graph only where gradients are wanted; None is 0.

    Args:
        found: the derivative.
        y: the state.
        at: the same, but a leaf where y needs no gradient.
        g: what was differentiated.
    """
    if found is None:
        return torch.zeros_like(y)
    wanted = torch.is_grad_enabled() and (at is y or any(leaf is not at for leaf in graph_leaves([g])))
    return found if wanted else found.detach()


def applied(g: Tensor, dw: Tensor) -> Tensor:
    """The product of matrices (b, .., m) and vectors (b, m)."""
    return (g.flatten(dw.ndim - 1, -2) @ dw[..., None]).reshape(g.shape[:-1])


def column(field: Field, t: Tensor, y: Tensor) -> Tensor:
    """The diffusion of y's shape, of diagonal or scalar noise."""
    term = field.term
    if term.noise_type == "diagonal":
        if isinstance(term, MatrixDiffusive):
            return term.diffusion(t, y, field.args)
        return field.diffused(t, y, torch.ones_like(y))
    if isinstance(term, MatrixDiffusive):
        return term.diffusion(t, y, field.args)[..., 0]
    return field.diffused(t, y, y.new_ones(y.shape[:1] + (1,) * (y.ndim - 1)))


def along(dw: Tensor, y: Tensor) -> Tensor:
    """An increment of diagonal or scalar noise, so that it multiplies a `column`."""
    return dw if dw.ndim == y.ndim else dw.reshape(dw.shape[:1] + (1,) * (y.ndim - 1))
