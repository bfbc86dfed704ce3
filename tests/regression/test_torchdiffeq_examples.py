"""What torchdiffeq's published examples do, written anew from their description: either import gives the same."""

from types import ModuleType

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from sciml.solvers import interop

DTYPE = torch.float64
ADJOINT = pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])


def spiral_truth(t: Tensor, y: Tensor) -> Tensor:
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=DTYPE)
    return y**3 @ matrix


class SpiralField(nn.Module):
    """A small network on the cubes of the state."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).to(DTYPE)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y**3)


def spiral(library: ModuleType, name: str) -> Tensor:
    """ode_demo: learn a spiral from short pieces of it; the losses."""
    torch.manual_seed(0)
    field, odeint = SpiralField(), getattr(library, name)
    ts = torch.linspace(0, 5, 101, dtype=DTYPE)
    with torch.no_grad():
        truth = library.odeint(spiral_truth, torch.tensor([[2.0, 0.0]], dtype=DTYPE), ts, method="dopri5")
    optimizer, losses = torch.optim.RMSprop(field.parameters(), lr=1e-3), []
    for _ in range(5):
        starts = torch.arange(0, 91, 6)
        batch = torch.stack([truth[starts + i] for i in range(10)])  # (t, b, 1, 2)
        loss = (odeint(field, batch[0], ts[:10], rtol=1e-8, atol=1e-10) - batch).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@ADJOINT
def test_a_spiral_is_learnt_alike(name: str):
    ours, theirs = spiral(interop, name), spiral(torchdiffeq, name)
    assert ours[-1] < ours[0]
    # root mean square propagation divides by the gradient, so that its relative errors of 1e-6 enter undamped
    assert (ours - theirs).abs().max() < 1e-5


class BouncingBall(nn.Module):
    """A ball of some radius that loses a fifth of its speed at each bounce; the state carries the radius."""

    def __init__(self):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor([9.8], dtype=DTYPE))
        self.height = nn.Parameter(torch.tensor([10.0], dtype=DTYPE))
        self.speed = nn.Parameter(torch.tensor([0.0], dtype=DTYPE))
        self.log_radius = nn.Parameter(torch.tensor([0.2], dtype=DTYPE).log())
        self.start = nn.Parameter(torch.tensor([0.0], dtype=DTYPE))
        self.loss = nn.Parameter(torch.tensor([0.2], dtype=DTYPE))

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return state[1], -self.gravity, torch.zeros_like(state[2])

    def above(self, t: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        return state[0] - state[2].exp()

    def bounces(self, library: ModuleType, name: str, count: int) -> list[Tensor]:
        """When it touches the floor."""
        state, t, found = (self.height, self.speed, self.log_radius), self.start, []
        for _ in range(count):
            t, states = library.odeint_event(
                self,
                state,
                t,
                event_fn=self.above,
                rtol=1e-8,
                atol=1e-8,
                odeint_interface=getattr(library, name),
            )
            height, speed, radius = (part[-1] for part in states)
            state = (height + 1e-7, -speed * (1 - self.loss), radius)
            found.append(t)
        return found


@ADJOINT
def test_a_ball_bounces_alike(name: str):
    found = []
    for library in (interop, torchdiffeq):
        ball = BouncingBall()
        times = ball.bounces(library, name, 4)
        grads = torch.autograd.grad(times[-1], list(ball.parameters()))
        found.append((torch.stack([t.reshape(()) for t in times]).detach(), torch.cat(grads)))
    (ours, gradient), (theirs, expected) = found
    assert (ours - theirs).abs().max() < 1e-6  # the ball is lifted by 1e-7 after each bounce
    assert (gradient - expected).abs().max() < 1e-4


class Physics(nn.Module):
    """Unknown gravity, floor and restitution, to be learnt from heights over time."""

    def __init__(self):
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(8.0, dtype=DTYPE))
        self.floor = nn.Parameter(torch.tensor([0.3], dtype=DTYPE))
        self.kept = nn.Parameter(torch.tensor(0.5, dtype=DTYPE))

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        _, speed, floor = state
        return speed, -self.gravity * torch.ones_like(speed), torch.zeros_like(floor)

    def simulate(self, library: ModuleType, times: Tensor) -> Tensor:
        """Heights at the times; the event function also ends the search after the last of them."""
        tight = {"rtol": 1e-8, "atol": 1e-8}

        def event(t: Tensor, state: tuple[Tensor, ...]) -> Tensor:
            return torch.zeros_like(t) if t > times[-1] + 1e-7 else state[0] - state[2] ** 2

        t = torch.zeros((), dtype=DTYPE)
        state = (torch.tensor([10.0], dtype=DTYPE), torch.zeros(1, dtype=DTYPE), self.floor)
        heights = [state[0]]
        while t < times[-1]:
            end, states = library.odeint_event(self, state, t, event_fn=event, method="dopri5", **tight)
            inside = times[(times > t) & (times <= end)]
            path = library.odeint(self, state, torch.cat([t.reshape(1), inside]), **tight)
            heights.append(path[0][1:].reshape(-1))
            height, speed, floor = (part[-1] for part in states)
            state, t = (height + 1e-7, -torch.sigmoid(self.kept) * speed, floor), end
        return torch.cat(heights)


def test_physics_is_learnt_alike():
    found = []
    for library in (interop, torchdiffeq):
        model, times = Physics(), torch.linspace(0, 3.5, 36, dtype=DTYPE)
        truth = 10 - 4.9 * times**2
        optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.05), []
        for _ in range(3):
            loss = (model.simulate(library, times) - truth)[:14].abs().mean() + model.simulate(library, times).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        found.append(torch.stack(losses))
    ours, theirs = found
    assert ours[-1] < ours[0]
    assert (ours - theirs).abs().max() < 1e-5


class Flow(nn.Module):
    """A continuous normalising flow: tanh units whose weights depend on time, and the change of the log-density."""

    def __init__(self):
        super().__init__()
        self.width = 8
        self.weights = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 5 * self.width))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        z, _ = state
        with torch.enable_grad():
            z.requires_grad_(True)
            w, u, b = self.weights(t.reshape(1, 1)).reshape(-1).split([2 * self.width, 2 * self.width, self.width])
            dz = torch.tanh(z @ w.reshape(2, -1) + b) @ u.reshape(-1, 2) / self.width
            trace = sum(torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
        return dz, -trace[:, None]


@ADJOINT
@pytest.mark.filterwarnings("error")
def test_a_normalising_flow_is_learnt_alike(name: str):
    found = []
    for library in (interop, torchdiffeq):
        torch.manual_seed(0)
        flow, losses = Flow(), []
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
        base = torch.distributions.MultivariateNormal(torch.zeros(2), 0.1 * torch.eye(2))
        angle = 2 * torch.pi * torch.rand(64, 1)
        data = torch.cat([angle.cos(), angle.sin()], 1) + 0.06 * torch.randn(64, 2)
        for _ in range(3):
            z, change = getattr(library, name)(
                flow, (data, torch.zeros(64, 1)), torch.tensor([4.0, 0.0]), rtol=1e-5, atol=1e-5, method="dopri5"
            )
            loss = -(base.log_prob(z[-1]) - change[-1].reshape(-1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        found.append(torch.stack(losses))
    ours, theirs = found
    assert ours[-1] < ours[0]
    assert (ours - theirs).abs().max() < 1e-2 * theirs.abs().max()  # single precision, three steps of Adam
