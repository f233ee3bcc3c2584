"""The small models: pipelines of the real classes, their tokenizers, and how autoencoders are trained."""

import pytest
import torch

from visiongraft.methods.panorama import small
from visiongraft.methods.panorama.autoencoders import AutoencoderRecipe, Crops, set_latent_statistics
from visiongraft.methods.panorama.circular import encode_latents
from visiongraft.methods.panorama.image_pipeline import PanoramaImagePipeline
from visiongraft.training import TrainerConfig, train

CAPTIONS = ["a street at noon with a red car", "a room (bright), with a bed"]


def test_same_seed_gives_the_same_weights_and_leaves_global_randomness_alone():
    before = torch.get_rng_state()
    first, second, other = small.small_vae(3), small.small_vae(3), small.small_vae(4)
    assert torch.equal(torch.get_rng_state(), before)
    states = [model.state_dict() for model in (first, second, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_words_of_the_captions_are_one_token_each_and_other_words_are_unknown():
    tokenizer = small.word_tokenizer(CAPTIONS)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a room (bright), with a zebra").input_ids)
    assert tokens.count("<unk>") == 1 and {"▁room", "bright", ")", ","} <= set(tokens)
    assert "▁street" in tokenizer.convert_ids_to_tokens(tokenizer(CAPTIONS[0]).input_ids)


def test_letters_of_a_caption_are_known_to_the_letter_tokenizer():
    tokenizer = small.letter_tokenizer()
    ids = tokenizer("A 360° image of a room (bright), no. 7!").input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]


def test_a_saved_small_pipeline_gives_the_same_panorama(tmp_path):
    pipeline = small.image_pipeline(small.small_vae(0), small.small_transformer(0), CAPTIONS)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    loaded = PanoramaImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    photo = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    made = [
        p(photo, "a street", num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="pt").images
        for p in (pipeline, loaded)
    ]
    assert made[0].shape == (1, 3, small.HEIGHT, 2 * small.HEIGHT)
    assert torch.equal(*made)
    assert loaded.graft == small.image_graft()


def test_circular_encoding_of_the_small_autoencoder_is_nearly_roll_equivariant():
    # its convolutions reach less far than the padding; group normalisation alone sees the whole picture
    vae, graft = small.small_vae(0).eval(), small.image_graft()
    pixels = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        encode = lambda p, circular: encode_latents(vae, p, circular=circular, padding=graft.padding, warn=False)
        latents, rolled, plain, plain_rolled = (encode(p, c) for c in (True, False) for p in (pixels, pixels.roll(64, -1)))
    error = (latents - rolled.roll(-16, -1))[..., [0, -1]].abs().mean()
    plain_error = (plain - plain_rolled.roll(-16, -1))[..., [0, -1]].abs().mean()
    assert error < plain_error / 5


def test_crops_lie_inside_the_picture_and_map_bytes_to_the_signed_range():
    pixels = torch.zeros(2, 3, 8, 16, dtype=torch.uint8)
    pixels[1] = 255
    crops = Crops(pixels, 6)
    assert len(crops) == 2
    assert torch.equal(crops[0], torch.full((3, 6, 6), -1.0)) and torch.equal(crops[1], torch.ones(3, 6, 6))


@pytest.mark.parametrize("video", [False, True])
def test_training_an_autoencoder_lowers_its_loss_and_statistics_normalise_the_latents(video, tmp_path):
    generator = torch.Generator().manual_seed(0)
    shape = (4, 5, 3, 32, 64) if video else (8, 3, 32, 64)
    coarse = torch.rand(*shape[:-2], 4, 8, generator=generator)
    pixels = (coarse.repeat_interleave(8, -1).repeat_interleave(8, -2) * 255).byte()
    vae = small.small_video_vae(0) if video else small.small_vae(0)
    recipe = AutoencoderRecipe(vae, pixels, 16)
    values = (pixels.float() / 127.5 - 1).transpose(1, 2) if video else pixels.float() / 127.5 - 1
    with torch.no_grad():
        before = float((vae.decode(vae.encode(values).latent_dist.mode()).sample - values).abs().mean())
    config = TrainerConfig(output=tmp_path, steps=12, batch_size=2, logger="none", progress=False)
    trained = train(recipe, config)["vae"]
    with torch.no_grad():
        after = float((trained.decode(trained.encode(values).latent_dist.mode()).sample - values).abs().mean())
    assert after < before
    set_latent_statistics(trained, pixels, small.image_graft().padding)
    latents = encode_latents(trained, values, padding=small.image_graft().padding)
    axes = (0, *range(2, latents.dim())) if video else tuple(range(latents.dim()))
    assert latents.mean(axes).abs().max() < 0.02
    assert (latents.std(axes) - 1).abs().max() < 0.05
