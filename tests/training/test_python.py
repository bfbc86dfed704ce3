"""The parts of a run put together in Python, without the command line."""

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sciml import load
from sciml.data import TensorFields
from sciml.training import AtomicCheckpointIO, Checkpoints, Figures, MetricsLogger, OperatorModule, RunFolder


@pytest.fixture
def data():
    inputs = torch.randn(12, 2, 8, generator=torch.Generator().manual_seed(0)) * 3 + 5
    return TensorFields(inputs, inputs[:, :1] * 100, train=8, val=2, test=2, batch_size=4)


def trainer(folder, epochs=1):
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[Checkpoints(), Figures()],
        logger=MetricsLogger(RunFolder(folder).metrics),
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )


@pytest.fixture
def train(tmp_path, data):
    def run(epochs, checkpoint=None):
        torch.manual_seed(0)
        module = OperatorModule(nn.Conv1d(2, 1, 1))
        trainer(tmp_path, epochs).fit(module, data, ckpt_path=checkpoint)
        return module

    return run


# What Lightning itself does is no matter of this test.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_checkpoints_load_as_plain_data_and_resume(train, tmp_path):
    whole = train(3).state_dict()
    run = RunFolder(tmp_path)
    assert torch.load(run.last, weights_only=True)["global_step"] == 6
    with pytest.raises(ValueError, match="holds no configuration"):
        load(tmp_path)
    train(2)
    resumed = train(3, run.last).state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_lightning_finds_the_best_checkpoint(tmp_path, data):
    torch.manual_seed(0)
    module, run = (
        OperatorModule(nn.Conv1d(2, 1, 1), optimizer=lambda p: torch.optim.SGD(p, lr=3.0)),
        trainer(tmp_path, 4),
    )
    run.fit(module, data)
    (last,), (best,) = (run.validate(module, data, ckpt_path=path, verbose=False) for path in (None, "best"))
    assert best["val_relative_l2"] == run.checkpoint_callback.best < last["val_relative_l2"]


def test_data_without_parts_are_trained_on_and_not_drawn(tmp_path, data):
    class Plain(lightning.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(*data.part("train")), 4)

        val_dataloader = train_dataloader

    data.setup("fit")
    module = OperatorModule(nn.Conv1d(2, 1, 1))
    with pytest.warns(UserWarning, match=r"figures: not all could be drawn; .* AttributeError: 'Plain'"):
        trainer(tmp_path).fit(module, Plain())
    assert [path.name for path in RunFolder(tmp_path).figures.iterdir()] == ["learning_curve.png"]
    assert module.training


def test_normaliser_comes_from_the_training_part_and_into_the_checkpoint(train, data, tmp_path):
    module = train(1)
    inputs, targets = data.part("train")
    operator = module.operator
    torch.testing.assert_close(operator.input.mean.flatten(), inputs.mean((0, 2)))
    torch.testing.assert_close(operator.output.std.flatten(), targets.std((0, 2), correction=0))
    fresh = OperatorModule(nn.Conv1d(2, 1, 1))
    fresh.load_state_dict(torch.load(RunFolder(tmp_path).last, weights_only=True)["state_dict"])
    assert torch.equal(fresh(inputs), module(inputs))


def test_a_test_keeps_the_metrics_of_the_training(train, data, tmp_path):
    module, run = train(2), RunFolder(tmp_path)
    rows = MetricsLogger(run.metrics).rows()
    for checkpoint in (None, run.last, run.best):
        trainer(tmp_path).test(module, data, ckpt_path=checkpoint, verbose=False)
    kept = MetricsLogger(run.metrics).rows()
    assert [{name: row[name] for name in rows[0]} for row in kept[: len(rows)]] == rows
    assert [float(row["test_relative_l2"]) > 0 for row in kept[len(rows) :]] == [True] * 3


def test_loaders_take_the_place_of_a_data_module(data, tmp_path):
    data.setup("fit")
    module = OperatorModule(nn.Conv1d(2, 1, 1))
    trainer(tmp_path).fit(module, data.train_dataloader(), data.val_dataloader())
    assert [path.name for path in RunFolder(tmp_path).figures.iterdir()] == ["learning_curve.png"]


def test_overfitting_meets_the_first_batches_in_every_epoch(data, tmp_path):
    data.setup("fit")
    data.trainer = lightning.Trainer(overfit_batches=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    first, second = (next(iter(data.train_dataloader()))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, data.part("train")[0][:4])


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save({"state_dict": nn.Linear(1, 1)}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load(tmp_path / "bad.ckpt")


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"a": lambda: None}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_leave_a_module_in_its_precision(tmp_path, data):
    module = OperatorModule(nn.Conv1d(2, 1, 1)).to(torch.bfloat16)
    data.setup("fit")
    run = trainer(tmp_path)
    run.datamodule = data
    Figures().on_fit_end(run, module)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert (tmp_path / "figures" / "prediction.png").is_file()
