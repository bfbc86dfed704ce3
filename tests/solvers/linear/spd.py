"""Symmetric positive definite systems to solve."""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sciml.solvers.linear import SparseOperator
from tests.solvers.systems import DTYPE


def diffusion(m: int, contrast: float = 1.0, dimension: int = 2, seed: int = 0) -> sparse.csr_matrix:
    """Five or seven points on m^dimension cells, u = 0 around, faces of random conductivity within the contrast."""
    rng = np.random.default_rng(seed)
    eye, total = sparse.eye(m), sparse.csr_matrix((m**dimension, m**dimension))
    step = sparse.diags([-1.0, 1.0], [-1, 0], shape=(m + 1, m))
    for axis in range(dimension):
        d = sparse.csr_matrix(np.ones((1, 1)))
        for k in range(dimension):
            d = sparse.kron(d, step if k == axis else eye)
        faces = contrast ** rng.uniform(-0.5, 0.5, d.shape[0])
        total = total + d.T @ sparse.diags(faces) @ d
    total = sparse.csr_matrix(total)
    total.sort_indices()
    return total


def operator(m: int, contrast: float = 1.0, dimension: int = 2) -> SparseOperator:
    return SparseOperator.from_scipy(diffusion(m, contrast, dimension))


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))
