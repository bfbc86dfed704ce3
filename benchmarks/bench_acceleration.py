"""What a net is trained on that starts an iteration: the number of iterations, or what is left after k of them.

The iteration is successive over-relaxation on grids of 16 x 16 cells in float64. "relaxation": a net chooses omega for
each system, from what 2 products with its matrix tell of its Jacobi iteration (`RelaxationFactor`). "guess": a net
extrapolates the last three solutions of a sequence in time (`LearnedExtrapolation`), omega is Young's from the 8
products that the net sees. Families: "heat", implicit steps with dt drawn log-uniform, a lognormal coefficient of
contrast 30, and a forcing that turns; "wave", trapezoidal steps likewise; "diffusion", coefficients that jump by 100,
white noise on the right.

The losses, by Arisaka and Li 2023 (arXiv:2206.08594): "iterations", the smoothed count of theirs, to a residual of 1e-4
of the right-hand side within 80 iterations; "residual after k" and "error after k", the mean square of the relative
norm, the baseline of meta-learning ("error after 0" is the regression of solutions). All have the same 256 systems,
net, batches (200 of 16), Adam and schedule; what a loss costs, which grows with its k, is in "CPU s". "600 steps" give
the baseline about the time that the number of iterations takes. Net and loss are in float64 and Adam's eps is 1e-30, so
that the size of a loss, which falls with k by orders of magnitude, is of no consequence. The seed is that of systems,
weights and batches.

Beside them, with the same first guess, the last solution or 0: omega = 1 (Gauss-Seidel), the single omega that is best
for the training systems, Young's of each from 2, 8 and 60 products, and the best of 39 for each, which needs to know
the counts. Beside the guesses: 0, the last solution, the line through the last two, and the combination of the last
three with the least energy of the error (Fischer 1998, Comput. Methods Appl. Mech. Engrg. 163, 193-204), which takes 3
products.

Measures on 128 systems that no training saw: mean iterations to 1e-4, the most, and the mean to 1e-8, which no net was
trained for; at most 300, one more where that is not enough. "products" are those with the matrix before the first
iteration, which cost about as much as one; "total" is both. "residual k": geometric mean of the relative residual after
k iterations; "rms k": root of the mean square, the baseline's own measure where it was trained for k.
`draw_acceleration.py` makes the picture of the rows.
"""

import math
import time
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from sciml.data import RandomSystems
from sciml.models import LearnedExtrapolation, MetaSolver, RelaxationFactor
from sciml.models.acceleration import Start
from sciml.problems import Diffusion, Heat, Lognormal, TwoPhase, Wave
from sciml.solvers.linear import BlockSystems, History, UnrolledSOR, jacobi_radii, young
from sciml.training import AfterIterations, IterationCount
from sciml.training.acceleration import best_omega
from sciml.training.iteration_loss import IterationLoss

TOLERANCE, FINE, STEPS, BATCH, LIMIT = 1e-4, 1e-8, 200, 16, 300
LONGER = 600  # steps that take about as long as STEPS on the number of iterations
LANCZOS = {"relaxation": 2, "guess": 8}  # products
KINDS = {"heat": ("relaxation", "guess"), "wave": ("guess",), "diffusion": ("relaxation",)}
LEARNED: dict[str, Callable[[], IterationLoss]] = {
    "iterations": partial(IterationCount, TOLERANCE, 80),
    **{f"residual after {k}": partial(AfterIterations, k) for k in (0, 1, 2, 4, 8, 16, 32, 64)},
    **{f"error after {k}": partial(AfterIterations, k, "error") for k in (0, 16)},
    **{f"residual after {k}, {LONGER} steps": partial(AfterIterations, k) for k in (0, 16)},
}
UNLEARNED = {
    "relaxation": ("Gauss-Seidel", "best fixed", "Young 2", "Young 8", "Young 60", "best of each"),
    "guess": ("zero", "last", "line", "projection"),
}


def cases() -> list[str]:
    found = []
    for family, kinds in KINDS.items():
        for kind in kinds:
            learned = [name for name in LEARNED if kind == "guess" or "after 0" not in name]
            found += [f"{family}, {kind}, {name}" for name in (*UNLEARNED[kind], *learned)]
    return found


def run(case: str, seed: int) -> dict[str, float | str]:
    family, kind, name = case.split(", ", 2)
    systems = BlockSystems.join(data(family, seed).part("test"))
    if name not in LEARNED:
        return judged(systems, *plain(kind, name, systems, family, seed))
    net, seconds = trained(family, kind, LEARNED[name](), seed, LONGER if str(LONGER) in name else STEPS)
    with torch.no_grad():
        return {**judged(systems, net(systems), LANCZOS[kind]), "CPU s": seconds}


