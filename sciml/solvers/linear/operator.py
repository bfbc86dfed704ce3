"""Linear operators: m square matrices of n rows each, known by what they do to vectors (m, n)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sciml.solvers.linear.derivatives import transformed

FEW = 8  # columns up to which they are computed one by one


class LinearOperator(ABC):
    """A batch of square matrices.

    Attributes:
        shape: (m, n, n).
        dtype: of its entries.
        device: where they are.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device):
        self.shape, self.dtype, self.device = shape, dtype, device

    @abstractmethod
    def matvec(self, x: Tensor) -> Tensor:
        """The products (m, n) with vectors (m, n)."""

    @abstractmethod
    def transpose(self) -> "LinearOperator":
        """The transposed matrices."""

    def dense(self) -> Tensor:
        """The matrices themselves (m, n, n), from n products."""
        m, n, _ = self.shape
        units = torch.eye(n, dtype=self.dtype, device=self.device)
        if n <= FEW:
            return torch.stack([self.matvec(unit.expand(m, n)) for unit in units.unbind()], -1)
        return torch.func.vmap(self.matvec)(units[:, None].expand(n, m, n)).movedim(0, -1)

    def diagonal(self) -> Tensor:
        """The diagonals (m, n)."""
        return self.dense().diagonal(dim1=-2, dim2=-1)

    def filled(self) -> Tensor:
        """Which rows are not zero (m, n)."""
        return self.dense().any(-1)


class DenseOperator(LinearOperator):
    """Matrices that are stored.

    Args:
        matrix: (m, n, n), or (n, n) for m equal ones.
        m: their number.
    """

    def __init__(self, matrix: Tensor, m: int | None = None):
        m = m or (len(matrix) if matrix.ndim == 3 else 1)
        n = matrix.shape[-1]
        if matrix.ndim not in (2, 3) or matrix.shape not in ((n, n), (m, n, n)):
            raise ValueError(f"matrix: expected the shape (n, n) or ({m}, n, n), got {tuple(matrix.shape)}")
        super().__init__((m, n, n), matrix.dtype, matrix.device)
        self.matrix = matrix

    def matvec(self, x: Tensor) -> Tensor:
        """The products (m, n)."""
        return (self.matrix @ x.unsqueeze(-1)).squeeze(-1)

    def transpose(self) -> "DenseOperator":
        """The transposed matrices."""
        return DenseOperator(self.matrix.mT, self.shape[0])

    def dense(self) -> Tensor:
        """The matrices."""
        return self.matrix.expand(self.shape)


