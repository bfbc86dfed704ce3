"""The residuals of bench_calculus.py in jax: ``jax.experimental.jet``, a collapsed series by hand, and folx."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.jet import jet
from torch import Tensor, nn

Weights = list[tuple[Any, Any]]
Laplacian = Callable[
    [Weights, Any, Any], tuple[Any, Any]
]  # of weights, one point (d) and coordinates (R) or directions


def layers(weights: Weights, y: Any) -> Any:
    """Affine maps with tanh between: what follows the first one, from its value on."""
    for weight, bias in weights:
        y = weight @ jnp.tanh(y) + bias
    return y[0]


def ball(weights: Weights, x: Any) -> Any:
    """(1 - |x|^2) times a network, at one point (d)."""
    weight, bias = weights[0]
    return (1 - jnp.sum(x * x)) * layers(weights[1:], weight @ x + bias)


def along(weights: Weights, x: Any, v: Any) -> tuple[Any, Any]:
    """The value and the mean second derivative along directions (R, d)."""

    def one(v: Any) -> tuple[Any, Any]:
        value, (_, second) = jet(lambda x: ball(weights, x), (x,), ((v, jnp.zeros_like(v)),))
        return value, second

    values, seconds = jax.vmap(one)(v)
    return values[0], seconds.mean()


def one_hot(weights: Weights, x: Any, j: Any) -> tuple[Any, Any]:
    """Jets along coordinates (R) that are one-hot vectors."""
    d = len(x)
    value, second = along(weights, x, jax.nn.one_hot(j, d, dtype=x.dtype))
    return value, d * second


def gathered(weights: Weights, x: Any, j: Any) -> tuple[Any, Any]:
    """Jets that start behind the first affine map, with the columns of its weight as tangents."""
    (weight, bias), d = weights[0], len(x)
    start = (1 - jnp.sum(x * x), weight @ x + bias)

    def one(j: Any) -> tuple[Any, Any]:
        column = weight[:, j]
        series = ((-2 * x[j], jnp.asarray(-2.0)), (column, jnp.zeros_like(column)))
        value, (_, second) = jet(lambda q, y: q * layers(weights[1:], y), start, series)
        return value, second

    values, seconds = jax.vmap(one)(j)
    return values[0], d * seconds.mean()


def collapsed(weights: Weights, x: Any, j: Any) -> tuple[Any, Any]:
    """The same by hand, second coefficients summed over coordinates as they arise: an order 2 jet of this network."""
    weight, bias = weights[0]
    y, first, second = weight @ x + bias, weight[:, j].T, jnp.zeros_like(bias)  # (h), (R, h), (h)
    for weight, bias in weights[1:]:
        t = jnp.tanh(y)
        slope = 1 - t * t
        second = slope * (second - 2 * t * (first * first).sum(0))
        first = slope * first
        y, first, second = weight @ t + bias, first @ weight.T, weight @ second
    q, dq = 1 - jnp.sum(x * x), -2 * x[j]
    total = q * second[0] + 2 * jnp.sum(dq * first[:, 0]) - 2 * len(j) * y[0]
    return q * y[0], len(x) * total / len(j)


def forward_laplacian(weights: Weights, x: Any, j: Any) -> tuple[Any, Any]:
    """The Laplacian with all of its terms, by folx."""
    import folx

    found = folx.forward_laplacian(lambda x: ball(weights, x))(x)
    return found.x, found.laplacian


SPARSE: dict[str, Laplacian] = {"jax jet": one_hot, "jax jet gathered": gathered, "jax by hand": collapsed}
PEERS = {**SPARSE, "jax jet dense": along, "folx": forward_laplacian}


def step(
    name: str, net: nn.Module, x: Tensor, rhs: Tensor, sample: Tensor, shared: bool
) -> Callable[[], tuple[Any, list[Any]]]:
    """The mean squared residual and its gradient to the weights, jitted.

    Args:
        name: which of ``PEERS``.
        net: whose weights to take: an affine map is a weight and a bias, in this order.
        x: points (b, d).
        rhs: the right-hand side (b).
        sample: coordinates or directions, (R, ...) for all points or (R, b, ...) for each.
        shared: which of these it is.
    """
    numbers = [jnp.asarray(w.detach().numpy()) for w in net.parameters()]
    weights = list(zip(numbers[::2], numbers[1::2], strict=True))
    axis = None if shared else 1

    def loss(weights: Weights, x: Any, sample: Any, rhs: Any) -> Any:
        values, laplacians = jax.vmap(lambda x, s: PEERS[name](weights, x, s), (0, axis))(x, sample)
        return jnp.mean((laplacians + jnp.sin(values) - rhs) ** 2)

    given = [jnp.asarray(np.asarray(v)) for v in (x, sample, rhs)]
    grad = jax.jit(jax.value_and_grad(loss))

    def call() -> tuple[Any, list[Any]]:
        value, gradients = jax.block_until_ready(grad(weights, *given))
        return value, [g for pair in gradients for g in pair]

    return call
