"""Equations of one's own, from the one of the quickstart on: they train, and what is wrong with them is told."""

import re
import sys
from pathlib import Path

import pytest

from sciml import load
from sciml.training import MetricsLogger

QUICKSTART = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()
MISTAKES = """
class Slip(Fisher):
    def residual(self):
        return dt(u) - self.nu * dxx(u)

class Two(Fisher):
    def residual(self):
        return [dt(u), dxx(u)]

class Plain(Fisher):
    def conditions(self):
        return super().conditions() | {"left": lambda x: x}

class Stale(Fisher):
    def __init__(self, lower, upper, names):
        super().__init__(lower, upper, names)
        self.nu = torch.nn.Parameter(torch.tensor(0.01))
        self.rates = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        self.field = torch.nn.Parameter(torch.zeros(99))

    def residual(self):
        return dt(u) - (self.nu + 0.01) * dxx(u)

class Inverse(Stale):
    def residual(self):
        return dt(u) - self.nu * dxx(u) - (lambda x: 2 * self.nu) * u

class Open(Equation):
    def residual(self):
        return dt(u)

class Objects(Fisher):
    def __init__(self, lower, upper, names):
        raise ValueError("nu: expected more")

class System(Fisher):
    def residual(self):
        return dt(u[0]) - dxx(u[1])

    def conditions(self):
        conditions = {name: each._replace(residual=u[1]) for name, each in super().conditions().items()}
        return conditions | {"second": Condition(dt(u[1]) + dxx(u[0]), self.sample)}
"""


@pytest.fixture
def own(fit, monkeypatch):
    """Trains the quickstart's network for two steps on an equation; what is printed."""
    for name in ("my_equation", "mistakes"):  # of another test's folder
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("my_equation.py", "my_pinn.yaml"):
        (text,) = re.findall(rf"^```\w+\n(# {re.escape(name)}\n.*?)^```", QUICKSTART, re.DOTALL | re.MULTILINE)
        Path(name).write_text(text)
    Path("mistakes.py").write_text(
        "from my_equation import *\nfrom my_equation import dt, dxx, u\nfrom sciml.problems import Equation\n"
        + MISTAKES
    )

    def run(equation, *overrides, code=0):
        small = ("--trainer.max_epochs=1", "--data.steps=2", "--data.val=50")
        Path("my.yaml").write_text(Path("my_pinn.yaml").read_text().replace("my_equation.Fisher", equation))
        return fit("run", *small, *overrides, config="my.yaml", code=code)

    return run


def test_equation_of_the_quickstart_trains(own, sciml):
    own("my_equation.Fisher")
    printed = dict(line.split(": ") for line in sciml("test", "run", "--data.test=50").splitlines())
    assert {"test_residual", "test_start", "test_left", "test_right", "test_loss"} == set(printed)


def test_further_equations_of_a_system_are_conditions(own, sciml):
    own("mistakes.System", "--model.net.init_args.out_features=2")
    assert "test_second" in sciml("test", "run", "--data.test=50")


def test_unknown_number_of_an_equation_is_learned(own, sciml):
    steps = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1", "--trainer.log_every_n_steps=1")
    own("mistakes.Inverse", *steps)
    found = load("run", trust=True).equation.nu.item()
    assert found != pytest.approx(0.01)
    first, *_, last = MetricsLogger("run/metrics.csv").rows()
    assert [float(first[f"train_{name}"]) for name in ("nu", "rates_0", "rates_1")] == pytest.approx([0.01, 1, -2])
    assert float(last["val_nu"]) == pytest.approx(found, rel=1e-6)
    printed = dict(line.split(": ") for line in sciml("test", "run", "--data.test=50").splitlines())
    assert float(printed["test_nu"]) == pytest.approx(found, rel=1e-5)  # six digits
    assert "test_field_0" not in printed


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "Two",
            "model.init_args.equation: expected an expression, as dt(u) - dxx(u) from Two.residual(), got a list; the",
        ),
        (
            "Plain",
            "model.init_args.equation: expected Condition(residual, sample) with an expression from Plain.conditions",
        ),
        ("Stale", "model.init_args.equation: expected an expression, as dt(u) - dxx(u) from Stale.residual(), whose"),
        ("Open", "model.equation: Open cannot be made: it has to define dim, inside, plane, sample"),
        ("Objects", "nu: expected more"),
    ],
)
def test_what_an_equation_lacks_is_one_line(own, name, told):
    error = own(f"mistakes.{name}", code=2)
    assert error.splitlines()[-1].startswith(f"sciml: {told}")
    assert "Traceback" not in error
    assert not Path("run").exists()


def test_slip_in_ones_own_code_is_told_as_python_does(own):
    with pytest.raises(AttributeError, match="'Slip' object has no attribute 'nu'") as caught:
        own("mistakes.Slip")
    assert any(entry.name == "residual" for entry in caught.traceback)
    assert not Path("run").exists()