class JacobianOperator(LinearOperator):
    """The derivative of a function at a point, by products.

    Args:
        function: from states to states of the same shape; where m > 1 its samples do not couple.
        y: the point.
        m: number of independent systems along the first axis of y.
        transposed: whether it stands for the transposed matrices.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], y: Tensor, m: int = 1, transposed: bool = False):
        n = y.numel() // m
        super().__init__((m, n, n), y.dtype, y.device)
        self.function, self.y, self.transposed = function, y, transposed

    def matvec(self, x: Tensor) -> Tensor:
        """The products (m, n), one pass of forward or, transposed, of reverse differentiation each."""
        if len(x) != self.shape[0]:  # one matrix, many vectors
            return torch.cat([self.matvec(row[None]) for row in x]) if len(x) else x
        way = x.reshape(self.y.shape)
        if self.transposed:
            product = torch.func.vjp(self.function, self.y)[1](way)[0]
        else:
            # of plain memory: in a compiled loop forward differentiation refuses views, and strides that differ
            plain = (x.clone(memory_format=torch.contiguous_format) for x in (self.y, way))
            product = torch.func.jvp(self.function, (next(plain),), (next(plain),))[1]
        return product.reshape(self.shape[:2]).to(self.dtype)  # of 0-d states torch gives double tangents

    def transpose(self) -> "JacobianOperator":
        """The transposed matrices."""
        return JacobianOperator(self.function, self.y, self.shape[0], not self.transposed)

    def dense(self) -> Tensor:
        """The matrices (m, n, n), in an eager program by one batched reverse pass: a tenth of what n forward ones cost.

        A compiled program, inference mode, transforms of torch.func and functions that hide their graph or cannot batch
        their backward pass take the forward ones.
        """
        if self.transposed:
            return self.transpose().dense().mT
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or transformed():
            return super().dense()
        m, n, _ = self.shape
        recorded = torch.is_grad_enabled() and (self.y.requires_grad or self.function(self.y).requires_grad)
        with torch.enable_grad():
            y = self.y.view_as(self.y) if self.y.requires_grad else self.y.detach().requires_grad_()
            value = self.function(y)
            if not value.requires_grad:
                return super().dense()
            units = torch.eye(n, dtype=self.dtype, device=self.device)[:, None].expand(n, m, n)
            units = units.reshape(n, *value.shape)
            try:
                (rows,) = torch.autograd.grad(
                    value, y, units, create_graph=recorded, is_grads_batched=True, allow_unused=True
                )
            except RuntimeError:  # some backward pass cannot be batched
                return super().dense()
        if rows is None:  # no function of y
            return torch.zeros(m, n, n, dtype=self.dtype, device=self.device)
        return rows.reshape(n, m, n).movedim(0, 1)


class ShiftedOperator(LinearOperator):
    """M - shift J: the matrix of a Newton system. Where the shift is 0 it is the identity, which takes no step.

    Args:
        mass: M; None is the identity.
        jacobian: J.
        shift: a number, or a tensor that broadcasts against (m).
    """

    def __init__(self, mass: LinearOperator | None, jacobian: LinearOperator, shift: float | Tensor):
        super().__init__(jacobian.shape, jacobian.dtype, jacobian.device)
        self.mass, self.jacobian, self.shift = mass, jacobian, shift

    def matvec(self, x: Tensor) -> Tensor:
        """The products (m, n)."""
        product = self.jacobian.matvec(x)
        shift = self.shift if isinstance(self.shift, float) else self.shift.reshape(-1, 1)
        if self.mass is None:
            return x - shift * product
        shifted = self.mass.matvec(x) - shift * product
        return shifted if isinstance(shift, float) else torch.where(shift == 0, x, shifted)

    def transpose(self) -> "ShiftedOperator":
        """The transposed matrices."""
        mass = None if self.mass is None else self.mass.transpose()
        return ShiftedOperator(mass, self.jacobian.transpose(), self.shift)

    def diagonal(self) -> Tensor:
        """The diagonals (m, n)."""
        shift = self.shift if isinstance(self.shift, float) else self.shift.reshape(-1, 1)
        if self.mass is None:
            return 1 - shift * self.jacobian.diagonal()
        shifted = self.mass.diagonal() - shift * self.jacobian.diagonal()
        return shifted if isinstance(shift, float) else torch.where(shift == 0, 1, shifted)

    def sparse(self) -> "LinearOperator":
        """The matrix in compressed rows, of a sparse mass and Jacobian; without gradients.

        Raises:
            TypeError: their entries are not stored.
        """
        from scipy import sparse

        from sciml.solvers.linear.sparse import SparseOperator

        parts = [part for part in (self.mass, self.jacobian) if part is not None]
        if not all(isinstance(part, SparseOperator) for part in parts):
            kinds = " and ".join(type(part).__name__ for part in parts)
            raise TypeError(f"A: expected the entries of mass and Jacobian in SparseOperators, got {kinds}")
        if isinstance(self.shift, Tensor) and self.shift.numel() != 1:
            raise TypeError("A: a matrix for each sample is not stored; take lanes='joint' with rows=True")
        *mass, jacobian = (part.to_scipy() for part in parts)  # pyrefly: ignore[missing-attribute]
        shift = float(self.shift)
        unit = sparse.eye(self.shape[-1], dtype=jacobian.dtype)
        matrix = (mass[0] if mass and shift else unit) - shift * jacobian
        return SparseOperator.from_scipy(matrix, self.dtype, self.device)

    def dense(self) -> Tensor:
        """The matrices (m, n, n)."""
        shift = self.shift if isinstance(self.shift, float) else self.shift.reshape(-1, 1, 1)
        unit = torch.eye(self.shape[-1], dtype=self.dtype, device=self.device)
        if self.mass is None:
            return unit - shift * self.jacobian.dense()
        shifted = self.mass.dense() - shift * self.jacobian.dense()
        return shifted if isinstance(shift, float) else torch.where(shift == 0, unit, shifted)


class CoupledOperator(LinearOperator):
    """The matrix of s coupled stages, blocks (i, j) = delta_ij M - h a_ij J_j, on vectors (m, s n).

    Args:
        mass: M; None is the identity.
        jacobians: J_j, s of them.
        a: the tableau's matrix (s, s).
        h: a number, or a tensor that broadcasts against (m); where it is 0 the operator is the identity.
        transposed: whether it stands for the transposed matrices.
    """

    def __init__(
        self,
        mass: LinearOperator | None,
        jacobians: Sequence[LinearOperator],
        a: Tensor,
        h: float | Tensor,
        transposed: bool = False,
    ):
        (m, n, _), s = jacobians[0].shape, len(jacobians)
        super().__init__((m, s * n, s * n), jacobians[0].dtype, jacobians[0].device)
        self.mass, self.jacobians, self.a, self.h, self.transposed = mass, jacobians, a, h, transposed

    def matvec(self, x: Tensor) -> Tensor:
        """The products (m, s n)."""
        parts = x.reshape(len(x), len(self.jacobians), -1)
        h = self.h if isinstance(self.h, float) else self.h.reshape(-1, 1, 1)
        mixed = self.a.mT @ parts if self.transposed else parts
        products = torch.stack([j.matvec(v) for j, v in zip(self.jacobians, mixed.unbind(1), strict=True)], 1)
        if not self.transposed:
            products = self.a @ products
        if self.mass is None:
            return (parts - h * products).reshape(x.shape)
        shifted = torch.stack([self.mass.matvec(v) for v in parts.unbind(1)], 1) - h * products
        return (shifted if isinstance(h, float) else torch.where(h == 0, parts, shifted)).reshape(x.shape)

    def transpose(self) -> "CoupledOperator":
        """The transposed matrices."""
        mass = None if self.mass is None else self.mass.transpose()
        jacobians = [j.transpose() for j in self.jacobians]
        return CoupledOperator(mass, jacobians, self.a, self.h, not self.transposed)

    def dense(self) -> Tensor:
        """The matrices (m, s n, s n)."""
        if self.transposed:
            return self.transpose().dense().mT
        n, s = self.jacobians[0].shape[1], len(self.jacobians)
        shapes = [part.shape[0] for part in (*self.jacobians, self.mass) if part is not None]
        m = max(*shapes, 1 if isinstance(self.h, float) else self.h.numel())
        one = all(j is self.jacobians[0] for j in self.jacobians)
        parts = [self.jacobians[0].dense()] * s if one else [j.dense() for j in self.jacobians]
        parts = [part.expand(m, n, n) for part in parts]
        unit = torch.eye(n, dtype=self.dtype, device=self.device).expand(m, n, n)
        eye = torch.eye(s, dtype=self.dtype, device=self.device)
        blocks = lambda a, x: torch.einsum("ij,mjpq->mipjq", a, x)  # noqa: E731
        alike = lambda x: blocks(eye, x[:, None].expand(m, s, n, n))  # noqa: E731
        h = self.h if isinstance(self.h, float) else self.h.reshape(-1, 1, 1, 1, 1)
        shifted = alike(unit if self.mass is None else self.mass.dense().expand(m, n, n)) - h * blocks(
            self.a, torch.stack(parts, 1)
        )
        if self.mass is not None and not isinstance(h, float):
            shifted = torch.where(h == 0, alike(unit), shifted)
        return shifted.reshape(m, s * n, s * n)


def jacobian(function: Callable[[Tensor], Tensor], y: Tensor, m: int = 1) -> JacobianOperator:
    """The Jacobian of a vector field at a state as a linear operator.

    Args:
        function: the field at one time, ``lambda y: term.drift(t, y, args)``.
        y: the state.
        m: number of systems along the first axis of y that do not couple; 1 takes the whole state as one.

    Example:
        >>> import torch
        >>> from sciml.solvers.linear import jacobian
        >>> jacobian(torch.sin, torch.zeros(2)).dense()
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    return JacobianOperator(function, y, m)
