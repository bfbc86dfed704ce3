from . import calculus as calculus
from . import data as data
from . import models as models
from . import problems as problems
from . import solvers as solvers
from . import training as training
from .errors import SolveError as SolveError
from .errors import Status as Status
from .solvers.adjoint import Discrete as Discrete
from .solvers.control import PID as PID
from .solvers.control import Grid as Grid
from .solvers.event import Event as Event
from .solvers.explicit import Tsit5 as Tsit5
from .solvers.exponential import ETDRK4 as ETDRK4
from .solvers.fold import SaveAt as SaveAt
from .solvers.solve import Solution as Solution
from .solvers.solve import Solver as Solver
from .solvers.solve import solve as solve
from .solvers.term import Semilinear as Semilinear
from .solvers.term import Term as Term
from .training.load import load as load

__version__: str
