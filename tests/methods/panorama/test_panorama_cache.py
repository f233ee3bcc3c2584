import warnings

import pytest
import torch
from test_panorama_data import world, write_video
from torch import nn

from visiongraft.media.images import save_image
from visiongraft.methods.panorama import small
from visiongraft.methods.panorama.cache import TensorCache, model_identity
from visiongraft.methods.panorama.circular import encode_latents
from visiongraft.methods.panorama.data import PanoramaFolder, list_panoramas
from visiongraft.methods.panorama.encoded import EncodedFolder, PairEncoder

CAPTIONS = ["a room with waves"]
GRAFT = small.image_graft(height=32, condition_size=16)


class Cut(BaseException):
    """Ends the filling of a cache where a test wants it."""


@pytest.fixture
def cache(tmp_path):
    return TensorCache(tmp_path / "cache")


@pytest.fixture
def panoramas(tmp_path):
    for name, turn in (("a.png", 0.0), ("b.png", 1.0)):
        save_image(world(turn=turn), tmp_path / "data" / name)
    (tmp_path / "data" / "a.txt").write_text(CAPTIONS[0])
    return tmp_path / "data"


def image_pipeline(vae_seed: int = 0):
    return small.image_pipeline(small.small_vae(vae_seed), small.small_transformer(0), CAPTIONS, GRAFT)


def encoded(folder, cache, *, pipeline=None, graft=GRAFT, draws=2, yaw_multiple=1, roll=False, dtype=torch.float32) -> EncodedFolder:
    pairs = PanoramaFolder(list_panoramas(folder, graft.mode), graft, draws=draws, yaw_multiple=yaw_multiple)
    return EncodedFolder(pairs, PairEncoder(pipeline or image_pipeline(), graft, cache, dtype), roll)


def entries(cache):
    return sorted(cache.folder.rglob("*.safetensors"))


def test_entry_is_read_as_it_was_written(cache):
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4).bfloat16(), "c": torch.tensor(3)}
    cache.write({"file": "x", "yaw": 3}, tensors)
    read = cache.read({"yaw": 3, "file": "x"})

    assert read is not None and read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)
    assert cache.read({"file": "x", "yaw": 4}) is None


def test_hit_computes_nothing_and_leaves_the_same_bytes(cache):
    calls = []

    def compute():
        calls.append(1)
        return {"a": torch.randn(3)}

    first = cache.get({"k": 1}, compute)
    content = entries(cache)[0].read_bytes()
    second = cache.get({"k": 1}, compute)

    assert torch.equal(first["a"], second["a"]) and len(calls) == 1
    assert entries(cache)[0].read_bytes() == content


