"""A trained preconditioner by the run that trained it."""

import os
from dataclasses import dataclass
from functools import cached_property

from sciml.models import LearnedPreconditioner
from sciml.solvers.linear import LinearOperator, Preconditioner, Prepared
from sciml.training.load import load


@dataclass(frozen=True)
class TrainedPreconditioner(Preconditioner):
    """The preconditioner of a run, so that a configuration's solver can name it.

    .. code-block:: yaml

        linear:
          class_path: sciml.solvers.CG
          init_args:
            preconditioner:
              class_path: sciml.training.TrainedPreconditioner
              init_args: {run: runs/fem_preconditioner/1}

    In Python ``CG(sciml.load(run))`` solves alike, and takes networks of your own classes with ``trust=True``; a
    configuration cannot say whom to trust. What names a run by a relative path finds it from the same directory only.

    Args:
        run: a run folder, whose best checkpoint is taken, or a checkpoint file.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is not that of a preconditioner, or names a class of another package.
    """

    run: str | os.PathLike[str]

    def __post_init__(self) -> None:
        """Look at the checkpoint before anything is solved."""
        object.__setattr__(self, "run", os.fspath(self.run))
        self.model  # noqa: B018

    @cached_property
    def model(self) -> LearnedPreconditioner:
        """The network."""
        model = load(self.run)
        if not isinstance(model, LearnedPreconditioner):
            raise ValueError(
                f"run: expected one that trained a LearnedPreconditioner, {self.run!r} has trained a "
                f"{type(model).__name__}; `sciml fit --config fem_preconditioner` trains one"
            )
        return model

    @property
    def fallback(self) -> Preconditioner:  # pyrefly: ignore[bad-override]
        """The network's."""
        return self.model.fallback

    def setup(self, operator: LinearOperator) -> Prepared:
        """The preconditioner that the network makes for a matrix, on the matrix's device."""
        return self.model.to(operator.device).setup(operator)
