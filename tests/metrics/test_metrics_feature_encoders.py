import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification, ViTModel

from visiongraft.metrics.feature_encoders import FeatureEncoder, load_feature_encoder

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
TINY = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)


def save(model, folder, **processor):
    model.save_pretrained(folder)
    content = {"image_mean": MEAN, "image_std": STD, "size": {"height": 16, "width": 16}} | processor
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


def images(size=16):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def normalised():
    return (images() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.fixture
def clip(tmp_path):
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
    return save(CLIPModel(CLIPConfig(text_config=text, vision_config=TINY, projection_dim=8)), tmp_path / "clip")


def test_clip_gives_its_projected_image_features(clip):
    model = CLIPModel.from_pretrained(clip)
    encoder = load_feature_encoder(clip)
    features = encoder(images())
    assert features.shape == (2, 8) and encoder.description()["pooling"] == "image_features"
    assert torch.allclose(features, model.get_image_features(pixel_values=normalised()).pooler_output, atol=1e-6)


def test_images_of_any_size_are_resized_to_the_models(clip):
    assert load_feature_encoder(clip)(images(40)).shape == (2, 8)


def test_dino_gives_its_class_token(tmp_path):
    model = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)).eval()
    encoder = load_feature_encoder(save(model, tmp_path / "dino"))
    assert torch.allclose(encoder(images()), model(normalised()).pooler_output, atol=1e-6)


def test_a_classifiers_checkpoint_without_pooler_gives_the_mean_token_not_a_random_pooler(tmp_path):
    folder = save(ViTForImageClassification(ViTConfig(**TINY)), tmp_path / "vit")
    encoder = load_feature_encoder(folder)
    assert encoder.description()["pooling"] == "mean"
    assert torch.equal(encoder(images()), load_feature_encoder(folder)(images()))


def test_bytes_and_unit_floats_are_the_same_image(clip):
    pixels = (images() * 255).round().byte()
    encoder = load_feature_encoder(clip)
    assert torch.allclose(encoder(pixels), encoder(pixels / 255))


def test_a_feature_encoder_serves_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    encoder = FeatureEncoder(ViTModel(ViTConfig(**TINY)), MEAN, STD, (16, 16), "pooler")
    metric = fid.FrechetInceptionDistance(feature=encoder, input_img_size=(3, 16, 16))
    metric.update(images(), real=True)
    metric.update(images().flip(0), real=False)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-3)


def test_incomplete_weights_are_refused(clip):
    weights = load_file(clip / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of CLIPModel \(visual_projection\.weight"):
        load_feature_encoder(clip)


def test_a_model_without_normalisation_or_files_is_refused(clip, tmp_path):
    (clip / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="No image_mean, image_std and size found"):
        load_feature_encoder(clip)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub model with safetensors"):
        load_feature_encoder(tmp_path / "nothing")
