"""Gaussian random fields as initial conditions."""

import math

import torch
from torch import Generator, Tensor

DRAWN = 512  # wavenumbers drawn whatever the grid, so that a sample is the same function on every one


def gaussian_coefficients(
    count: int,
    modes: int,
    length: float,
    generator: Generator,
    sigma: float = 25.0,
    tau: float = 5.0,
    alpha: float = 2.0,
) -> Tensor:
    """Fourier coefficients of periodic fields N(0, sigma^2 (-d^2/dx^2 + tau^2)^-alpha) of zero mean.

    Args:
        count: number of fields.
        modes: number of wavenumbers, at most 512 of them not zero.
        length: period.
        generator: source of randomness; the same one gives the same functions for any number of modes.
        sigma: amplitude.
        tau: inverse length scale.
        alpha: smoothness.

    Returns:
        Complex coefficients (count, 1, modes), float64, of exp(i k x) with k >= 0.
    """
    k = 2 * math.pi / length * torch.arange(1, DRAWN, dtype=torch.float64)
    deviation = sigma * (k**2 + tau**2) ** (-alpha / 2)
    normal = torch.randn(count, 1, DRAWN - 1, dtype=torch.complex128, generator=generator)
    coefficients = normal * (deviation / math.sqrt(length))  # E |normal|^2 = 1: half in cos, half in sin
    used = min(modes, DRAWN)
    fields = torch.zeros(count, 1, modes, dtype=torch.complex128)
    fields[..., 1:used] = coefficients[..., : used - 1]
    return fields


def banded_coefficients(count: int, modes: int, largest: int, generator: Generator) -> Tensor:
    """Fourier coefficients of real fields on a periodic square: normal where 0 < |m| <= largest, zero elsewhere.

    Args:
        count: number of fields.
        modes: number of wavenumbers kept along an axis, above ``largest``.
        largest: radius of the disc of wavenumbers, in units of 2 pi / length.
        generator: source of randomness; the same one gives the same functions for any number of modes.

    Returns:
        Complex coefficients (count, 1, 2 modes - 1, modes), float64, in the order of `PeriodicPDE`.
    """
    m = torch.arange(-largest, largest + 1, dtype=torch.float64)
    square = m[:, None] ** 2 + m[largest:] ** 2
    drawn = torch.randn(count, 1, *square.shape, dtype=torch.complex128, generator=generator)
    drawn = drawn * ((square > 0) & (square <= largest**2))
    axis = drawn[..., 0]
    drawn[..., 0] = (axis + axis.flip(-1).conj()) / math.sqrt(2)  # those of +m and -m belong to one real field
    fields = torch.zeros(count, 1, 2 * modes - 1, modes, dtype=torch.complex128)
    fields[..., : largest + 1, : largest + 1] = drawn[..., largest:, :]
    fields[..., -largest:, : largest + 1] = drawn[..., :largest, :]
    return fields
