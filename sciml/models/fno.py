"""Fourier neural operator: a map between functions on a periodic box, whatever grid they are sampled on."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional


class Basis(NamedTuple):
    """The matrices of a truncated discrete Fourier transform along one axis of n points, m wavenumbers kept.

    On the last axis a real signal needs the wavenumbers 0..m-1, and the rows are (cos 0, -sin 0, cos 1, -sin 1, ..).
    On the other axes the signal is complex, the wavenumbers are 1-m..m-1, and all cosines stand before all sines.
    """

    analysis: Tensor  # (r, n): samples -> coefficients, scaled by 1/n so that coefficients do not depend on the grid
    synthesis: Tensor  # (n, r) on the last axis, (2n, 2m - 1) on the others: coefficients -> samples


def waves(k: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (k, n) of 2 pi k j / n, in float64.

    The integer k j is reduced modulo n first and looked up in a table of n entries: no large angle loses digits.
    """
    j = torch.arange(n, device=k.device)
    angle = 2 * math.pi / n * j.to(torch.float64)
    index = torch.outer(k, j).remainder(n)
    return angle.cos()[index], angle.sin()[index]


def real_basis(m: int, n: int, like: Tensor) -> Basis:
    """The basis of the last axis, in the dtype and on the device of `like`."""
    cos, sin = waves(torch.arange(m, device=like.device), n)
    rows = torch.stack([cos, -sin], dim=1).flatten(0, 1)  # (2 m, n)
    twice = torch.full((2 * m, 1), 2.0, dtype=rows.dtype, device=rows.device)  # k and -k are one real wave
    twice[:2] = 1.0
    return Basis((rows / n).to(like.dtype), (twice * rows).T.to(like.dtype))


def complex_basis(m: int, n: int, like: Tensor) -> Basis:
    """The basis of every axis but the last, in the dtype and on the device of `like`."""
    cos, sin = waves(torch.arange(1 - m, m, device=like.device), n)
    return Basis((torch.cat([cos, sin]) / n).to(like.dtype), torch.cat([cos, sin], dim=1).T.to(like.dtype))


