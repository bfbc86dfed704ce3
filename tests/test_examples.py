import signal
import sys

import pytest
import yaml

from sciml.cli import main
from sciml.training import density
from sciml.training.config import examples
from tests.elsewhere import elsewhere


@pytest.fixture
def few(tmp_path, monkeypatch):
    """An empty folder with an empty cache, what makes a configuration's data few and compiles nothing; all put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(density, "CELLS", 10)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("SCIML_CACHE", str(tmp_path / "cache"))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "SCIML_RUN"):
        monkeypatch.setenv(name, "0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def overrides(path):
        config = yaml.safe_load(path.read_text())
        data, model = (config[part].get("init_args", {}) for part in ("data", "model"))
        small = [f"--data.init_args.{part}=8" for part in ("train", "val", "test") if isinstance(data.get(part), int)]
        return small + ["--model.init_args.compile=false"] * (model.get("compile") is True)

    yield overrides
    for number, handler in handlers.items():
        signal.signal(number, handler)


def fast_dev_run(name, *overrides):
    quiet = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
    return main(["fit", "--config", name, "--trainer.fast_dev_run=true", *quiet, *overrides])


@pytest.mark.parametrize("name", examples())
def test_every_configuration_goes_through_a_fast_dev_run(name, few, capsys):
    code = fast_dev_run(name, *few(examples()[name]))
    output = capsys.readouterr()
    if code and 'pip install "sciml-torch[data]" brings it' in output.err:
        pytest.skip(output.err)
    assert code == 0, output.err
    assert "run folder: runs/" in output.out


QUICK = ("burgers_fno", "digits_ernode", "moons_cnf", "ou_latent_sde", "sine_gordon_100_stde", "spiral_nsde")
FEW = {"spiral_nsde": ("--data.init_args.points=4",)}  # steps end at each, and take long there


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in examples()]
)
def test_every_configuration_goes_through_a_fast_dev_run_on_another_device(name, few, capsys):
    there = ("--trainer.accelerator=elsewhere", "--trainer.inference_mode=false")
    with elsewhere():
        code = fast_dev_run(name, *there, *few(examples()[name]), *FEW.get(name, ()))
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", examples())
def test_every_example_shows_how_to_run_it_and_a_picture(name):
    folder = examples()[name].parent
    text = (folder / "README.md").read_text()
    assert f"sciml fit --config {name}" in text
    pictures = list(folder.glob("*.png"))
    assert pictures
    assert all(f"]({picture.name})" in text for picture in pictures)
