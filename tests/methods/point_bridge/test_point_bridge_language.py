import hashlib

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from visiongraft.methods.point_bridge.language import HashedWords, SentenceEncoder, TextEncoder, load_text_encoder

TEXTS = ["put the mug on the plate", "stack", "put the cube in the bin please"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model of all-MiniLM-L6-v2's class with a word-level tokenizer, saved as sentence encoders are."""
    path = tmp_path_factory.mktemp("minilm")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=384,
        num_hidden_layers=2,
        num_attention_heads=12,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(path)
    return path


def test_sentences_are_the_mean_of_their_own_words_at_unit_length(folder):
    encoder = SentenceEncoder.from_pretrained(folder)
    vectors = encoder(TEXTS)
    model = BertModel.from_pretrained(folder).eval().double()
    for text, vector in zip(TEXTS, vectors, strict=True):
        inputs = encoder.tokenizer(text, return_tensors="pt")  # alone, so that no padding is there to be masked
        with torch.no_grad():
            words = model(input_ids=inputs["input_ids"]).last_hidden_state[0]
        mean = words.mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=2e-6)
    assert vectors.shape == (3, 384) and encoder.dim == 384


def test_sentences_are_encoded_once(folder, monkeypatch):
    encoder = SentenceEncoder.from_pretrained(folder)
    first = encoder(TEXTS)
    monkeypatch.setattr(encoder, "model", None)
    np.testing.assert_array_equal(encoder([TEXTS[2], TEXTS[0]]), first[[2, 0]])


def test_hashed_words_are_seeded_by_blake2b_and_ignore_order_and_case():
    encoder = HashedWords()
    words = []
    for word in ("put", "down"):
        seed = int.from_bytes(hashlib.blake2b(word.encode()).digest()[:8], "big")
        words.append(np.random.default_rng(seed).standard_normal(384))
    expected = sum(words) / np.linalg.norm(sum(words))
    np.testing.assert_allclose(encoder(["Put down!"])[0], expected, atol=1e-7)
    np.testing.assert_array_equal(encoder(["down put"]), HashedWords()(["put down"]))


def test_hashed_instructions_that_share_words_are_closer():
    a, b, c = HashedWords()(["put the mug on the plate", "put the cup on the plate", "open a drawer slowly"])
    assert a @ b > 0.7 and abs(a @ c) < 0.25
    np.testing.assert_allclose([np.linalg.norm(v) for v in (a, b, c)], 1, atol=1e-6)


def test_encoders_are_made_by_name_and_follow_one_protocol(folder):
    for name in ("hashed", str(folder)):
        encoder = load_text_encoder(name)
        assert isinstance(encoder, TextEncoder) and encoder.name == name


def test_bad_input_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"must have at least one word; got '\?!'"):
        HashedWords()(["?!"])
    with pytest.raises(
        FileNotFoundError, match=r"sentence encoder .* is not here and cannot be downloaded .*'hashed', which needs no weights"
    ):
        load_text_encoder(str(tmp_path / "none"))
