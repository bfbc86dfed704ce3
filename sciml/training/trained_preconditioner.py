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

    In Python ``CG(sciml.load(run))`` is the same.

    Args:
        run: a run folder, whose best checkpoint is taken, or a checkpoint file.
        trust: as in `sciml.load`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is not that of a preconditioner, or names a class that is not trusted.
    """

    run: str | os.PathLike[str]
    trust: bool = False

    def __post_init__(self) -> None:
        """Look at the checkpoint before anything is solved."""
        self.model  # noqa: B018

    @cached_property
    def model(self) -> LearnedPreconditioner:
        """The network."""
        model = load(self.run, self.trust)
        if not isinstance(model, LearnedPreconditioner):
            raise ValueError(
                f"run: expected one that trained a LearnedPreconditioner, {str(self.run)!r} has trained a "
                f"{type(model).__name__}; `sciml fit --config fem_preconditioner` trains one"
            )
        return model

    @property
    def fallback(self) -> Preconditioner:  # pyrefly: ignore[bad-override]
        """The network's."""
        return self.model.fallback

    def setup(self, operator: LinearOperator) -> Prepared:
        """The preconditioner that the network makes for a matrix."""
        return self.model.setup(operator)
