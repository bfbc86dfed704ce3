import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sciml.training import OperatorModule, RelativeL2, relative_l2
from sciml.training.operator import NormalizedOperator, Normalizer


@pytest.fixture
def fields():
    """(6, 3, 5, 4); the last channel is constant."""
    channels = torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(0)).unbind()
    return torch.stack([channels[0], 10 * channels[1] - 3, torch.full_like(channels[2], 7)], 1)


def test_relative_l2_is_the_ratio_of_norms_over_channels_and_points():
    target = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 2.0], [0.0, 0.0]]])  # norms 5 and 2
    prediction = target.clone()
    prediction[0, 1, 0] = 1.0
    prediction[1] *= 1.5
    assert_close(relative_l2(prediction, target), torch.tensor([0.2, 0.5]))
    assert_close(RelativeL2()(prediction, target), torch.tensor(0.35))


def test_relative_l2_has_a_gradient_at_zero_error_and_is_finite_for_a_zero_target():
    target = torch.ones(2, 1, 4)
    prediction = target.clone().requires_grad_()
    RelativeL2()(prediction, target).backward()
    assert prediction.grad.isfinite().all()
    assert relative_l2(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)).item() == 0


def test_relative_l2_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"prediction: expected the target's shape \(2, 1, 4\), got \(2, 4\)"):
        relative_l2(torch.ones(2, 4), torch.ones(2, 1, 4))


def test_normaliser_is_the_identity_until_it_is_fit(fields):
    assert torch.equal(Normalizer()(fields), fields)


def test_normaliser_scales_channels_and_shifts_constant_ones(fields):
    normalizer = Normalizer()
    normalizer.fit(fields)
    normalized = normalizer(fields)
    assert_close(normalized.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    assert_close(normalized.std((0, 2, 3), correction=0), torch.tensor([1.0, 1, 0]))
    assert_close(normalizer.inverse(normalized), fields)


def test_normaliser_counts_only_what_the_mask_has(fields):
    mask = torch.zeros_like(fields, dtype=torch.bool)
    mask[:2] = True
    masked, part = Normalizer(), Normalizer()
    masked.fit(fields, mask)
    part.fit(fields[:2])
    assert_close(masked.mean, part.mean)
    assert_close(masked.std, part.std)


def test_normaliser_takes_its_channels_from_a_checkpoint(fields):
    operator, fresh = (NormalizedOperator(nn.Identity()) for _ in range(2))
    operator.input.fit(fields)
    fresh.load_state_dict(operator.state_dict())
    assert torch.equal(fresh(fields), operator(fields))


def test_a_few_steps_lower_the_loss():
    torch.manual_seed(0)
    module = OperatorModule(nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"))
    module.log = lambda *args, **kwargs: None
    inputs = torch.randn(16, 1, 32)
    batch = inputs, (inputs.roll(1, -1) + inputs.roll(-1, -1)) / 2
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    losses = []
    for step in range(40):
        loss = module.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
