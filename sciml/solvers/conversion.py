"""The same stochastic equation in the other calculus."""

import torch
from torch import Tensor

from sciml.solvers.diffusion import MatrixDiffusive
from sciml.solvers.expect import expect
from sciml.solvers.term import Diffusive
from sciml.typing import Args, Calculus


class Converted(MatrixDiffusive):
    r"""The same process as that of a term, meant in another calculus: its drift is corrected, its diffusion is kept.

    The Stratonovich drift is the Ito drift less :math:`c / 2`, where :math:`c_i = \sum_{jl} g_{jl} dg_{il} / dy_j`, of
    diagonal noise :math:`g_i dg_i / dy_i`; it is computed by autograd, with one evaluation of g per drift and as many
    derivatives as there are columns. Of additive noise it is zero.

    Args:
        term: the equation.
        to: ``"ito"`` or ``"stratonovich"``; its own calculus leaves it as it is.
        channels: numbers of the path for each sample, needed of general noise where the term is no `MatrixDiffusive`.

    Example:
        >>> import torch
        >>> from sciml.solvers import Converted, Diffusive
        >>> class Growth(Diffusive):
        ...     noise_type = "diagonal"
        ...     def drift(self, t, y, args):
        ...         return 0.1 * y
        ...     def diffuse(self, t, y, dw, args):
        ...         return 0.5 * y * dw
        >>> Converted(Growth(), "stratonovich").drift(torch.tensor(0.0), torch.ones(2), ())
        tensor([-0.0250, -0.0250])
    """

    def __init__(self, term: Diffusive, to: Calculus, channels: int | None = None):
        expect("term", term, Diffusive, "a Diffusive term")
        if to not in ("ito", "stratonovich"):
            raise ValueError(f"to: expected 'ito' or 'stratonovich', got {to!r}")
        turns = to != term.calculus and term.noise_type == "general"
        if turns and channels is None and not isinstance(term, MatrixDiffusive):
            raise ValueError("channels: expected the number of columns of a general diffusion, got None")
        self.term, self.channels = term, channels
        self.noise_type, self.calculus = term.noise_type, to

    def drift(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The corrected drift."""
        f = self.term.drift(t, y, args)
        if self.calculus == self.term.calculus or self.noise_type == "additive":
            return f
        turn = self.along(t, y, lambda g: g, args)
        return torch.add(f, turn, alpha=0.5 if self.calculus == "ito" else -0.5)

    def diffuse(self, t: Tensor, y: Tensor, dw: Tensor, args: Args) -> Tensor:
        """The term's own product."""
        return self.term.diffuse(t, y, dw, args)

    def diffusion(self, t: Tensor, y: Tensor, args: Args) -> Tensor:
        """The term's diffusion, where it is not at hand from products with unit vectors."""
        if isinstance(self.term, MatrixDiffusive):
            return self.term.diffusion(t, y, args)
        if self.noise_type == "diagonal":
            return self.term.diffuse(t, y, torch.ones_like(y), args)
        if self.noise_type == "scalar":
            return self.term.diffuse(t, y, y.new_ones(y.shape[:1] + (1,) * (y.ndim - 1)), args)[..., None]
        if self.channels is None:
            raise ValueError("channels: expected the number of columns of the diffusion, got None")
        units = torch.eye(self.channels, dtype=y.dtype, device=y.device)
        columns = [self.term.diffuse(t, y, unit.expand(len(y), -1), args) for unit in units]
        return torch.stack(columns, -1)
