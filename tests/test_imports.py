import subprocess
import sys
from importlib import import_module

import pytest

import sciml


def loaded_after(statement):
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_sciml_is_light():
    assert not {"lightning", "matplotlib", "torch"} & loaded_after("import sciml")


def test_solving_needs_neither_lightning_nor_matplotlib_nor_torch_inductor():
    assert not {"lightning", "matplotlib", "torch._inductor"} & loaded_after("from sciml import solve, Solver, Tsit5")


def test_packages_need_no_import_of_their_own():
    assert "sciml.models.fno" in loaded_after("import sciml; sciml.models.FNO, sciml.calculus.jet")


@pytest.mark.parametrize(
    "package", ["sciml", "sciml.solvers", "sciml.models", "sciml.problems", "sciml.data", "sciml.training"]
)
def test_every_public_name_is_there(package):
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", ["solvers", "models"])
def test_links_at_the_root_are_not_packages(package, monkeypatch):
    root = sciml.__path__[0]
    monkeypatch.syspath_prepend(root)
    with pytest.raises(ImportError, match=f"import sciml.{package}"):
        import_module(package)
