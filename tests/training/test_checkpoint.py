from types import SimpleNamespace

import pytest
import torch

from sciml.training import Checkpoints


class Trainer(SimpleNamespace):
    """As much of a trainer as a validation needs; notes what is saved."""

    def __init__(self, folder):
        super().__init__(
            default_root_dir=folder,
            sanity_checking=False,
            state=SimpleNamespace(fn="fit"),
            strategy=SimpleNamespace(reduce_boolean_decision=bool),
            global_step=0,
            saved=[],
        )

    def save_checkpoint(self, path):
        self.saved.append((path.name, self.callback_metrics["val_loss"].item()))


@pytest.mark.parametrize(
    ("values", "best"),
    [([3.0, 2.0, 4.0, 1.0], [3.0, 2.0, 1.0]), ([float("nan"), 2.0, float("nan")], [2.0]), ([1.0, 1.0], [1.0])],
)
def test_best_is_written_after_each_improvement(tmp_path, values, best):
    trainer, checkpoints, module = Trainer(tmp_path), Checkpoints(), SimpleNamespace(monitor="val_loss")
    checkpoints.setup(trainer, module, "fit")
    for value in values:
        trainer.callback_metrics = {"val_loss": torch.tensor(value)}
        checkpoints.on_validation_end(trainer, module)
        checkpoints.on_train_end(trainer, module)
    assert [value for name, value in trainer.saved if name == "best.ckpt"] == best


def test_a_validation_apart_from_training_says_nothing_of_the_best(tmp_path):
    trainer, checkpoints, module = Trainer(tmp_path), Checkpoints(), SimpleNamespace(monitor="val_loss")
    trainer.state.fn, trainer.callback_metrics = "validate", {"val_loss": torch.tensor(2.0)}
    checkpoints.on_validation_end(trainer, module)
    assert checkpoints.best is None


def test_best_value_goes_on_with_a_resumed_run(tmp_path):
    checkpoints = Checkpoints()
    checkpoints.load_state_dict({"best": 1.0})
    trainer, module = Trainer(tmp_path), SimpleNamespace(monitor="val_loss")
    trainer.callback_metrics = {"val_loss": torch.tensor(2.0)}
    checkpoints.on_validation_end(trainer, module)
    assert checkpoints.state_dict() == {"best": 1.0}
