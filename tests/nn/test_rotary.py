import math

import pytest
import torch

from visiongraft.nn.rotary import rotate_pairs, rotations


def test_pairs_turn_by_position_times_a_geometric_series():
    x = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    x[..., 0] = x[..., 2] = 1.0  # the first axis of both pairs
    turned = rotate_pairs(x, rotations(torch.tensor([[2.5]], dtype=torch.float64), 4))
    slow = 2.5 * 10_000**-0.5
    expected = torch.tensor([math.cos(2.5), math.sin(2.5), math.cos(slow), math.sin(slow)], dtype=torch.float64)
    torch.testing.assert_close(turned.flatten(), expected)


def test_products_of_queries_and_keys_depend_on_the_difference_of_positions_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 5, 3, 8, generator=generator, dtype=torch.float64)
    positions = torch.tensor([[0.0, 0.5, 3.0, -2.0, 7.25]], dtype=torch.float64)

    def products(shift: float) -> torch.Tensor:
        turns = rotations(positions + shift, 8)
        return torch.einsum("blhd,bmhd->bhlm", rotate_pairs(q, turns), rotate_pairs(k, turns))

    torch.testing.assert_close(products(0.0), products(11.5))
    assert not torch.allclose(products(0.0), torch.einsum("blhd,bmhd->bhlm", q, k))


def test_lengths_stay_and_position_zero_changes_nothing():
    x = torch.randn(2, 4, 3, 6, generator=torch.Generator().manual_seed(1))
    turned = rotate_pairs(x, rotations(torch.arange(8.0).reshape(2, 4), 6))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate_pairs(x, rotations(torch.zeros(2, 4), 6)), x)


def test_axes_between_tokens_and_channels_are_turned_alike():
    x = torch.randn(1, 4, 3, 2, 6, generator=torch.Generator().manual_seed(2))
    turns = rotations(torch.arange(4.0)[None], 6)
    both = rotate_pairs(x, turns)
    for i in range(2):
        torch.testing.assert_close(both[..., i, :], rotate_pairs(x[..., i, :], turns))


def test_half_precision_is_turned_in_float32():
    x = torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(3)).bfloat16()
    turns = rotations(torch.tensor([[1.0, 200.0, 3.5]]), 8)
    assert torch.equal(rotate_pairs(x, turns), rotate_pairs(x.float(), turns).bfloat16())


def test_the_turn_is_differentiable():
    turns = rotations(torch.tensor([[0.0, 1.5]], dtype=torch.float64), 4)
    x = torch.randn(1, 2, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: rotate_pairs(value, turns), x)


def test_odd_heads_are_refused():
    with pytest.raises(ValueError, match="turns pairs of channels; a head has 5"):
        rotations(torch.zeros(1, 1), 5)
