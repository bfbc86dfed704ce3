import importlib.util
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from types import ModuleType

import h5py
import pytest
import torch
from torch.testing import assert_close

from sciml.data import OperatorData, TensorFields, generate
from sciml.data.seeding import generator
from sciml.errors import DataError
from sciml.problems import Burgers, PeriodicPDE, RandomlyForced

BURGERS = Burgers(points=32, nu=0.05, dt=0.05, t1=0.1)
TIMES = [0.0, 0.1]
ROUNDING = {"rtol": 0, "atol": 2e-6}  # float32, fields of order 1; an FFT may round otherwise in another batch
OWN = """
from sciml.problems import Spiral

RATE = 1.0

class Own(Spiral):
    pass
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def own_problem(path, source):
    """An instance of the class `Own` in a file of the user's."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Own(t1=0.5)


def test_data_are_solutions_and_made_once(monkeypatch):
    path = generate.generate(BURGERS, 3, TIMES, progress=False)
    ts, fields = generate.load(path)
    assert ts.tolist() == TIMES
    assert fields.shape == (3, 2, 1, 32)
    assert_close(fields, BURGERS.evolve(fields[:, 0], ts), **ROUNDING)
    monkeypatch.setattr(Burgers, "evolve", None)
    assert generate.generate(BURGERS, 3, TIMES) == path


def test_whatever_the_data_depend_on_makes_another_file():
    recipes = [
        generate.recipe(BURGERS, 3, TIMES, 0),
        generate.recipe(replace(BURGERS, nu=0.1), 3, TIMES, 0),
        generate.recipe(BURGERS, 4, TIMES, 0),
        generate.recipe(BURGERS, 3, [0.0, 0.05], 0),
        generate.recipe(BURGERS, 3, TIMES, 1),
        generate.recipe(RandomlyForced(BURGERS), 3, TIMES, 0),
        generate.recipe(RandomlyForced(replace(BURGERS, nu=0.1)), 3, TIMES, 0),
        generate.recipe(RandomlyForced(BURGERS, noise_seed=1), 3, TIMES, 0),
    ]
    assert len({generate.cache_file(made_by) for made_by in recipes}) == len(recipes)


def test_generation_in_chunks_equals_generation_at_once(monkeypatch):
    at_once = generate.load(generate.generate(BURGERS, 5, TIMES, progress=False)).fields
    monkeypatch.setattr(type(BURGERS), "chunk", 2)
    generate.cache_file(generate.recipe(BURGERS, 5, TIMES, 0)).unlink()
    in_chunks = generate.load(generate.generate(BURGERS, 5, TIMES, progress=False)).fields
    assert_close(in_chunks, at_once, **ROUNDING)


def interrupt(monkeypatch, calls):
    """Raise KeyboardInterrupt in the call of this number to `evolve`; the list of what each was called with."""
    evolve, seen = Burgers.evolve, []

    def interrupted(self, u0, ts):
        seen.append(u0)
        if len(seen) == calls:
            raise KeyboardInterrupt
        return evolve(self, u0, ts)

    monkeypatch.setattr(Burgers, "evolve", interrupted)
    return seen


