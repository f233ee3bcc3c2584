"""Image features: pixels equal to the encoder's own processor, tokens those of the encoder."""

import math

import numpy as np
import pytest
import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from visiongraft.methods.action_mesh.image_features import (
    DINOV2,
    ImagePreparation,
    image_features,
    load_image_encoder,
    preparation_of,
    prepare_images,
)


def processor(edge: int = 256, crop: int = 224, **options: object) -> BitImageProcessor:
    settings = {
        "size": {"shortest_edge": edge},
        "crop_size": {"height": crop, "width": crop},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
    }
    return BitImageProcessor(**(settings | options))


@pytest.fixture(scope="module")
def encoder() -> Dinov2Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14)
        model = Dinov2Model(config).eval()
        torch.nn.init.normal_(model.layernorm.bias)
    return model


@pytest.mark.parametrize("size", [(213, 213), (300, 441), (77, 50), (256, 256), (224, 640)])
def test_pixels_are_those_of_the_processor(size: tuple[int, int]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    theirs = processor()(list(images), return_tensors="pt")["pixel_values"]
    ours = prepare_images(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert ours.shape == (2, 3, 224, 224)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_preparation_is_read_from_a_processor() -> None:
    assert preparation_of(processor()) == DINOV2
    small = preparation_of(processor(32, 28, image_mean=[0.5, 0.5, 0.5]))
    assert small == ImagePreparation(shortest_edge=32, crop=28, mean=(0.5, 0.5, 0.5))
    images = np.random.default_rng(2).integers(0, 256, (1, 40, 61, 3), dtype=np.uint8)
    theirs = processor(32, 28, image_mean=[0.5, 0.5, 0.5])(list(images), return_tensors="pt")["pixel_values"]
    assert torch.allclose(prepare_images(torch.from_numpy(images).permute(0, 3, 1, 2) / 255, small), theirs, atol=1e-5)


def test_one_colour_is_normalised_in_closed_form() -> None:
    pixels = prepare_images(torch.tensor([0.2, 0.4, 1.0])[None, :, None, None].expand(1, 3, 50, 70))
    expected = (torch.tensor([0.2, 0.4, 1.0]) - torch.tensor(DINOV2.mean)) / torch.tensor(DINOV2.std)
    assert torch.allclose(pixels, expected[None, :, None, None].expand_as(pixels), atol=1e-5)


def test_features_are_the_normed_last_hidden_state_whatever_the_chunk(encoder: Dinov2Model) -> None:
    images, preparation = torch.rand(5, 3, 40, 40, generator=torch.Generator().manual_seed(0)), ImagePreparation(shortest_edge=32, crop=28)
    features = image_features(encoder, images, preparation, chunk=2)
    with torch.no_grad():
        output = encoder(pixel_values=prepare_images(images, preparation), output_hidden_states=True)
        hidden = output.hidden_states[-1]
        normed = torch.nn.functional.layer_norm(hidden, (24,), encoder.layernorm.weight, encoder.layernorm.bias, 1e-6)
    assert features.shape == (5, 1 + 4, 24)
    assert torch.allclose(features, normed, atol=1e-5) and not torch.allclose(features, hidden, atol=1e-2)
    assert torch.allclose(features[:, 0], output.pooler_output, atol=1e-5)  # the class token stands first
    assert torch.allclose(features, image_features(encoder, images, preparation), atol=1e-5)
    assert not features.requires_grad


def test_a_folder_gives_the_encoder_back(encoder: Dinov2Model, tmp_path) -> None:
    encoder.save_pretrained(tmp_path)
    loaded = load_image_encoder(str(tmp_path))
    images, preparation = torch.rand(1, 3, 30, 30, generator=torch.Generator().manual_seed(3)), ImagePreparation(shortest_edge=28, crop=28)
    assert torch.equal(image_features(loaded, images, preparation), image_features(encoder, images, preparation))
    assert not loaded.training


def test_the_released_encoder_has_257_tokens_of_1024() -> None:
    config = Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14)
    with torch.device("meta"):
        model = Dinov2Model(config)
        tokens = model(pixel_values=torch.empty(1, 3, DINOV2.crop, DINOV2.crop)).last_hidden_state
    assert tokens.shape == (1, 257, 1024)


def test_bad_preparations_and_values_are_refused(encoder: Dinov2Model) -> None:
    with pytest.raises(ValueError, match="square of 300 pixels cannot be cut from a shorter side of 256"):
        ImagePreparation(crop=300)
    for other in (processor(resample=2), processor(do_center_crop=False), processor(size={"height": 8, "width": 8})):
        with pytest.raises(ValueError, match=r"BitImageProcessor\w* .* does not resize the shortest edge bicubically"):
            preparation_of(other)
    broken = Dinov2Model(encoder.config)
    torch.nn.init.constant_(broken.layernorm.bias, math.nan)
    with pytest.raises(ValueError, match=r"not finite in torch\.float32"):
        image_features(broken, torch.rand(1, 3, 30, 30), ImagePreparation(shortest_edge=28, crop=28))
