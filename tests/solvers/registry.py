"""The steppers that the shared tests run over: a new one is a line here."""

from typing import NamedTuple

from sciml.solvers import ETDRK2, ETDRK4, RK4, Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Stepper, Tsit5


class Case(NamedTuple):
    stepper: Stepper
    steps: tuple[int, ...]  # numbers of steps on which the order shows, above round-off and within the asymptotic range

    def __str__(self) -> str:
        return type(self.stepper).__name__


EXPLICIT = [
    Case(Euler(), (64, 128, 256, 512)),
    Case(Heun(), (32, 64, 128, 256)),
    Case(Midpoint(), (32, 64, 128, 256)),
    Case(Bosh3(), (16, 32, 64, 128)),
    Case(RK4(), (16, 32, 64, 128)),
    Case(Dopri5(), (12, 24, 48, 96)),
    Case(Tsit5(), (12, 24, 48, 96)),
    Case(Dopri8(), (6, 9, 12, 18)),
]
EXPONENTIAL = [Case(ETDRK2(), (32, 64, 128, 256)), Case(ETDRK4(), (16, 32, 64, 128))]
STEPPERS = [*EXPLICIT, *EXPONENTIAL]
ADAPTIVE = [case for case in EXPLICIT if case.stepper.adaptive]
