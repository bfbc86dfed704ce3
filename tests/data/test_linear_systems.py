import pytest
import torch

from sciml.data import LinearSystems, Source
from sciml.problems import Diffusion, FiniteElements, Heat, Lognormal

GRIDS = Source(Diffusion(coefficient=Lognormal(contrast=(2.0, 100.0))), cells=(8, 16), edge=4)
MESHES = Source(FiniteElements(cells=6), weight=3.0)


def data(**options) -> LinearSystems:
    options = {"train": 40, "val": 2, "test": 1, "scales": [4, 1]} | options
    return LinearSystems({"grids": GRIDS, "meshes": MESHES}, **options)


def examples(part):
    return [example for i in range(len(part)) for example in part[[i]]]


def test_training_draws_families_by_weight_and_sizes_in_their_range():
    part = data().part("train")
    found = examples(part)
    assert part[[3]][0] is found[3]  # made once
    grids = [example for example in found if example.name == "grids"]
    assert 3 <= len(grids) <= 17  # of 40 with probability 1/4: three deviations
    assert {example.operator.shape[-1] for example in grids} == {64, 144, 256}
    assert all(int(example.aggregates.max()) + 1 == example.operator.shape[-1] // 16 for example in grids)
    assert all(example.aggregates is None for example in found if example.name == "meshes")
    assert len({example.operator.compressed.values.sum().item() for example in found}) == 40


def test_parts_to_judge_by_have_every_family_at_every_scale_and_the_same_coefficients():
    part = data().part("val")
    found = examples(part)
    assert [(e.name, e.scale) for e in found] == [(n, s) for s in (1, 4) for n in ("grids",) * 2 + ("meshes",) * 2]
    assert [e.operator.shape[-1] for e in found] == [64, 64, 25, 25, 256, 256, 121, 121]
    contrast = [e.operator.diagonal().max() / e.operator.diagonal().min() for e in found]
    assert contrast[0] != pytest.approx(float(contrast[1]), rel=0.1)
    assert contrast[0] == pytest.approx(float(contrast[4]), rel=0.6)  # one coefficient on two grids
    again, other = (data(data_seed=seed).part("val")[[0]][0] for seed in (0, 1))
    assert torch.equal(again.b, found[0].b)
    assert not torch.equal(other.b, found[0].b)
    assert not torch.equal(data().part("test")[[0]][0].operator.compressed.values, found[0].operator.compressed.values)


def test_held_out_families_are_tested_alone():
    made = data(held_out={"heat": Source(Heat(Diffusion(cells=8)))})
    assert {name for name, _, _ in made.part("test").plan} == {"grids", "meshes", "heat"}
    assert all(name != "heat" for part in ("train", "val") for name, _, _ in made.part(part).plan)
    assert [e.operator.shape[-1] for e in examples(made.part("test")) if e.name == "heat"] == [64, 256]


def test_solutions_solve():
    (example,) = data(solutions=True, correlation=0.3).part("val")[[2]]
    torch.testing.assert_close(example.operator.matvec(example.x), example.b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearSystems({}), "sources: expected at least one family"),
        (lambda: data(train=0), "train: expected at least 1, got 0"),
        (lambda: data(scales=[]), "scales: expected at least 1, got 0"),
        (lambda: data(held_out={"grids": GRIDS}), r"held_out: expected other names than in sources, got \['grids'\]"),
        (lambda: Source(Diffusion(), weight=0.0), "weight: expected a positive number"),
        (lambda: Source(Diffusion(), cells=(9, 8)), "cells: expected two rising numbers"),
        (lambda: Source(Diffusion(), edge=0), "edge: expected a positive number"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
