import math

import pytest
import torch
from scipy.fft import dctn, idctn

from sciml.problems import AllenCahnHeat
from sciml.problems.reaction_diffusion import T1


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Mild(AllenCahnHeat):
    """Initial values near 1, so that trees are of use in two dimensions."""

    def initial(self, x):
        return 1 + 0.3 * super().initial(x)


def on_a_grid(size, steps):
    """The solution of `Mild` in two dimensions at the centre: Strang splitting, cosines on [-6, 6]^2 without flux."""
    x = 12 * (torch.arange(size) + 0.5) / size - 6
    k = torch.pi * torch.arange(size, dtype=torch.float64) / 12
    dt = T1 / steps
    decay = torch.exp(-dt * (k[:, None] ** 2 + k**2)).numpy()
    points = torch.cartesian_prod(torch.zeros(1), x, x)
    u = Mild(2).initial(points).double().reshape(size, size)
    grown = torch.tensor(dt, dtype=torch.float64).exp()  # of u / sqrt(1 - u^2) in half a step, squared
    react = lambda u: u * grown.sqrt() / (1 + u**2 * (grown - 1)).sqrt()  # noqa: E731
    for _ in range(steps):
        u = react(torch.from_numpy(idctn(decay * dctn(react(u).numpy(), norm="ortho"), norm="ortho")))
    return u[size // 2, size // 2].item()


def picard(equation, level, left, x, generator):
    """Multilevel Picard iterate (n) at points (n, 1 + d) with time left (n) (E, Hutzenthaler, Jentzen, Kruse 2019)."""
    base = 4
    if level == 0:
        return torch.ones(len(x))

    def moved(count, time):
        y = x.repeat_interleave(count, 0)
        noise = torch.randn(len(y), equation.space, generator=generator)
        return torch.cat([y[:, :1], y[:, 1:] + (2 * time).sqrt()[:, None] * noise], 1)

    count = base**level
    total = equation.initial(moved(count, left.repeat_interleave(count))).reshape(-1, count).mean(1)
    for lower in range(level):
        count = base ** (level - lower)
        whole = left.repeat_interleave(count)
        time = whole * torch.rand(len(whole), generator=generator)
        y = moved(count, time)
        found = equation.reaction(picard(equation, lower, whole - time, y, generator))
        if lower:
            found = found - equation.reaction(picard(equation, lower - 1, whole - time, y, generator))
        total = total + left * found.reshape(-1, count).mean(1)
    return total


def test_trees_find_the_solution_of_a_grid():
    """Within five standard errors; without the nonlinear terms it would be off by 35 of them."""
    exact = on_a_grid(321, 20)
    assert abs(exact - on_a_grid(161, 10)) < 2e-4
    found = Mild(2).estimate(400_000, seeded(0))
    assert found.error < 1e-3
    assert abs(found.mean - exact) < 5 * found.error


def test_trees_find_the_solution_without_space():
    """Within five standard errors of u' = u - u^3 from .4; without the cube of w it would be off by 60 of them."""

    class Flat(AllenCahnHeat):
        def initial(self, x):
            return torch.full((len(x),), 0.4)

    exact = (1 + (1 / 0.4**2 - 1) * math.exp(-2 * T1)) ** -0.5
    found = Flat(1).estimate(200_000, seeded(0))
    assert found.error < 2e-3
    assert abs(found.mean - exact) < 5 * found.error


def test_one_tree_is_refused():
    with pytest.raises(ValueError, match="trees: expected at least 2, got 1"):
        AllenCahnHeat(10).estimate(1, seeded(0))


@pytest.mark.parametrize("space", [10, 100])
def test_solution_at_the_centre_is_that_of_multilevel_picard_iteration(space):
    """Within five standard errors of 60 iterates of level 4."""
    equation = AllenCahnHeat(space)
    start, left = torch.zeros(1, equation.dim), torch.full((1,), T1)
    found = torch.cat([picard(equation, 4, left, start, seeded(seed)) for seed in range(60)])
    error = found.std() / len(found) ** 0.5
    assert error < 4e-3
    assert abs(found.mean() - equation.centres[space].mean) < 5 * error


@pytest.mark.parametrize("space", [10, 100])
def test_trees_of_another_seed_agree(space):
    """Within four standard errors, of a fortieth of the trees."""
    stored, found = AllenCahnHeat.centres[space], AllenCahnHeat(space).estimate(100_000, seeded(1))
    assert abs(found.mean - stored.mean) < 4 * (found.error**2 + stored.error**2) ** 0.5


def test_solution_at_the_centre_is_good_enough_to_judge_by():
    """Its standard error is below a tenth of the errors in the paper."""
    for space, bar in {10: 6.4e-2, 100: 4.4e-3}.items():
        mean, error = AllenCahnHeat.centres[space]
        assert error < 0.1 * bar * mean


@pytest.mark.slow
@pytest.mark.parametrize("space", [10, 100])
def test_solution_at_the_centre_is_found_again(space):
    """From the same seed: to the digits that are stored, some of the last of which other machines may round."""
    stored, found = AllenCahnHeat.centres[space], AllenCahnHeat(space).estimate(2**22, seeded(0))
    print(f"d = {space}: {found.mean:.6f} with a standard error of {found.error:.2g}")
    assert abs(found.mean - stored.mean) < 1e-5
    assert abs(found.error - stored.error) < 1e-6
