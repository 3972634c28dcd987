"""softmax_focal_loss, through mmcv, against its definition."""

import pytest
import torch


@pytest.fixture
def focal_loss(plain_ops):
    return plain_ops('focal_loss').softmax_focal_loss


def reference(logits, target, gamma, alpha, weight=None):
    """One row at a time."""
    losses = []
    for row, t in zip(logits.double(), target.tolist(), strict=True):
        p = row.exp()[t] / row.exp().sum()
        loss = -alpha * (1 - p) ** gamma * p.log() * (1 if weight is None else weight[t])
        losses.append(loss if t >= 0 else 0 * loss)
    return torch.stack(losses)


def inputs(rows=20, classes=5, dtype=torch.float64):
    """Logits and targets, some of which are ignored."""
    target = torch.randint(0, classes, (rows,))
    target[:3] = torch.tensor([-1, -1, -100])
    return (2 * torch.randn(rows, classes, dtype=dtype)).requires_grad_(), target


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('alpha', [0.25, 1.0])
@pytest.mark.parametrize('gamma', [2.0, 1.0, 0.5, 0.0])
def test_equals_definition(focal_loss, gamma, alpha, weighted):
    logits, target = inputs()
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    expected = reference(logits, target.clamp(min=-1), gamma, alpha, weight)
    row_losses = focal_loss(logits, target, gamma, alpha, weight, 'none')
    torch.testing.assert_close(row_losses, expected)
    for reduction, right in (('mean', expected.mean()), ('sum', expected.sum())):
        loss = focal_loss(logits, target, gamma, alpha, weight, reduction)
        torch.testing.assert_close(loss, right)
        grads = [torch.autograd.grad(y, logits, retain_graph=True)[0] for y in (loss, right)]
        torch.testing.assert_close(*grads)


def test_gradcheck(focal_loss):
    logits, target = inputs(rows=5)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, target, 1.5, 0.25), logits)


def test_certain_predictions(focal_loss):
    logits = torch.tensor([[200.0, 0], [0, 200]], requires_grad=True)
    for gamma in (0.0, 0.5, 2.0):
        loss = focal_loss(logits, torch.zeros(2, dtype=torch.int64), gamma, 1.0, None, 'none')
        # The smallest normal float32 stands for a probability of 0.
        torch.testing.assert_close(loss, torch.tensor([0, 87.3365]))
        assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(focal_loss, dtype):
    logits, target = inputs(dtype=torch.float32)
    half = logits.detach().to(dtype).requires_grad_()
    weight = torch.rand(5).to(dtype)
    loss = focal_loss(half, target, 2.0, 0.25, weight, 'sum')
    expected = focal_loss(logits, target, 2.0, 0.25, weight.float(), 'sum')
    assert loss.dtype == dtype
    # mmcv computes the softmax in half precision.
    torch.testing.assert_close(loss.float(), expected, rtol=0.05, atol=0.01)
    grads = torch.autograd.grad(loss, half)[0], torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(grads[0].float(), grads[1], rtol=0.05, atol=0.05)


def test_targets_are_checked_and_no_rows_are_allowed(focal_loss):
    with pytest.raises(ValueError, match='5'):
        focal_loss(torch.zeros(2, 5), torch.tensor([4, 5]))
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = focal_loss(logits, torch.zeros(0, dtype=torch.int64), 2.0, 0.25, None, 'sum')
    assert loss == 0 and torch.autograd.grad(loss, logits)[0].shape == (0, 5)
