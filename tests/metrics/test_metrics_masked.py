import math

import jaxtyping
import pytest
import torch

from visiongraft.metrics.masked import masked_mean, masked_psnr, union_mask


def test_psnr_in_a_mask_is_that_of_the_part():
    g = torch.Generator().manual_seed(0)
    image, truth = torch.rand(2, 3, 8, 16, generator=g), torch.rand(2, 3, 8, 16, generator=g)
    mask = torch.zeros(2, 1, 8, 16, dtype=torch.bool)
    mask[..., 2:5, 3:9] = True
    part = (image - truth)[..., 2:5, 3:9].square().mean((1, 2, 3))
    assert torch.allclose(masked_psnr(image, truth, mask), -10 * part.log10())


def test_a_uniform_error_of_a_tenth_is_20_db():
    truth = torch.full((1, 3, 4, 8), 0.5)
    assert float(masked_psnr(truth + 0.1, truth, torch.ones(1, 1, 4, 8, dtype=torch.bool))) == pytest.approx(20, abs=1e-4)
    assert math.isinf(float(masked_psnr(truth, truth, torch.ones(1, 1, 4, 8, dtype=torch.bool))))


def test_one_union_mask_holds_for_every_frame_of_a_clip():
    truth = torch.full((1, 2, 3, 2, 4), 0.5)
    image = truth.clone()
    image[:, 0, :, :, 0] += 0.2  # frame 0 is wrong where only frame 1 looks
    mask = torch.zeros(1, 2, 1, 2, 4, dtype=torch.bool)
    mask[:, 0, :, :, 1] = True
    mask[:, 1, :, :, 0] = True
    assert union_mask(mask).flatten().tolist() == [True, True, False, False] * 2
    # 2 of 8 masked pixels of the clip are wrong by 0.2
    assert float(masked_psnr(image, truth, union_mask(mask))) == pytest.approx(-10 * math.log10(0.04 / 4), abs=1e-4)
    assert math.isinf(float(masked_psnr(image, truth, mask)))


def test_mean_of_a_map_ignores_what_is_outside():
    values = torch.tensor([[[[1.0, 2.0], [float("nan"), 4.0]]]])
    mask = torch.tensor([[[[True, False], [False, True]]]])
    assert masked_mean(values, mask).tolist() == [2.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i, m: masked_psnr(i, i[..., :4], m[..., :4]), "must have one shape"),
        (lambda i, m: masked_psnr(i * float("nan"), i, m), "without NaN"),
        (lambda i, m: masked_psnr(i * 255, i, m), "got values from .* to 255"),
        (lambda i, m: masked_psnr(i, i, m & (torch.arange(2) == 0).view(2, 1, 1, 1)), "Sample 1 has no pixel inside its mask"),
        (lambda i, m: masked_mean(i[:, :1], m[:, :, :2]), "does not fit values"),
    ],
)
def test_unusable_input_is_refused(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the type checker
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3, 4, 8), torch.ones(2, 1, 4, 8, dtype=torch.bool))