@pytest.mark.parametrize("damage", ["cut", "one bit flipped", "empty", "of another key"])
def test_damaged_entry_is_computed_again_with_a_warning(damage, cache):
    cache.write({"k": 1}, {"a": torch.zeros(50)})
    path = cache.path({"k": 1})
    content = bytearray(path.read_bytes())
    if damage == "of another key":
        cache.write({"k": 2}, {"a": torch.ones(50)})
        content = bytearray(cache.path({"k": 2}).read_bytes())
    elif damage == "one bit flipped":
        content[-9] ^= 1
    else:
        content = content[: len(content) // 2] if damage == "cut" else bytearray()
    path.write_bytes(content)

    with pytest.warns(UserWarning, match="The cache entry .* is damaged .* and is computed again"):
        again = cache.get({"k": 1}, lambda: {"a": torch.full((50,), 7.0)})
    assert torch.equal(again["a"], torch.full((50,), 7.0))
    assert torch.equal(cache.read({"k": 1})["a"], torch.full((50,), 7.0))


def test_models_are_told_apart_by_weights_and_configuration():
    same, again, other = (small.small_vae(seed) for seed in (0, 0, 1))
    assert model_identity(same) == model_identity(again) != model_identity(other)
    again.register_to_config(scaling_factor=0.5)
    assert model_identity(again) != model_identity(same)


def test_sample_is_the_encoded_pair(panoramas, cache):
    samples = encoded(panoramas, cache)
    samples.prepare(progress=False)
    pair, vae = samples.pairs[1], samples.encoder.pipeline.vae
    sample = samples[1]

    with torch.no_grad():
        panorama = encode_latents(vae, 2 * pair.panorama[None] - 1, padding=GRAFT.padding)[0]
        condition = encode_latents(vae, 2 * pair.condition[None] - 1, circular=False)[0]
        caption, words = "A 360° image of a room with waves", small.TEXT_LENGTH
        embeds, pooled, _ = samples.encoder.pipeline.encode_prompt(caption, max_sequence_length=words)
    assert torch.equal(sample["panorama"], panorama) and torch.equal(sample["condition"], condition)
    assert torch.equal(sample["prompt_embeds"], embeds[0]) and torch.equal(sample["pooled_prompt_embeds"], pooled[0])


def test_second_preparation_encodes_nothing(panoramas, cache, monkeypatch):
    encoded(panoramas, cache).prepare(progress=False)
    before = {path: path.read_bytes() for path in entries(cache)}
    again = encoded(panoramas, cache)
    monkeypatch.setattr(again.encoder, "_encode", None)
    monkeypatch.setattr(again.encoder, "_embed", None)
    again.prepare(progress=False)

    assert len(again) == 4 and len(before) == 10  # 4 panoramas, 4 inputs, the caption and the empty one
    assert {path: path.read_bytes() for path in entries(cache)} == before


def test_other_autoencoder_padding_size_or_dtype_shares_no_latents(panoramas, cache):
    first = encoded(panoramas, cache, draws=1)
    first.prepare(progress=False)
    others = [
        encoded(panoramas, cache, draws=1, pipeline=image_pipeline(vae_seed=1)),
        encoded(panoramas, cache, draws=1, graft=GRAFT.changed(min_pad=8)),
        encoded(panoramas, cache, draws=1, graft=GRAFT.changed(height=64)),
        encoded(panoramas, cache, draws=1, dtype=torch.bfloat16),
    ]
    known = {tuple(map(str, first._keys(0)))}
    for other in others:
        with pytest.raises(ValueError, match=r"The cache .* has no whole entries for .*a\.png; start the training again to fill it"):
            other[0]
        other.prepare(progress=False)
        known.add(tuple(map(str, other._keys(0))))
    assert len(known) == 5
    assert others[3][0]["panorama"].dtype == torch.bfloat16
    assert not torch.equal(others[0][0]["panorama"], first[0]["panorama"])


def test_other_text_encoder_shares_no_embeddings(panoramas, cache):
    first, second = encoded(panoramas, cache), encoded(panoramas, cache)
    encoder = second.encoder.pipeline.text_encoder_2
    with torch.no_grad():
        encoder.shared.weight[0] += 1
    changed = PairEncoder(second.encoder.pipeline, GRAFT, cache)
    assert first.encoder.caption_key("a") == second.encoder.caption_key("a") != changed.caption_key("a")


def test_interrupted_filling_continues(panoramas, cache):
    whole = TensorCache(cache.folder.parent / "whole")
    encoded(panoramas, whole).prepare(progress=False)
    cut = encoded(panoramas, cache)
    original, calls = cut.encoder._encode, []

    def encode(*arguments, **named):
        calls.append(1)
        if len(calls) == 4:
            raise Cut
        return original(*arguments, **named)

    cut.encoder._encode = encode
    with pytest.raises(Cut):
        cut.prepare(progress=False)
    resumed = encoded(panoramas, cache)
    resumed.prepare(progress=False)

    assert {p.name: p.read_bytes() for p in entries(cache)} == {p.name: p.read_bytes() for p in entries(whole)}


def test_two_processes_share_the_work(panoramas, cache):
    samples = encoded(panoramas, cache)
    samples.prepare(part=(0, 2), progress=False)
    first = len(entries(cache))
    samples.prepare(part=(1, 2), progress=False)
    assert first < len(entries(cache)) == 10


def test_rolled_latents_are_those_of_the_turned_panorama(panoramas, cache):
    """Exactly for an encoder of convolutions alone; the cache holds one panorama a file."""
    pipeline = image_pipeline()
    for block in [module for module in pipeline.vae.encoder.modules() if not isinstance(module, nn.GroupNorm)]:
        for name, inner in list(block.named_children()):
            if isinstance(inner, nn.GroupNorm):
                setattr(block, name, nn.Identity())
    options = {"draws": 3, "yaw_multiple": 4, "pipeline": pipeline}
    exact, rolled = encoded(panoramas, cache, **options), encoded(panoramas, TensorCache(cache.folder / "rolled"), roll=True, **options)
    for samples in (rolled, exact):
        samples.prepare(progress=False)

    assert len(entries(rolled.encoder.cache)) == 2 + 6 + 2
    for index in range(6):
        wanted, got = exact[index], rolled[index]
        assert torch.equal(wanted["condition"], got["condition"])
        assert (wanted["panorama"] - got["panorama"]).abs().max() < 1e-5


def test_rolling_by_parts_of_a_latent_column_is_refused(panoramas, cache):
    with pytest.raises(ValueError, match="multiples of the VAE's stride 4; got mode image and yaw_multiple 2"):
        encoded(panoramas, cache, yaw_multiple=2, roll=True)


def test_bad_files_are_left_out_when_asked(panoramas, cache):
    save_image(world()[:, :, :100], panoramas / "c.png")
    (panoramas / "d.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"c\.png: ERP must have W = 2H; got 100x64"):
        encoded(panoramas, cache).prepare(progress=False)

    samples = encoded(panoramas, cache)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        samples.prepare(skip_bad=True, progress=False)
    left_out = [str(w.message) for w in told if "Left out" in str(w.message)]
    assert len(samples) == 4 and samples[3]["panorama"].shape == (4, 8, 16)
    assert len(left_out) == 2 and "c.png" in left_out[0] and "d.png is not an image" in left_out[1]

    for good in ("a.png", "b.png"):
        (panoramas / good).unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="None of the 2 panoramas can be used; the warnings above say why"):
        encoded(panoramas, cache).prepare(skip_bad=True, progress=False)


def test_caption_longer_than_the_encoder_takes_is_told(panoramas, cache):
    (panoramas / "a.txt").write_text("room " * 40)
    with pytest.warns(UserWarning, match=rf"A caption has 4[0-9] tokens; what is beyond {small.TEXT_LENGTH} is cut off: A 360"):
        encoded(panoramas, cache).prepare(progress=False)


def test_videos_are_encoded_too(tmp_path, cache):
    graft = small.video_graft(height=32, condition_size=16, num_frames=5)
    (tmp_path / "data").mkdir()
    write_video(tmp_path / "data" / "a.mkv", [world(32, turn=k / 10) for k in range(8)], fps=16)
    pipeline = small.video_pipeline(small.small_video_vae(0), small.small_video_transformer(0), CAPTIONS, graft)
    samples = encoded(tmp_path / "data", cache, pipeline=pipeline, graft=graft, draws=1)
    samples.prepare(progress=False)
    sample = samples[0]

    assert sample["panorama"].shape == (4, 2, 8, 16) and sample["condition"].shape == (4, 2, 4, 4)
    assert sample.keys() == {"panorama", "condition", "prompt_embeds"}
    with torch.no_grad():
        pixels = 2 * samples.pairs[0].panorama[None].transpose(1, 2) - 1
        assert torch.equal(sample["panorama"], encode_latents(pipeline.vae, pixels, padding=graft.padding)[0])