class Transform(NamedTuple):
    """The truncated discrete Fourier transform on one grid.

    Cosines are little work beside the layers that multiply by them, so that they are made in each forward pass of a
    net, once for all its layers: a cache would have to follow dtype, device, copies and tracing.
    """

    kept: tuple[int, ...]  # per axis, how many of the wavenumbers |k| < modes the grid resolves
    axes: tuple[Basis, ...]

    @classmethod
    def of(cls, modes: Sequence[int], sizes: Sequence[int], like: Tensor) -> "Transform":
        """The wavenumbers |k_i| < modes_i that a grid of the given sizes resolves: |k| < n / 2 on n points.

        The Nyquist wavenumber k = n / 2 of an even n is left out. The grid sees its cosine, not its sine: a weight that
        turns the phase would act differently there than on any finer grid.
        """
        kept = tuple(min(m, (n + 1) // 2) for m, n in zip(modes, sizes, strict=True))
        *heads, last = zip(kept, sizes, strict=True)
        return cls(kept, (*(complex_basis(m, n, like) for m, n in heads), real_basis(*last, like)))

    def analyse(self, x: Tensor) -> Tensor:
        """Fourier coefficients (*k, 2, b, c) of real fields (*x, b, c); the axis of size 2: real, imaginary part."""
        last = len(self.axes) - 1
        z = apply(self.axes[last].analysis, x, last).unflatten(last, (-1, 2))  # (*x but the last, k, 2, b, c)
        for axis in reversed(range(last)):
            cos, sin = apply(self.axes[axis].analysis, z, axis).chunk(2, dim=axis)
            z = cos - turned(sin)
        return z

    def synthesise(self, z: Tensor) -> Tensor:
        """Real fields (*x, b, c) with the Fourier coefficients (*k, 2, b, c)."""
        last = len(self.axes) - 1
        for axis in range(last):
            cos, sin = apply(self.axes[axis].synthesis, z, axis).chunk(2, dim=axis)
            z = cos + turned(sin)
        return apply(self.axes[last].synthesis, z.flatten(last, last + 1), last)


def apply(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Multiplies one axis of x, of size n, by a matrix (r, n)."""
    head, tail = x.shape[:axis], x.shape[axis + 1 :]
    columns = x.reshape(math.prod(head), x.shape[axis], math.prod(tail))
    product = torch.bmm(matrix.expand(columns.shape[0], -1, -1), columns)
    return product.reshape(*head, matrix.shape[0], *tail)


def turned(z: Tensor) -> Tensor:
    """The complex number i z, with real and imaginary part on the third axis from the end."""
    re, im = z.unbind(-3)
    return torch.stack([-im, re], dim=-3)


class SpectralConv(nn.Module):
    """Convolution whose kernel is given by its Fourier coefficients: y_k = W_k x_k for |k_i| < modes_i, else 0.

    With channels as the entries of x_k and y_k, every W_k is a complex matrix, stored as a real tensor; on the last
    axis k < 0 is the conjugate of k > 0 and has no weights of its own. The samples of x enter by their truncated
    discrete Fourier transform, as matrix products: for the few modes that an operator learns these cost less than a
    full FFT in complex numbers, and need neither padding nor even sizes. A grid too coarse for a wavenumber leaves it
    out, so that for a band-limited x the values do not depend on the grid.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        modes: number of wavenumbers 0..modes-1 kept along each axis of space.

    Attributes:
        weight: (2 modes_1 - 1, .., modes_d, in_channels, 2, out_channels), wavenumbers in rising order; the axis of
            size 2 is real and imaginary part.
    """

    def __init__(self, in_channels: int, out_channels: int, modes: Sequence[int]):
        super().__init__()
        self.modes = tuple(modes)
        *heads, last = self.modes
        self.weight = nn.Parameter(torch.empty(*(2 * m - 1 for m in heads), last, in_channels, 2, out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights anew: E |W_k|^2 = 1 / in_channels keeps the power of each wavenumber."""
        nn.init.normal_(self.weight, std=(2 * self.weight.shape[-3]) ** -0.5)

    def resolved(self, kept: Sequence[int]) -> Tensor:
        """The weights (k, in_channels, 2 out_channels) of the wavenumbers |k_i| < kept_i, k counting over all axes."""
        last = len(kept) - 1
        weight = self.weight.narrow(last, 0, kept[last])
        for axis in range(last):
            weight = weight.narrow(axis, self.modes[axis] - kept[axis], 2 * kept[axis] - 1)
        return weight.flatten(0, last).flatten(2)

    def forward(self, x: Tensor, transform: Transform) -> Tensor:
        """Convolves.

        Args:
            x: samples (*x, b, in_channels). Space comes first, so that a transform is one matrix product.
            transform: of the grid that x is sampled on, for the `modes` of the layer.

        Returns:
            Samples (*x, b, out_channels).
        """
        z = transform.analyse(x)  # (*k, 2, b, c)
        weight = self.resolved(transform.kept)
        grid, (b, c) = z.shape[:-3], z.shape[-2:]
        products = torch.bmm(z.reshape(len(weight), 2 * b, c), weight).view(*grid, 2, b, 2, weight.shape[-1] // 2)
        re, im = rearrange(products, "... q b p o -> q ... p b o")  # z_re W and z_im W
        return transform.synthesise(re + turned(im))


class FNO(nn.Module):
    """Fourier neural operator of Li et al.: v <- s(K v + A v + a), between a pointwise lifting and projection.

    K is a `SpectralConv`, A a matrix on channels, s the GELU; the last layer has no s. Domains are periodic, [0, 1) on
    each axis. All weights are real, the grid is free: any size, odd or even, other than in training. A field and its
    outputs are then the same functions up to what the grid cannot resolve.

    Without `grid` the net commutes with translations, as the solution map of every PDE does whose coefficients do not
    depend on x: that is right by construction and saves data. With it, the coordinates enter as cos 2 pi x_i and
    sin 2 pi x_i, which are periodic.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        modes: wavenumbers 0..modes-1 kept along each axis of space; its length is the dimension of space.
        width: channels of the hidden fields.
        layers: number of Fourier layers.
        projection: channels between the two maps of the projection; None for twice the width.
        grid: whether the net knows where a point lies.

    Raises:
        ValueError: if a size is less than 1 or `modes` is empty.

    References:
        Li et al. 2021, Fourier neural operator for parametric partial differential equations, arXiv:2010.08895.

    Example:
        >>> import torch
        >>> from sciml.models.fno import FNO
        >>> net = FNO(1, 1, modes=[16], width=32)
        >>> net(torch.zeros(5, 1, 256)).shape, net(torch.zeros(5, 1, 99)).shape
        (torch.Size([5, 1, 256]), torch.Size([5, 1, 99]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: Sequence[int],
        width: int = 48,
        layers: int = 4,
        projection: int | None = None,
        grid: bool = False,
    ):
        super().__init__()
        projection = 2 * width if projection is None else projection
        check(in_channels=in_channels, out_channels=out_channels, width=width, layers=layers, projection=projection)
        if isinstance(modes, int) or not modes or min(modes) < 1:
            raise ValueError(f"modes: expected a count of at least 1 per axis of space, such as [16], got {modes}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.modes, self.grid = tuple(modes), grid
        self.lift = nn.Linear(in_channels + 2 * grid * len(self.modes), width)
        self.convolutions = nn.ModuleList(SpectralConv(width, width, self.modes) for _ in range(layers))
        self.pointwise = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.project = nn.Sequential(nn.Linear(width, projection), nn.GELU(), nn.Linear(projection, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps fields to fields on the same grid.

        Args:
            x: samples (b, in_channels, *x) at the points j / n of each axis.

        Returns:
            Samples (b, out_channels, *x).

        Raises:
            ValueError: if the shape of x does not fit.
            TypeError: if one of x and the weights is in double precision.
        """
        if x.ndim != 2 + len(self.modes) or x.shape[1] != self.in_channels:
            axes = ", ".join("n" * len(self.modes))
            raise ValueError(f"x: expected shape (b, {self.in_channels}, {axes}), got {tuple(x.shape)}")
        dtype = self.lift.weight.dtype
        if x.dtype != dtype and torch.float64 in (x.dtype, dtype):
            raise TypeError(f"x: expected {dtype}, as the weights are, got {x.dtype}")
        v = rearrange(x, "b c ... -> ... b c")
        transform = Transform.of(self.modes, v.shape[:-2], v)
        v = self.lift(with_coordinates(v) if self.grid else v)
        *hidden, last = zip(self.convolutions, self.pointwise, strict=True)
        for convolution, pointwise in hidden:
            v = functional.gelu(convolution(v, transform) + pointwise(v))
        convolution, pointwise = last
        v = convolution(v, transform) + pointwise(v)
        return rearrange(self.project(v), "... b c -> b c ...")


def check(**sizes: int) -> None:
    """Refuses sizes below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


def with_coordinates(v: Tensor) -> Tensor:
    """Appends cos 2 pi x_i and sin 2 pi x_i of every axis to fields (*x, b, c)."""
    *sizes, b, _ = v.shape
    columns = [v]
    for axis, n in enumerate(sizes):
        angle = 2 * math.pi / n * torch.arange(n, dtype=torch.float64, device=v.device)
        wave = torch.stack([angle.cos(), angle.sin()], dim=-1).to(v.dtype)  # (n, 2)
        wave = wave.reshape(n, *(1,) * (len(sizes) - axis), 2)
        columns.append(wave.expand(*sizes, b, 2))
    return torch.cat(columns, dim=-1)
