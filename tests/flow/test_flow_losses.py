import pytest
import torch

from visiongraft.flow.losses import flow_matching_loss


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 10, 4, generator=g, dtype=torch.float64) for _ in range(3)]


def test_the_true_velocity_has_no_loss():
    _, data, noise = batch()
    assert float(flow_matching_loss(noise - data, data, noise)) == 0


def test_the_masked_loss_is_the_loss_of_the_slice():
    prediction, data, noise = batch()
    mask = torch.arange(10)[None, :, None] < 7
    part = flow_matching_loss(prediction[:, :7], data[:, :7], noise[:, :7])
    assert torch.allclose(flow_matching_loss(prediction, data, noise, mask), part)


def test_values_outside_the_mask_have_no_gradient_even_where_nan():
    prediction, data, noise = batch()
    mask = torch.ones(2, 10, 1, dtype=torch.bool)
    mask[:, 7:] = False
    prediction[:, 7:] = float("nan")
    prediction.requires_grad_()
    loss = flow_matching_loss(prediction, data, noise, mask)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert bool(loss.isfinite()) and bool((gradient[:, 7:] == 0).all()) and bool((gradient[:, :7] != 0).all())


def test_half_precision_is_averaged_in_float32():
    prediction, data, noise = (x.bfloat16() for x in batch())
    loss = flow_matching_loss(prediction, data, noise)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(flow_matching_loss(prediction.double(), data.double(), noise.double())), rel=1e-6)


def test_masks_that_select_nothing_or_do_not_fit_are_refused():
    prediction, data, noise = batch()
    with pytest.raises(ValueError, match="False everywhere"):
        flow_matching_loss(prediction, data, noise, torch.zeros(2, 10, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"\(2, 9, 1\) does not broadcast to \(2, 10, 4\)"):
        flow_matching_loss(prediction, data, noise, torch.ones(2, 9, 1, dtype=torch.bool))
