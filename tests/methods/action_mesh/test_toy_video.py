import pytest
import torch

from visiongraft.methods.action_mesh.toy_video import CONTEXT_DIM, CONTEXT_TOKENS, coverage, place_features, toy_context


def picture(seed=0, *leading):
    return torch.rand(*leading, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_tokens_are_the_patches_row_by_row():
    frame = picture()
    context = toy_context(frame)
    assert context.shape == (CONTEXT_TOKENS, CONTEXT_DIM) == (16, 24)
    for row in range(4):
        for column in range(4):
            patch = frame[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
            assert torch.allclose(context[4 * row + column, :16], 2 * patch - 1)
    assert torch.equal(context[:, 16:], place_features())


def test_places_differ_and_do_not_depend_on_the_picture():
    places = place_features()
    distance = torch.cdist(places, places) + 9 * torch.eye(16)
    assert float(distance.min()) > 0.5 and places.shape == (16, 8)
    assert torch.equal(toy_context(picture(1))[:, 16:], toy_context(picture(2))[:, 16:])


def test_batches_and_clips_keep_their_axes():
    frames = picture(0, 2, 3)
    context = toy_context(frames)
    assert context.shape == (2, 3, 16, 24) and torch.equal(context[1, 2], toy_context(frames[1, 2]))


def test_alpha_white_and_coverage_tell_the_same():
    mask = (picture() > 0.5).float()
    rgba = torch.cat([torch.rand(3, 16, 16), mask])
    rgb = 0.3 * mask.expand(3, -1, -1) + (1 - mask)
    assert torch.equal(toy_context(rgba), toy_context(mask)) and torch.equal(toy_context(rgb), toy_context(mask))
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 16, 16)
    assert torch.equal(coverage(red), torch.ones(16, 16)) and torch.equal(coverage(torch.ones(3, 16, 16)), torch.zeros(16, 16))


def test_small_frames_on_white_give_their_shares_back():
    share = picture()
    on_white = 0.5 * share.expand(3, -1, -1) + 1 - share
    assert torch.allclose(toy_context(on_white), toy_context(share), atol=1e-6)


def test_larger_frames_are_averaged():
    frame = picture()
    large = frame.repeat_interleave(5, -1).repeat_interleave(3, -2)
    assert torch.allclose(toy_context(large), toy_context(frame), atol=1e-6)


def test_frames_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match=r"1 \(coverage\), 3 \(RGB on white\) or 4 \(RGBA\) channels; got 2"):
        toy_context(torch.zeros(2, 16, 16))
    with pytest.raises(ValueError, match="see 16x16 pixels; got frames of 20x8"):
        toy_context(torch.zeros(1, 8, 20))
