"""Families of linear systems against exact solutions, Fourier modes and what their matrices are by construction."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from numpy import ndarray
from scipy.sparse.linalg import expm_multiply, spsolve

from sciml.problems import Diffusion, FiniteElements, Heat, Lognormal, TwoPhase, Wave
from sciml.problems.coefficients import Coefficient, GaussianField, Places, cosines
from sciml.problems.implicit_steps import Direct
from sciml.problems.linear_systems import Family, LinearSystem

FAMILIES: dict[str, Family] = {
    "poisson 2d": Diffusion(cells=9),
    "poisson 3d": Diffusion(cells=5, dimension=3),
    "lognormal": Diffusion(cells=9, coefficient=Lognormal(contrast=1e4)),
    "two phases 3d": Diffusion(cells=5, dimension=3, coefficient=TwoPhase(contrast=1e5)),
    "anisotropic": Diffusion(cells=9, anisotropy=(1.0, 0.01)),
    "elements 2d": FiniteElements(cells=9, coefficient=Lognormal()),
    "elements 3d": FiniteElements(cells=4, dimension=3, coefficient=TwoPhase()),
    "heat": Heat(Diffusion(cells=9, coefficient=Lognormal())),
    "heat on elements": Heat(FiniteElements(cells=9)),
    "wave": Wave(Diffusion(cells=9), dt=0.3),
}
family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


@dataclass(frozen=True)
class Waves(Coefficient):
    """a = 1 + sin(2 pi x_1) / 2."""

    def values(self, places: Places, dimension: int, seed: int, turn: float = 0.0) -> ndarray:
        x = np.meshgrid(*places, indexing="ij")[0] if isinstance(places, tuple) else places[:, 0]
        return 1 + np.sin(2 * np.pi * x) / 2


@dataclass(frozen=True)
class Halves(Coefficient):
    """a = 1 where x < 1/2, 100 elsewhere, in one dimension."""

    def values(self, places: Places, dimension: int, seed: int, turn: float = 0.0) -> ndarray:
        return np.where(places[0] < 0.5, 1.0, 100.0)


def order(sizes: list[int], errors: list[float]) -> float:
    return -np.polyfit(np.log(sizes), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("make", "dimension", "sizes"),
    [
        (Diffusion, 2, [8, 16, 32, 64]),
        (Diffusion, 3, [4, 6, 9, 13]),
        (FiniteElements, 2, [8, 16, 32, 64]),
        (FiniteElements, 3, [4, 6, 9, 13]),
    ],
    ids=["volumes 2d", "volumes 3d", "elements 2d", "elements 3d"],
)
def test_solutions_are_of_second_order(make: type, dimension: int, sizes: list[int]):
    """u = prod sin(pi x) with a = 1 + sin(2 pi x_1) / 2, in the root mean square."""
    errors = []
    for cells in sizes:
        system = make(cells=cells, dimension=dimension, coefficient=Waves()).system(0)
        sines, cosine = np.sin(np.pi * system.points), np.cos(np.pi * system.points[:, 0])
        x, u = system.points[:, 0], sines.prod(1)
        slope = np.pi**2 * np.cos(2 * np.pi * x) * cosine * sines[:, 1:].prod(1)  # a' u'
        f = dimension * np.pi**2 * (1 + np.sin(2 * np.pi * x) / 2) * u - slope
        error = spsolve(system.matrix, system.space.mass @ f) - u
        errors.append(math.sqrt(np.mean(error**2)))
    assert 1.8 < order(sizes, errors) < 2.5


def test_harmonic_means_are_exact_across_a_jump():
    """-(a u')' = 0 with u(0) = 0, u(1) = 1 and a = 1, then 100: straight in either half, with one flux."""
    system = Diffusion(cells=10, dimension=1, coefficient=Halves()).system(0)
    b = np.zeros(10)
    b[-1] = 2 * 100
    x, flux = system.points[:, 0], 1 / (0.5 / 1 + 0.5 / 100)
    right = np.where(x < 0.5, flux * x, 1 - flux * (1 - x) / 100)
    assert np.allclose(spsolve(system.matrix, b), right, rtol=0, atol=1e-13)


@family
def test_matrices_are_symmetric_positive_definite_and_sorted(family: Family):
    matrix = family.system(1).matrix
    assert matrix.dtype == np.float64
    assert matrix.indices.dtype == matrix.indptr.dtype == np.int32
    assert all((np.diff(row) > 0).all() for row in np.split(matrix.indices, matrix.indptr[1:-1]))
    assert (matrix != matrix.T).nnz == 0
    assert np.linalg.eigvalsh(matrix.toarray())[0] > 0


@pytest.mark.parametrize("name", ["lognormal", "two phases 3d", "anisotropic"])
def test_volumes_give_m_matrices_whose_rows_sum_to_what_flows_out(name: str):
    space = FAMILIES[name]
    assert isinstance(space, Diffusion)
    matrix, d, m = space.system(2).matrix, space.dimension, space.cells
    off = matrix - np.diag(matrix.diagonal())
    assert (off <= 0).all()
    axes, factors = ((np.arange(m) + 0.5) / m,) * d, space.anisotropy or (1.0,) * d
    a = np.ones((m,) * d) if space.coefficient is None else space.coefficient.values(axes, d, 2)
    walls = [2 * factor * ((i == 0) + (i == m - 1)) for factor, i in zip(factors, np.indices(a.shape), strict=True)]
    assert np.allclose(matrix.sum(1).A1, (a * sum(walls)).ravel(), rtol=0, atol=1e-12 * a.max())


def test_elements_fill_the_cube_and_differ_in_their_neighbours():
    """All weights of the mass matrix sum to the volume of hats inside; a grid's rows all have the same number."""
    for dimension, cells in ((2, 20), (3, 8)):
        space = FiniteElements(cells=cells, dimension=dimension).discretise(0)
        neighbours = np.diff(space.stiffness.indptr)
        assert len(set(neighbours)) > 4
        inner = (np.abs(space.points - 0.5) < 0.5 - 1.5 / cells).all(1)
        assert np.allclose((space.stiffness @ np.ones(len(neighbours)))[inner], 0, atol=1e-12)
        linear = space.stiffness @ space.points[:, 0]
        assert np.allclose(linear[inner], 0, atol=1e-12)  # and straight functions are harmonic


def test_heat_steps_follow_a_fourier_mode_and_the_exponential():
    """Sines at centres are eigenvectors; the error against the exact exponential is of first order in dt."""
    heat = Diffusion(cells=16)
    space = heat.discretise(0)
    mode = np.sin(np.pi * space.points).prod(1)
    rate = 2 * 4 * 16**2 * math.sin(math.pi / 32) ** 2
    assert np.allclose(space.stiffness @ mode, rate * (space.mass @ mode), rtol=0, atol=1e-12)
    right, errors, counts = expm_multiply(-(16**2) * space.stiffness * 0.1, mode), [], [10, 20, 40, 80]
    assert np.allclose(right, math.exp(-rate * 0.1) * mode, rtol=0, atol=1e-10)
    for n in counts:
        free = Unforced(heat, dt=0.1 / n)
        u = last(free, n)
        errors.append(float(np.abs(u - right).max()))
        assert np.allclose(u, (1 + rate * 0.1 / n) ** -n * mode, rtol=0, atol=1e-12)
    assert 0.9 < order(counts, errors) < 1.1


class Unforced(Heat):
    """From the first sine, without forcing."""

    def _b(self, space, state, dt, draw):
        return space.mass @ (np.sin(np.pi * space.points).prod(1) if draw[1] == 0 else state.u)


class FromSine(Wave):
    """From the first sine, at rest."""

    def _start(self, space, seed):
        return super()._start(space, seed)._replace(u=np.sin(np.pi * space.points).prod(1))


def last(evolution: Heat | Wave, n: int) -> ndarray:
    """The solution of the last step."""
    return spsolve((system := list(evolution.steps(0, n))[-1]).matrix.tocsc(), system.b)


def test_wave_steps_follow_a_fourier_mode_and_keep_the_energy():
    """cos(w t) to second order; u of the trapezoidal rule is cos(n theta) with tan(theta / 2) = w dt / 2."""
    wave, errors, counts = Diffusion(cells=16), [], [10, 20, 40, 80]
    frequency = math.sqrt(2) * 2 * 16 * math.sin(math.pi / 32)
    mode = np.sin(np.pi * wave.discretise(0).points).prod(1)
    for n in counts:
        u = last(FromSine(wave, dt=0.5 / n), n)
        theta = 2 * math.atan(frequency * 0.5 / n / 2)
        assert np.allclose(u, math.cos(n * theta) * mode, rtol=0, atol=1e-11)
        errors.append(float(np.abs(u - math.cos(frequency * 0.5) * mode).max()))
    assert 1.9 < order(counts, errors) < 2.1


def test_sequences_go_from_solution_to_solution():
    """Steps of one size have one matrix; others and drifting coefficients have their own; x0 is the last solution."""
    seen: list[LinearSystem] = []

    def solve(system: LinearSystem) -> ndarray:
        seen.append(system)
        return Direct()(system)

    constant = list(Heat(Diffusion(cells=8)).steps(3, 4, solve=solve))
    assert [a is b for a, b in zip(seen, constant, strict=False)] == [True] * 3
    assert all(a.matrix is constant[0].matrix for a in constant)
    assert np.array_equal(constant[1].x0, Direct()(constant[0]))
    drifting = list(Heat(Diffusion(cells=8, coefficient=Lognormal()), drift=0.1).steps(3, 3))
    change = [abs(b.matrix - a.matrix).max() / a.matrix.max() for a, b in pairwise(drifting)]
    assert all(0.01 < c < 0.5 for c in change)
    steps = [system.dt for system in Heat(Diffusion(cells=8), dt=(1e-4, 1e-1)).steps(3, 50)]
    assert min(steps) < 3e-4
    assert max(steps) > 3e-2
    assert 1e-4 <= min(steps) <= max(steps) <= 1e-1


@family
def test_systems_are_functions_of_their_seed(family: Family):
    first, again, other = family.system(5), family.system(5), family.system(6)
    assert (first.matrix != again.matrix).nnz == 0
    assert np.array_equal(first.b, again.b)
    assert not np.array_equal(first.b, other.b)
    assert np.array_equal(first.draw(3, 1), first.draw(5, 1)[:3])
    assert np.array_equal(first.draw(2, 1, 0.1), again.draw(2, 1, 0.1))
    assert first.draw(0).shape == first.draw(0, 0, 0.1).shape == (0, len(first.b))


def test_a_seed_is_one_function_on_every_mesh():
    points = np.random.default_rng(0).random((50, 3))
    for coefficient in (Lognormal(), TwoPhase()):
        grid = coefficient.values(tuple(points.T), 3, seed=4)
        assert np.allclose(np.einsum("iii->i", grid), coefficient.values(points, 3, seed=4), rtol=1e-12)
        assert not np.allclose(coefficient.values(points, 3, 4), coefficient.values(points, 3, 5))


def test_contrast_of_a_range_is_a_function_of_the_seed_alone():
    places = tuple((np.arange(m) + 0.5) / m for m in (64, 64))
    coefficient = TwoPhase(contrast=(10.0, 1000.0), correlation=(0.05, 0.2))
    drawn = [np.ptp(coefficient.values(places, 2, seed)) + 1 for seed in range(200)]
    assert 10 <= min(drawn) < 15
    assert 700 < max(drawn) <= 1000
    assert abs(np.log10(drawn).mean() - 2) < 4 * (1 / 12 * 4 / 200) ** 0.5  # standard errors
    assert np.ptp(coefficient.values(np.random.default_rng(0).random((500, 2)), 2, 7)) + 1 == drawn[7]


def test_coefficients_have_contrast_share_and_covariance():
    """Covariances are the Gaussian ones with images in the walls; waves left out hold 1e-8."""
    axes = ((np.arange(128) + 0.5) / 128,) * 2
    a = Lognormal(contrast=1e3).values(axes, 2, 0)
    assert math.isclose(a.max() / a.min(), 1e3, rel_tol=1e-12)
    assert math.isclose(np.log(a).mean(), 0, abs_tol=1e-12)
    a = TwoPhase(contrast=50.0, share=0.2).values(axes, 2, 0)
    assert set(np.unique(a)) == {1.0, 50.0}
    assert math.isclose((a > 1).mean(), 0.2, abs_tol=1e-4)
    x = np.linspace(0, 1, 21)
    images = [sign * x[:, None] + 2 * n - x for n in (-1, 0, 1) for sign in (1, -1)]
    right = sum(np.exp(-(r**2) / 2 / 0.1**2) for r in images)
    assert np.allclose(cosines(x, 0.1) @ cosines(x, 0.1).T, right, rtol=0, atol=1e-8)
    values = np.array([GaussianField(2, 0.1, (seed,), turn=0.7).at(np.array([[0.5, 0.5]]))[0] for seed in range(2000)])
    assert abs(values.mean()) < 4 / math.sqrt(2000)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / 2000)


