"""Encoders: the model's own embedding comes out, and nothing that could void a certificate goes in."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from visiongraft.methods.feature_smoothing.encoders import Encoder, check_batch_independent, load_encoder
from visiongraft.methods.feature_smoothing.normalisation import denormalise, normalise, read_normalisation
from visiongraft.methods.feature_smoothing.towers import images_to_rows, rows_to_images

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def own_embedding(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The embedding by the model's own public interface."""
    inputs = {"pixel_values": pixels}
    if "Siglip2" in type(model).__name__:
        inputs = {
            "pixel_values": images_to_rows(pixels, 4),
            "pixel_attention_mask": torch.ones(len(pixels), 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]]).expand(len(pixels), 2),
        }
    if hasattr(model, "get_image_features"):
        return model.get_image_features(**inputs).pooler_output
    output = model(**inputs)
    return output.image_embeds if "image_embeds" in output else output.pooler_output


@pytest.mark.parametrize(
    "name",
    [
        "CLIPVisionModel",
        "CLIPVisionModelWithProjection",
        "CLIPModel",
        "SiglipVisionModel",
        "SiglipModel",
        "Siglip2VisionModel",
        "Siglip2Model",
        "Dinov2Model",
        "Dinov2WithRegistersModel",
    ],
)
def test_readout_of_tokens_is_the_models_own_embedding(tiny_model, name):
    model = tiny_model(name)
    encoder = Encoder.from_transformers(model, MEAN, STD)
    with torch.no_grad():
        embedding = encoder.readout(encoder(images()))
        torch.testing.assert_close(embedding, own_embedding(model, normalise(images(), MEAN, STD)), atol=1e-5, rtol=0)


def test_llava_encoder_gives_the_tokens_that_its_projector_reads(tiny_model):
    model = tiny_model("Llava")
    encoder = Encoder.from_transformers(model, MEAN, STD)
    seen = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model.model.get_image_features(normalise(images(), MEAN, STD))
        tokens = encoder(images())
    assert torch.equal(tokens, seen[0])
    assert (encoder.layer, encoder.drop_cls, encoder.num_prefix_tokens, encoder.grid_size) == (-2, True, 0, (4, 4))
    torch.testing.assert_close(encoder.readout(tokens), tokens.mean(1))


@pytest.mark.parametrize("name", ["CLIPModel", "Dinov2Model", "SiglipVisionModel", "Siglip2Model", "InternVL"])
def test_any_layer_can_be_encoded(tiny_model, name):
    model = tiny_model(name)
    first = Encoder.from_transformers(model, MEAN, STD, layer=0, drop_cls=False)
    last = Encoder.from_transformers(model, MEAN, STD, layer=-1, drop_cls=False)
    with torch.no_grad():
        assert first(images()).shape == last(images()).shape
        assert (first(images()) - last(images())).abs().max() > 1e-3


def test_patch_tokens_are_the_tokens_without_the_prefix(tiny_model):
    model = tiny_model("Dinov2WithRegistersModel")
    whole = Encoder.from_transformers(model, MEAN, STD)
    patches = Encoder.from_transformers(model, MEAN, STD, drop_cls=True)
    with torch.no_grad():
        assert whole.num_prefix_tokens == 5
        assert torch.equal(patches(images()), whole(images())[:, 5:])
        assert patches(images()).shape[1] == 16


def test_callable_vector_becomes_one_token_that_reads_out_as_itself():
    encoder = Encoder(lambda x: x.flatten(1)[:, :7])
    vectors = encoder(images())
    assert vectors.shape == (3, 1, 7)
    assert torch.equal(encoder.readout(vectors), images().flatten(1)[:, :7])


def test_gradients_reach_the_pixels(tiny_model):
    encoder = Encoder.from_transformers(tiny_model("CLIPModel"), MEAN, STD)
    pixels = images().requires_grad_()
    encoder.readout(encoder(pixels)).square().sum().backward()
    assert (pixels.grad.flatten(1).norm(dim=1) > 0).all()


def test_bfloat16_tower_keeps_the_normalisation_exact(tiny_model):
    encoder = Encoder.from_transformers(tiny_model("CLIPModel"), MEAN, STD)
    exact = encoder(images())
    tokens = encoder.to(torch.bfloat16)(images())
    assert tokens.dtype == torch.bfloat16
    assert torch.cosine_similarity(tokens.float().flatten(1), exact.flatten(1)).min() > 0.999


def test_patch_rows_follow_siglip_2s_own_processor_and_invert():
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    pixels = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(2))
    rows = images_to_rows(pixels, 4)
    assert torch.equal(rows[1], torch.from_numpy(convert_image_to_patches(pixels[1].numpy(), 4)))
    assert torch.equal(rows_to_images(nn.functional.pad(rows, (0, 0, 0, 3)), (2, 3), 4), pixels)


def test_normalisation_round_trip():
    torch.testing.assert_close(denormalise(normalise(images(), MEAN, STD), MEAN, STD), images())


