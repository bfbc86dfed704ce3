"""Penalties on what a solver itself estimates: errors, stiffness, numbers of steps."""

from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sciml.models.regularizers import Reading, Regularizer
from sciml.solvers.backsolve import Backsolve
from sciml.solvers.control import PID
from sciml.solvers.explicit import Tsit5
from sciml.solvers.fold import SaveAt, Starts
from sciml.solvers.heuristics import ErrorEstimate, Heuristic
from sciml.solvers.local import local_heuristic, step_again
from sciml.solvers.mesh import Mesh
from sciml.solvers.solve import Solution, Solver
from sciml.solvers.term import Diffusive
from sciml.typing import Time

Form = Literal["global", "unbiased", "biased", "reuse"]


class SolverRegularizer(Regularizer):
    """A penalty on the solver's own heuristics: where these are small, it takes few steps.

    - ``"global"``: of all steps of the solve (Pal et al. 2021), under discrete adjoints. It takes no evaluation.
    - The others (Pal et al. 2023) take one step more from a detached state, and go with every adjoint: their gradient
      flows through that step alone. ``"unbiased"``: at a time t ~ U(t0, t1); ``"biased"``: where one of the solver's
      steps starts, each as likely as the others; both with the first size that the solver would choose. ``"reuse"``:
      that of the solver's steps over t ~ U(t0, t1), with its value over its probability, which makes the expectation
      that of the global form (`MaxStiffness` is taken as it is).

    Of stochastic equations ``"global"`` and ``"reuse"`` are there, the latter on the path of the solve.

    Lanes "each" draw a step for every sample; the penalty is the mean over the lanes.

    Args:
        heuristic: `ErrorEstimate` (None takes it), `Stiffness`, `MaxStiffness` or `StepCount`.
        form: of which steps.
        weight: of the penalty.
        final_weight: that at the end of training; None keeps it. On MNIST the papers go from 100 to 10 with the mean
            of E h over the steps, from 5 to 2.5 with its local forms, and take .1 for the largest stiffness.

    Raises:
        ValueError: if the form is none of these, or a weight no number >= 0.

    Reference:
        A. Pal, Y. Ma, V. Shah, C. Rackauckas, Opening the blackbox: accelerating neural differential equations by
        regularizing internal solver heuristics, ICML 2021, arXiv:2105.03918.

        A. Pal, A. Edelman, C. Rackauckas, Locally regularized neural differential equations: some black boxes were
        meant to remain closed!, ICML 2023, arXiv:2303.02262.

    Example:
        >>> import torch
        >>> from sciml.models import MLP, Autonomous, NeuralODE, SolverRegularizer
        >>> ode = NeuralODE(Autonomous(MLP(2, 2)), regularizer=SolverRegularizer(weight=10.0))
        >>> loss = ode(torch.ones(5, 2)).square().mean() + ode.take_penalty()
    """

    def __init__(
        self,
        heuristic: Heuristic | None = None,
        form: Form = "global",
        weight: float = 1.0,
        final_weight: float | None = None,
    ):
        super().__init__(weight, final_weight)
        if form not in get_args(Form):
            raise ValueError(f"form: expected one of {', '.join(get_args(Form))}, got {form!r}")
        self.heuristic, self.form = heuristic or ErrorEstimate(), form

    def fits(self, solver: Solver) -> None:
        """Refuse a solver whose steps it cannot read."""
        stepper, controller = solver.stepper or Tsit5(), solver.controller or PID()
        reason = self.heuristic.refusal(stepper, controller)
        if self.form == "global" and isinstance(solver.adjoint, Backsolve):
            reason = "form='global' reads all steps, which Backsolve does not differentiate; expected form='unbiased'"
        elif self.form == "unbiased" and not stepper.dense:
            reason = f"form='unbiased' reads states within steps, {type(stepper).__name__} has none; expected 'biased'"
        elif self.form in ("unbiased", "biased") and not controller.adaptive:
            reason = f"{type(controller).__name__} has no first step size of its own; expected form='reuse'"
        if reason:
            raise ValueError(f"regularizer: {reason}")

    def reading(self, field: nn.Module, solver: Solver, y0: Tensor, t0: Time, t1: Time) -> Reading:
        """The heuristic of all steps, or of the one that is drawn."""
        if self.form == "global":
            return Reading({"penalty": self.heuristic}, lambda solution: mean(solution.folds["penalty"]))
        start, end = (torch.as_tensor(t, dtype=torch.float64).detach() for t in (t0, t1))
        lanes = y0.shape[:1] if solver.lanes == "each" else ()
        draw = torch.rand(lanes, dtype=torch.float64).to(start.device)
        value = partial(local_heuristic, self.heuristic, field, solver=solver)
        if self.form == "unbiased":
            t = start + draw * (end - start)
            fold = SaveAt(t[..., None])
            return Reading({"state": fold}, lambda s: mean(value(t, s.folds["state"].squeeze(t.ndim), t1=end)))
        again, noisy = self.form == "reuse", isinstance(field, Diffusive)

        def penalty(solution: Solution) -> Tensor:
            mesh = solution.mesh
            if len(mesh.theta) == 1:  # over no time
                return y0.new_zeros(())
            u = draw.to(mesh.theta.device)
            step = over(mesh, u) if again else (u * mesh.count).long().clamp_max(mesh.count - 1)
            t, y = (picked(x, step) for x in solution.folds["starts"])
            if not again:
                return value(t, y, t1=end).mean()
            first, last = (picked(nodes.movedim(0, -1), step) for nodes in (mesh.theta[:-1], mesh.theta[1:]))
            share = last - first  # of the span, its probability
            if noisy:
                found = step_again(self.heuristic, solution, first, last, y)
            else:
                found = value(t, y, h=share * (end - start).to(share))
            return (found / share.to(found) if self.heuristic.reduce == "sum" else found).mean()

        return Reading({"starts": Starts()}, penalty)


def mean(values: Tensor) -> Tensor:
    """The mean over the lanes; 0 of none."""
    return values.mean() if values.numel() else values.sum()


def over(mesh: Mesh, theta: Tensor) -> Tensor:
    """The number of the step (l) in which a fraction of the span (l) lies."""
    return (mesh.theta[1:] <= theta).sum(0).clamp_max(mesh.count - 1)


def picked(x: Any, step: Tensor) -> Tensor:
    """What belongs to one step (l) of x: (n, ...), or (b, n, ...) with a step for every lane."""
    if step.ndim == 0:
        return x[int(step)]
    step = step.to(x.device)
    return x[torch.arange(len(step), device=x.device), step]