@cache
def data(family: str, seed: int) -> RandomSystems:
    rough = Diffusion(cells=16, coefficient=Lognormal(contrast=30.0, correlation=0.2))
    families = {
        "heat": partial(Heat, rough, dt=(1e-3, 1e-1)),
        "wave": partial(Wave, rough, dt=(1e-2, 1.0)),
        "diffusion": partial(Diffusion, cells=16, coefficient=TwoPhase(contrast=100.0, correlation=0.15)),
    }
    found = RandomSystems(families[family](), train=256, val=1, test=128, length=8, history=3, data_seed=seed)
    found.setup("fit")
    return found


def trained(family: str, kind: str, loss: IterationLoss, seed: int, steps: int) -> tuple[MetaSolver, float]:
    """The net, and the CPU time of its training."""
    systems, method = data(family, seed).part("train"), UnrolledSOR()
    torch.manual_seed(seed)
    net: MetaSolver = (
        RelaxationFactor(LANCZOS[kind]) if kind == "relaxation" else LearnedExtrapolation(3, LANCZOS[kind])
    )
    net.double()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2, eps=1e-30)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps, cycle_momentum=False)
    draw, began = torch.Generator().manual_seed(seed), time.process_time()
    for _ in range(steps):
        chosen = torch.randint(len(systems), (BATCH,), generator=draw).tolist()
        batch = BlockSystems.join([systems[i] for i in chosen])
        start = net(batch)
        optimiser.zero_grad()
        loss(method.run(batch, loss.steps, start.omega, start.x0, loss.measure == "error")).backward()
        optimiser.step()
        schedule.step()
    return net, time.process_time() - began


def plain(kind: str, name: str, systems: BlockSystems, family: str, seed: int) -> tuple[Start, int]:
    """What nobody has to learn, and the products it takes."""
    omegas: dict[str, tuple[Callable[[], Tensor], int]] = {
        "Gauss-Seidel": (lambda: every(systems, 1.0), 0),
        "best fixed": (lambda: every(systems, fixed(family, seed)), 0),
        **{f"Young {n}": (lambda n=n: young(jacobi_radii(systems, n)[-1]), n) for n in (2, 8, 60)},
        "best of each": (lambda: best_of_each(systems), 0),
    }
    find, products = omegas[name if name in omegas else f"Young {LANCZOS[kind]}"]
    omega, u, dt = find(), systems.previous, systems.dt
    if name == "zero":
        return Start(omega, torch.zeros_like(systems.b)), products
    if name == "line" and u is not None and dt is not None:
        return Start(omega, u[0] + (dt[:, 0] / dt[:, 1])[systems.owner] * (u[0] - u[1])), products
    if name == "projection" and u is not None:
        return Start(omega, projected(systems, u)), products + len(u)
    return Start(omega, systems.x0), products


def every(systems: BlockSystems, omega: float) -> Tensor:
    return systems.b.new_full((len(systems),), omega)


@cache
def fixed(family: str, seed: int) -> float:
    return best_omega(BlockSystems.join(data(family, seed).part("train")), UnrolledSOR(), TOLERANCE)


def best_of_each(systems: BlockSystems) -> Tensor:
    tried = [2 * (i + 1) / 40 for i in range(39)]
    runs = [UnrolledSOR().run(systems, LIMIT, every(systems, omega)) for omega in tried]
    counts = torch.stack([history.iterations(TOLERANCE) for history in runs])
    return torch.tensor(tried, dtype=systems.b.dtype)[counts.argmin(0)]


def projected(systems: BlockSystems, u: Tensor) -> Tensor:
    """The combinations of vectors (q, n) whose errors have the least energy."""
    products = systems.matrix.product(u)
    gram = torch.stack([torch.stack([systems.sums(a * b) for b in products], -1) for a in u], -2)
    right = torch.stack([systems.sums(a * systems.b) for a in u], -1)
    scale = gram.diagonal(dim1=1, dim2=2).rsqrt()  # of vectors that are nearly the same one
    c = (
        torch.linalg.pinv(scale[:, :, None] * gram * scale[:, None], rtol=1e-12, hermitian=True)
        @ (scale * right)[..., None]
    )
    return ((scale[..., None] * c)[systems.owner, :, 0].mT * u).sum(0)


def judged(systems: BlockSystems, start: Start, products: int) -> dict[str, float | str]:
    history = UnrolledSOR().run(systems, LIMIT, start.omega, start.x0)
    count = history.iterations(TOLERANCE)
    return {
        "products": float(products),
        "total": products + float(count.double().mean()),
        "iterations": float(count.double().mean()),
        "most": float(count.max()),
        "iterations to 1e-8": float(history.iterations(FINE).double().mean()),
        **{f"residual {k}": left(history, k)[0] for k in (8, 16, 32, 64)},
        **{f"rms {k}": left(history, k)[1] for k in (8, 16, 32, 64)},
    }


def left(history: History, k: int) -> tuple[float, float]:
    """Geometric mean and root mean square of the residuals after k iterations."""
    r = history.residuals[k].clamp_min(1e-300)
    return math.exp(float(r.log().mean())), float(r.square().mean().sqrt())
