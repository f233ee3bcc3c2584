import pytest
import torch

from visiongraft.worlds.captioned import (
    CLASS_PROMPTS,
    FIRST_PHOTOGRAPH,
    FIRST_SHAPE,
    held_out_images,
    training_images,
)
from visiongraft.worlds.scans import PHOTOGRAPHS, photograph, photograph_crops, scanned_digits
from visiongraft.worlds.shapes import COLOURS, SHAPES, coloured_shapes


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shapes_have_the_colours_their_captions_name():
    images, kinds, captions = coloured_shapes(60, 32, seeded())
    for image, kind, caption in zip(images, kinds, captions, strict=True):
        _, ink, shape, _, _, ground, _ = caption.split()
        assert shape == SHAPES[kind]
        assert torch.allclose(image[:, 0, 0], torch.tensor(COLOURS[ground]), atol=1e-6)
        to_ink = (image - torch.tensor(COLOURS[ink]).view(3, 1, 1)).abs().amax(0)
        assert (to_ink < 1e-5).sum() > 20


def test_area_of_a_disc_is_that_of_its_anti_aliased_mask():
    images, kinds, captions = coloured_shapes(200, 64, seeded(1))
    discs = (kinds == SHAPES.index("disc")).nonzero()[:, 0]
    # radius 0.9 times a scale of 0.6 to 0.85, on a square of side 2: between pi 0.54^2 / 4 and pi 0.765^2 / 4
    for i in discs.tolist():
        _, ink, _, _, _, ground, _ = captions[i].split()
        a, b = torch.tensor(COLOURS[ink]), torch.tensor(COLOURS[ground])
        cover = ((images[i] - b.view(3, 1, 1)) * (a - b).view(3, 1, 1)).sum(0) / ((a - b) ** 2).sum()
        assert 0.229 - 0.005 < cover.mean().item() < 0.4596 + 0.005


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    first, again, other = (coloured_shapes(4, 16, seeded(s))[0] for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_scan_splits_are_disjoint_and_complete():
    train, test = scanned_digits("train", 8), scanned_digits("test", 8)
    assert (len(train[0]), len(test[0])) == (1347, 450)
    from sklearn.datasets import load_digits

    assert torch.bincount(torch.cat([train[1], test[1]])).tolist() == [int((load_digits().target == d).sum()) for d in range(10)]


def test_a_scan_at_its_own_size_is_the_scan():
    from sklearn.datasets import load_digits

    images, _ = scanned_digits("test", 8)
    assert torch.allclose(images[1, 0] * 16, torch.tensor(load_digits().images[4]).float(), atol=1e-4)


def test_crops_come_from_the_photographs_they_name():
    crops, index = photograph_crops(8, 16, seeded())
    for crop, i in zip(crops, index.tolist(), strict=True):
        whole = photograph(PHOTOGRAPHS[i]).mean((1, 2))
        assert (crop.mean((1, 2)) - whole).norm() < 0.35
        assert crop.min() >= 0 and crop.max() <= 1


def test_training_captions_are_true_of_their_class():
    data = training_images(0, digits=6, shapes=6, photographs=3)
    for label, caption in zip(data.labels.tolist(), data.captions, strict=True):
        kind = SHAPES[label - FIRST_SHAPE] if FIRST_SHAPE <= label < FIRST_PHOTOGRAPH else None
        assert caption == CLASS_PROMPTS[label] or kind in caption


def test_held_out_shapes_differ_from_training_and_between_seeds():
    first, second = held_out_images(0, digits=0, shapes=20), held_out_images(1, digits=0, shapes=20)
    assert not torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.pixels, held_out_images(0, digits=0, shapes=20).pixels)


@pytest.mark.parametrize(
    ("call", "message"), [(lambda: scanned_digits("valid", 8), "split"), (lambda: photograph("dog"), "must be one of")]
)
def test_unknown_names_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
