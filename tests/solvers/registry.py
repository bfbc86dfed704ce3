"""The steppers that the shared tests run over: a new one is a line here."""

from typing import NamedTuple

from sciml.solvers import (
    ETDRK2,
    ETDRK4,
    RK4,
    SDIRK2,
    TRBDF2,
    AdamsBashforth4,
    AdamsBashforthMoulton4,
    AdamsBashforthMoulton6,
    Bosh3,
    CarpenterKennedy4,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    GaussLegendre4,
    GaussLegendre6,
    Heun,
    Heun3,
    ImplicitEuler,
    ImplicitMidpoint,
    KenCarp4,
    Kvaerno3,
    Kvaerno5,
    Midpoint,
    RadauIIA3,
    RadauIIA5,
    Ralston,
    ReversibleHeun,
    Rodas5P,
    Stepper,
    Taylor,
    Trapezoid,
    Tsit5,
    VelocityVerlet,
    Yoshida4,
)


class Case(NamedTuple):
    stepper: Stepper
    steps: tuple[int, ...]  # numbers of steps on which the order shows, above round-off and within the asymptotic range
    loose: int = 1  # how much further than other methods it may miss a tolerance; `test_order` derives it

    def __str__(self) -> str:
        return type(self.stepper).__name__


EXPLICIT = [
    Case(Euler(), (64, 128, 256, 512)),
    Case(Heun(), (32, 64, 128, 256)),
    Case(Midpoint(), (32, 64, 128, 256)),
    Case(Ralston(), (32, 64, 128, 256)),
    Case(Fehlberg2(), (32, 64, 128, 256), loose=10),
    Case(Heun3(), (16, 32, 64, 128)),
    Case(Bosh3(), (16, 32, 64, 128)),
    Case(RK4(), (16, 32, 64, 128)),
    Case(Dopri5(), (12, 24, 48, 96)),
    Case(Tsit5(), (12, 24, 48, 96)),
    Case(Dopri8(), (6, 9, 12, 18)),
]
LOW_STORAGE = [Case(CarpenterKennedy4(), (16, 32, 64, 128))]
TAYLOR = [Case(Taylor(), (12, 24, 48, 96))]
REVERSIBLE = [Case(ReversibleHeun(), (64, 128, 256, 512))]
MULTISTEP = [
    Case(AdamsBashforth4(), (64, 128, 256, 512)),
    Case(AdamsBashforthMoulton4(), (32, 64, 128, 256)),
    Case(AdamsBashforthMoulton6(), (16, 32, 64, 128)),
]
SYMPLECTIC = [Case(VelocityVerlet(), (40, 80, 160, 320)), Case(Yoshida4(), (40, 80, 160, 320))]  # of separable terms
EXPONENTIAL = [Case(ETDRK2(), (32, 64, 128, 256)), Case(ETDRK4(), (16, 32, 64, 128))]
DIRK = [
    Case(ImplicitEuler(), (64, 128, 256, 512)),
    Case(ImplicitMidpoint(), (16, 32, 64, 128)),
    Case(Trapezoid(), (16, 32, 64, 128)),
    Case(SDIRK2(), (32, 64, 128, 256)),
    Case(TRBDF2(), (16, 32, 64, 128)),
    Case(Kvaerno3(), (16, 32, 64, 128)),
    Case(KenCarp4(), (12, 24, 48, 96)),
    Case(Kvaerno5(), (8, 16, 24, 32)),
]
COLLOCATION = [
    Case(GaussLegendre4(), (8, 16, 24, 32)),
    Case(GaussLegendre6(), (4, 8, 12, 16)),
    Case(RadauIIA3(), (8, 16, 32, 64)),
    Case(RadauIIA5(), (6, 12, 18, 24)),
]
ROSENBROCK = [Case(Rodas5P(), (12, 24, 36, 48))]
IMPLICIT = [*DIRK, *COLLOCATION, *ROSENBROCK]
STEPPERS = [*EXPLICIT, *LOW_STORAGE, *TAYLOR, *REVERSIBLE, *MULTISTEP, *EXPONENTIAL, *IMPLICIT]
ADAPTIVE = [case for case in [*EXPLICIT, *TAYLOR, *REVERSIBLE, *IMPLICIT] if case.stepper.adaptive]
