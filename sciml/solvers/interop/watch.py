"""Callbacks of a field, called while its solve marches."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from sciml.solvers.control import Controller, Decision
from sciml.solvers.interop.options import CALLBACKS
from sciml.solvers.stepper import Field, Interval, Step, Stepper
from sciml.typing import Number


@dataclass
class Watch:
    """The callbacks of a field, called while its solve marches and, by their adjoint names, in the backward pass.

    Args:
        func: the field, whose attributes they are.
        unpack: makes the user's state of a flat one.
        moving: whether the times of a grid carry gradients, so that a second pass is taken over it.
    """

    func: Any
    unpack: Callable[[Tensor], Any]
    moving: bool
    phase: str = field(default="before", init=False)
    trial: tuple[Any, ...] = field(default=(), init=False)

    @property
    def names(self) -> set[str]:
        """Those of the forward pass that there are."""
        return {name for name in CALLBACKS if hasattr(self.func, name)}

    @property
    def needed(self) -> bool:
        """Whether there is a callback at all."""
        return bool(self.names) or any(hasattr(self.func, f"{name}_adjoint") for name in CALLBACKS)

    def call(self, name: str) -> None:
        """The callback of this name, if there is one, with (t0, y0, dt) of the trial; dt is positive."""
        callback = getattr(self.func, name, None)
        if callback is not None:
            callback(*self.trial)

    def tried(self, interval: Interval, y: Tensor) -> None:
        """A step is to be taken."""
        t, h = (torch.as_tensor(x, dtype=torch.float64) for x in (interval.t, interval.h))
        self.trial = (t, self.unpack(y), h.abs())
        if self.phase == "march" and not (self.moving and torch.is_grad_enabled()):
            self.call("callback_step")
        elif self.phase == "after" and torch.is_grad_enabled():
            self.call("callback_step_adjoint")
            self.call("callback_accept_step_adjoint")

    def judged(self, accepted: bool) -> None:
        """The march has decided on the last step."""
        self.call("callback_accept_step" if accepted else "callback_reject_step")

    def over(self, stepper: Stepper) -> Stepper:
        """The same stepper, watched."""
        watch, kind = self, type(stepper)

        class Watched(kind):
            def step(self, field: Field, interval: Interval, y: Tensor, carry: Any, dx: Any, full: bool = True) -> Step:
                watch.tried(interval, y)
                return kind.step(self, field, interval, y, carry, dx, full)

        return _as(Watched, stepper)

    def of(self, controller: Controller) -> Controller:
        """The same controller, watched."""
        watch, kind = self, type(controller)

        class Watched(kind):
            def start(self, *args: Any) -> Number:  # pyrefly: ignore[bad-override]
                watch.phase = "march"
                return kind.start(self, *args)

            def decide(self, *args: Any) -> Decision:  # pyrefly: ignore[bad-override]
                verdict = kind.decide(self, *args)
                if self.adaptive:
                    watch.judged(bool(verdict.accept))
                return verdict

        return _as(Watched, controller)


def _as(kind: type, like: Any) -> Any:
    """An instance of a subclass with the same values."""
    return kind(**{entry.name: getattr(like, entry.name) for entry in fields(like) if entry.init})