def test_wrong_image_size_names_expected_and_given(tiny_model):
    encoder = Encoder.from_transformers(tiny_model("CLIPModel"), MEAN, STD)
    with pytest.raises(ValueError, match=r"expects images of 16x16 pixels .* got 20x16"):
        encoder(torch.rand(1, 3, 20, 16))


def test_wrong_channels_and_integer_pixels_are_refused(tiny_model):
    encoder = Encoder.from_transformers(tiny_model("CLIPModel"), MEAN, STD)
    with pytest.raises(ValueError, match="expects images with 3 channels; got 1"):
        encoder(torch.rand(1, 1, 16, 16))
    with pytest.raises(ValueError, match="Divide 8-bit images by 255"):
        encoder(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_training_mode_is_refused(tiny_model):
    model = tiny_model("CLIPModel")
    encoder = Encoder.from_transformers(model, MEAN, STD)
    with pytest.raises(ValueError, match="stays in eval mode"):
        encoder.train()
    model.train()
    with pytest.raises(ValueError, match=r"training mode.*call model.eval\(\) first"):
        encoder(images())
    with pytest.raises(ValueError, match="training mode"):
        Encoder.from_transformers(model, MEAN, STD)


def test_batch_statistics_in_eval_mode_are_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).eval()
    with pytest.raises(ValueError, match="batch statistics even in eval mode"):
        Encoder(network)


def test_batch_independence_holds_for_a_real_tower_and_catches_centring(tiny_model):
    encoder = Encoder.from_transformers(tiny_model("CLIPModel"), MEAN, STD)
    assert check_batch_independent(encoder, images()) < 1e-4
    with pytest.raises(ValueError, match="images beside it"):
        check_batch_independent(lambda x: encoder(x) - encoder(x).mean(0), images())
    with pytest.raises(ValueError, match="at least two images"):
        check_batch_independent(encoder, images(1))


def test_bad_normalisation_is_refused():
    with pytest.raises(ValueError, match="std above 0"):
        Encoder(lambda x: x.flatten(1), mean=(0.5,), std=(0.0,))
    with pytest.raises(ValueError, match="one number a channel"):
        Encoder(lambda x: x.flatten(1), mean=(0.5, 0.5), std=(1.0,))


def test_several_feature_layers_need_a_choice(tiny_model):
    with pytest.raises(ValueError, match="reads several layers"):
        Encoder.from_transformers(tiny_model("LlavaSiglipTwoLayers"), MEAN, STD)


def save(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return folder


@pytest.mark.parametrize("name", ["CLIPModel", "CLIPVisionModelWithProjection", "Dinov2Model", "SiglipVisionModel"])
def test_a_saved_folder_loads_as_the_same_encoder(tiny_model, tmp_path, name):
    model = tiny_model(name)
    encoder = load_encoder(str(save(model, tmp_path)))
    expected = Encoder.from_transformers(model, MEAN, STD)
    with torch.no_grad():
        assert torch.equal(encoder(images()), expected(images()))
        assert torch.equal(encoder.readout(encoder(images())), expected.readout(expected(images())))


def test_explicit_normalisation_wins_over_the_folders(tiny_model, tmp_path):
    encoder = load_encoder(str(save(tiny_model("CLIPModel"), tmp_path)), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert encoder.mean == (0.5,) * 3


def test_normalisation_is_read_from_either_processor_file(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"image_mean": MEAN, "image_std": STD}}))
    assert read_normalisation(str(tmp_path)) == (MEAN, STD)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"do_normalize": False}}))
    assert read_normalisation(str(tmp_path)) == ((0.0,), (1.0,))


def test_folder_without_processor_asks_for_mean_and_std(tiny_model, tmp_path):
    tiny_model("CLIPModel").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give mean=… and std=…"):
        load_encoder(str(tmp_path))


def test_pickled_weights_are_refused_with_the_reason(tiny_model, tmp_path):
    model = tiny_model("CLIPVisionModel")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pickled weights \(pytorch_model.bin\).*can run any code"):
        load_encoder(str(tmp_path))


def test_damaged_and_incomplete_weights_are_named(tiny_model, tmp_path):
    folder = save(tiny_model("CLIPVisionModel"), tmp_path)
    weights = folder / "model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors.pop("post_layernorm.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of a CLIPVisionModel, such as post_layernorm.weight"):
        load_encoder(str(folder))
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_encoder(str(folder))


def test_model_without_a_vision_tower_is_refused(tmp_path):
    config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    transformers.LlamaModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="No vision tower is known for LlamaModel"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "Unknown encoder 'resnet': give 'small', a folder"),
        ("./nowhere/clip", "Unknown encoder"),
        ("nobody/no-such-model", "neither a folder nor a hub model"),
    ],
)
def test_unknown_encoder_says_what_is_accepted(monkeypatch, name, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=message):
        load_encoder(name)


def test_folder_without_config_or_weights_is_named(tiny_model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_encoder(str(tmp_path))
    tiny_model("CLIPVisionModel").config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no \*.safetensors weights"):
        load_encoder(str(tmp_path))