def test_aggregates_are_blocks():
    system = Diffusion(cells=7, dimension=2).system(0)
    blocks = system.aggregates(3).reshape(7, 7)
    right = np.repeat([0, 1], [3, 4])
    assert np.array_equal(blocks, 2 * right[:, None] + right)
    assert set(system.aggregates(10)) == {0}
    assert np.array_equal(np.bincount(Diffusion(cells=6, dimension=3).system(0).aggregates(2)), [8] * 27)


def test_bad_input_is_refused(monkeypatch: pytest.MonkeyPatch):
    for make, message in [
        (lambda: Diffusion(dimension=4), "dimension: expected 1, 2 or 3, got 4"),
        (lambda: Diffusion(cells=1), "cells: expected at least 2"),
        (lambda: Diffusion(anisotropy=(1.0,)), "anisotropy: expected 2 positive numbers"),
        (lambda: Diffusion(anisotropy=(1.0, 0.0)), "anisotropy: expected 2 positive numbers"),
        (lambda: Diffusion().system(-1), "seed: expected a number that is not negative, got -1"),
        (lambda: FiniteElements(dimension=1), "dimension: expected 2 or 3"),
        (lambda: FiniteElements().system(0, cells=1), "cells: expected at least 2"),
        (lambda: FiniteElements(cells=4).system(0).aggregates(2), "expected a system on a grid"),
        (lambda: Diffusion().system(0).aggregates(0), "edge: expected a positive number"),
        (lambda: Lognormal(contrast=0.0), "contrast: expected a positive number"),
        (lambda: TwoPhase(contrast=(10.0, 2.0)), "contrast: expected a positive number, or a least and a largest"),
        (lambda: TwoPhase(share=1.0), "share: expected a number between 0 and 1"),
        (lambda: Lognormal(correlation=0.0).values(np.zeros((1, 2)), 2, 0), "correlation: expected a length"),
        (lambda: Heat(dt=0.0), "dt: expected a positive step"),
        (lambda: Wave(dt=(1.0, 0.1)), "dt: expected a positive step"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    monkeypatch.setattr("sciml.problems.finite_elements.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"sciml-torch\[amg\]"):
        FiniteElements()


def test_families_come_from_a_configuration():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--family", type=Family)
    lognormal = {"class_path": "sciml.problems.Lognormal", "init_args": {"contrast": 100.0}}
    space = {"class_path": "sciml.problems.FiniteElements", "init_args": {"cells": 5, "coefficient": lognormal}}
    heat = {"class_path": "sciml.problems.Heat", "init_args": {"space": space, "dt": [0.001, 0.1]}}
    found = parser.instantiate(parser.parse_object({"family": heat}))["family"]
    assert found == Heat(FiniteElements(cells=5, coefficient=Lognormal(contrast=100.0)), dt=(0.001, 0.1))
    assert found.system(0).matrix.shape == (16, 16)