def test_interrupted_generation_goes_on_to_the_same_data(monkeypatch, cache):
    monkeypatch.setattr(Burgers, "chunk", 2)
    path = generate.generate(BURGERS, 7, TIMES, progress=False)
    content = path.read_bytes()
    path.unlink()
    seen = interrupt(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        generate.generate(BURGERS, 7, TIMES, progress=False)
    assert not path.exists()
    bar, shown = generate.tqdm, {}
    monkeypatch.setattr(generate, "tqdm", lambda *args, **options: shown.update(options) or bar(*args, **options))
    assert generate.generate(BURGERS, 7, TIMES, progress=False) == path
    assert (shown["total"], shown["initial"]) == (4, 2)
    assert [len(u0) for u0 in seen] == [2, 2, 2, 2, 1]
    assert path.read_bytes() == content
    assert {file.suffix for file in cache.iterdir()} == {".lock", ".h5"}


@pytest.mark.parametrize("other", ["seed", "problem", "chunk"])
def test_chunks_of_other_data_are_not_taken_up(monkeypatch, other):
    monkeypatch.setattr(Burgers, "chunk", 2)
    seen = interrupt(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        generate.generate(BURGERS, 6, TIMES, progress=False)
    problem = replace(BURGERS, nu=0.1) if other == "problem" else BURGERS
    if other == "chunk":
        monkeypatch.setattr(Burgers, "chunk", 3)
    path = generate.generate(problem, 6, TIMES, seed=int(other == "seed"), progress=False)
    assert sum(map(len, seen[3:])) == 6
    _, fields = generate.load(path)
    assert_close(fields, problem.evolve(fields[:, 0], torch.tensor(TIMES)), **ROUNDING)


KILLED = """
import os, signal, sys
from pathlib import Path
from sciml.data import generate
from sciml.problems import Burgers

die = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
evolve, calls = Burgers.evolve, []

def third(*arguments):
    calls.append(arguments)
    return evolve(*arguments) if len(calls) < 3 else die()

def half(path, array):
    with path.open("wb") as file:
        file.write(array.tobytes()[:100])
    die()

Burgers.chunk = 2
changes = {
    "solving": (Burgers, "evolve", third),
    "saving": (Path, "write_bytes", half),
    "joining": (generate, "_hash", die),
    "cleaning": (generate, "rmtree", die),
}
setattr(*changes[sys.argv[1]])
generate.generate(Burgers(points=32, nu=0.05, dt=0.05, t1=0.1), 9, [0.0, 0.1], progress=False)
"""


@pytest.mark.slow
def test_killed_generation_goes_on_to_the_same_data(monkeypatch, cache):
    monkeypatch.setattr(Burgers, "chunk", 2)
    path = generate.generate(BURGERS, 9, TIMES, progress=False)
    content = path.read_bytes()
    path.unlink()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for moment, chunks in (("solving", 2), ("saving", 2), ("solving", 4), ("joining", 5), ("cleaning", 5)):
        done = subprocess.run([sys.executable, "-c", KILLED, moment], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        assert path.exists() == (moment == "cleaning")
        assert len(list(cache.glob(".*.chunks/[0-9]*.f4"))) == chunks
    seen = interrupt(monkeypatch, 0)
    assert generate.generate(BURGERS, 9, TIMES, progress=False) == path
    assert not seen
    assert path.read_bytes() == content
    assert {file.suffix for file in cache.iterdir()} == {".lock", ".h5"}


def test_changed_content_is_refused():
    path = generate.generate(BURGERS, 2, TIMES, progress=False)
    with h5py.File(path, "a") as file:
        file["fields"][1, 1, 0, 7] += 1e-6
    with pytest.raises(ValueError, match="its content does not match its hash; delete it"):
        generate.load(path)


def test_failed_generation_leaves_no_data(monkeypatch, cache):
    monkeypatch.setattr(Burgers, "evolve", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate.generate(BURGERS, 2, TIMES, progress=False)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


@contextmanager
def no_file_above(size):
    """Writing fails as on a full disk, once a file is so large."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("room", "kept"), [(1000, 0), (2000, 4), (4000, 4), (10000, 4)])
def test_generation_that_met_a_full_disk_goes_on(monkeypatch, cache, room, kept):
    """Chunks take 1024 bytes, the 4 of them 4096, and the file 10088."""
    monkeypatch.setattr(Burgers, "chunk", 2)
    seen = interrupt(monkeypatch, 0)
    with no_file_above(room), pytest.raises(OSError, match="File too large"):
        generate.generate(BURGERS, 8, [0.0, 0.05, 0.1, 0.1], progress=False)
    assert len(list(cache.rglob("[0-9]*-*"))) == kept
    assert not list(cache.rglob("*.h5"))
    seen.clear()
    generate.load(generate.generate(BURGERS, 8, [0.0, 0.05, 0.1, 0.1], progress=False))
    assert len(seen) == 4 - kept


def test_cache_that_cannot_be_written_to_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cache: cannot write to it, .*/file'; SCIML_CACHE names another folder"):
        generate.generate(BURGERS, 2, TIMES, progress=False)


def test_editing_an_own_class_or_its_module_makes_new_data(tmp_path):
    path = tmp_path / "own.py"
    first = generate.generate(own_problem(path, OWN), 2, TIMES, progress=False)
    assert generate.generate(own_problem(path, OWN), 2, TIMES, progress=False) == first
    edited = OWN.replace("RATE = 1.0", "RATE = 2.0")
    assert generate.generate(own_problem(path, edited), 2, TIMES, progress=False) != first


def test_editing_an_own_base_class_makes_new_data(tmp_path):
    derived = "from base_of_own import Own as Base\n\n\nclass Own(Base):\n    pass\n"
    files = []
    for source in (OWN, OWN + "# edited\n"):
        own_problem(tmp_path / "base_of_own.py", source)
        problem = own_problem(tmp_path / "own.py", derived)
        files.append(generate.cache_file(generate.recipe(problem, 2, TIMES, 0)))
    assert files[0] != files[1]


def test_tensors_among_the_settings_count_with_all_their_values():
    class Forced:
        def __init__(self, force):
            self.force = force

    Forced.__module__ = "sciml.forced"
    first, second = torch.zeros(5000), torch.zeros(5000)
    second[2500] = 1.0  # in the middle, which `repr` leaves out
    recipes = [generate.recipe(Forced(force), 2, TIMES, 0) for force in (first, second)]
    assert generate.cache_file(recipes[0]) != generate.cache_file(recipes[1])
    with pytest.raises(TypeError, match="'force' is a function"):
        generate.recipe(Forced(lambda x: x), 2, TIMES, 0)


def test_class_without_a_file_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "typed_in", ModuleType("typed_in"))
    own = type("Own", (Burgers,), {"__module__": "typed_in"})
    with pytest.raises(ValueError, match="expected a class that a file defines"):
        generate.recipe(own(), 2, TIMES, 0)


def test_the_second_that_needs_the_same_data_waits_for_the_first(monkeypatch):
    calls, evolve = [], Burgers.evolve

    def slowly(*arguments):
        calls.append(arguments)
        time.sleep(0.3)
        return evolve(*arguments)

    monkeypatch.setattr(Burgers, "evolve", slowly)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: generate.generate(BURGERS, 2, TIMES, progress=False), range(2)))
    assert paths[0] == paths[1]
    assert len(calls) == 1
    generate.load(paths[0])


def test_operator_data_pair_initial_conditions_with_solutions_by_position():
    data = OperatorData(BURGERS, train=3, val=2, test=1, batch_size=2)
    data.prepare_data()
    data.setup("fit")
    inputs, targets = data.part("train")
    assert_close(targets, BURGERS.evolve(inputs, torch.tensor([0.1]))[:, 0], **ROUNDING)
    assert [len(data.part(name)[0]) for name in ("train", "val", "test")] == [3, 2, 1]
    assert torch.equal(data.part("test")[0], data.inputs[-1:])
    assert data.state_dict() == {"content": generate.content(data.file())}


@dataclass(frozen=True)
class Own(Burgers):
    """With settings that have settings."""

    laws: tuple = ()


def test_a_problem_within_a_problem_counts_with_its_class():
    """Settings of two classes may be the same."""

    class Other(PeriodicPDE):
        nu = 0.05

    Other.__module__, Other.__qualname__ = "sciml.other", "Other"
    problems = [RandomlyForced(problem) for problem in (PeriodicPDE(points=32), Other(points=32))]
    first, second = (generate.recipe(problem, 2, TIMES, 0)["settings"]["problem"] for problem in problems)
    assert first["settings"] == second["settings"]
    assert first != second
    laws = [make_dataclass("Law", [("std", float)], namespace={"__module__": f"sciml.{name}"})(1.0) for name in "ab"]
    recipes = [generate.recipe(Own(laws=({"law": law},)), 2, TIMES, 0) for law in laws]
    first, second = (recipe["settings"]["laws"][0]["law"] for recipe in recipes)
    assert first["settings"] == second["settings"] == {"std": 1.0}
    assert first != second


def test_operator_data_start_where_they_are_told():
    data = OperatorData(BURGERS, start=0.05, train=3, val=1, test=1)
    data.setup("fit")
    fields = BURGERS.evolve(BURGERS.initial(5, generator(0, "initial conditions")), torch.tensor([0.05, 0.1]))
    assert_close(torch.stack(data.part("train"), 1), fields[:3], **ROUNDING)
    for start in (0.1, -1.0):
        with pytest.raises(ValueError, match=r"start: expected a time from 0 on and before the targets' 0\.1, got"):
            OperatorData(BURGERS, start=start)


def test_more_samples_than_there_are_are_refused():
    fields = torch.zeros(5, 1, 8)
    with pytest.raises(ValueError, match=r"expected at most the 5 samples there are, got 3 \+ 2 \+ 1"):
        TensorFields(fields, fields, train=3, val=2, test=1).setup("fit")
