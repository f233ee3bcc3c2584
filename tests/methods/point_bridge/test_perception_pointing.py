"""Points that models write, in three dialects, and the models that write them as tiny random instances."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visiongraft.methods.point_bridge.chat import TransformersChat
from visiongraft.methods.point_bridge.frames import Frame
from visiongraft.methods.point_bridge.pointing import ChatPointer, DetectorPointer, GivenPoints, parse_points
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy

SIZE = (100, 200)


def frame(size: tuple[int, int] = SIZE) -> Frame:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Frame(image, Camera(intrinsics_from_fovy(0.9, size), np.eye(4), size))


@pytest.mark.parametrize(
    ("dialect", "reply", "points"),
    [
        ("molmo", '<point x="61.5" y="40.2" alt="mug">mug</point>', [(123.0, 40.2)]),
        ("molmo", 'Here: <points x2="50" y2="60" x1="10.0" y1="20.5" alt="a">b</points>', [(20.0, 20.5), (100.0, 60.0)]),
        ("molmo", " 12.5, 33 ", [(25.0, 33.0)]),
        ("molmo", "(12.5, 33).", [(25.0, 33.0)]),
        ("molmo", "There are none.", []),
        ("molmo2", '<points coords="1 1 034 567">mug</points>', [(6.8, 56.7)]),
        ("molmo2", '<points coords="1 1 034 567 2 1000 000">', [(6.8, 56.7), (200.0, 0.0)]),
        ("molmo2", '<points coords="1 1 100 100;2 1 200 200">', [(20.0, 10.0), (40.0, 20.0)]),
        ("molmo2", "I do not see it.", []),
        ("gemini", '[{"point": [402, 615], "label": "mug"}]', [(123.0, 40.2)]),
        ("gemini", '```json\n[{"point": [402, 615], "label": "mug"}]\n```', [(123.0, 40.2)]),
        ("gemini", "[]", []),
    ],
)
def test_dialects_give_pixels(dialect: str, reply: str, points: list[tuple[float, float]]) -> None:
    assert np.allclose(parse_points(reply, dialect, SIZE), np.array(points).reshape(-1, 2) if points else [])


def test_the_same_place_in_all_dialects_is_the_same_pixel() -> None:
    replies = {"molmo": '<point x="25.0" y="75.0">', "molmo2": 'coords="1 1 250 750"', "gemini": '[{"point": [750, 250]}]'}
    assert {parse_points(reply, dialect, SIZE)[0] for dialect, reply in replies.items()} == {(50.0, 75.0)}


@pytest.mark.parametrize(
    ("dialect", "reply", "message"),
    [
        ("molmo", '<point x="612" y="40">', r"points at \(612, 40\), but the dialect 'molmo' counts from 0 to 100"),
        ("molmo2", 'coords="1 1 1034 567"', "counts from 0 to 1000"),
        ("molmo2", 'coords="1 1 34 567"', "three or four digits"),
        ("molmo2", 'coords="1 1 034"', "three or four digits"),
        ("gemini", "the mug is at [1, 2]", "not a JSON list"),
        ("gemini", '{"point": [1, 2]}', "not a JSON list"),
        ("gemini", '[{"point": [1, 2, 3]}]', "is not {'point'"),
        ("gemini", '[{"point": ["1", 2]}]', "is not {'point'"),
        ("gemini", '[{"point": [true, 2]}]', "is not {'point'"),
        ("gemini", '[{"point": [NaN, 2]}]', "counts from 0 to 1000"),
        ("gemini", '[{"point": [1e999, 2]}]', "counts from 0 to 1000"),
        ("gemini", "[" * 100_000, "not a JSON list"),
        ("percent", "1, 2", "Unknown dialect of points 'percent'; there are molmo, molmo2, gemini"),
    ],
)
def test_replies_that_are_not_of_the_dialect_are_refused(dialect: str, reply: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_points(reply, dialect, SIZE)


@given(st.sampled_from(["molmo", "molmo2", "gemini"]), st.text(max_size=120))
def test_any_reply_is_points_in_the_image_or_a_sentence(dialect: str, reply: str) -> None:
    try:
        points = parse_points(reply, dialect, SIZE)
    except ValueError as error:
        assert str(error).endswith(".")
    else:
        assert all(0 <= u < SIZE[1] and 0 <= v < SIZE[0] for u, v in points)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_gemini_is_y_first(x: int, y: int) -> None:
    (u, v), *_ = parse_points(json.dumps([{"point": [y, x]}]), "gemini", SIZE)
    assert u == pytest.approx(min(x * 0.2, 200)) and v == pytest.approx(min(y * 0.1, 100))


def test_chat_pointer_asks_in_the_models_words_and_takes_the_first_point() -> None:
    asked = []

    def chat(prompt: str, image: np.ndarray | None = None) -> str:
        asked.append(prompt)
        return '<points coords="1 1 500 250 2 900 900">'

    assert ChatPointer(chat, "molmo2")(frame(), "red mug") == (100.0, 25.0)
    assert asked == ["Point to the red mug."]
    assert ChatPointer(lambda prompt, image=None: "none", "molmo")(frame(), "mug") is None
    with pytest.raises(ValueError, match="Unknown dialect"):
        ChatPointer(chat, "pixels")  # type: ignore[arg-type]


def test_given_points_know_only_what_was_clicked() -> None:
    pointer = GivenPoints({"mug": (3.0, 4.0)})
    assert pointer(frame(), "mug") == (3.0, 4.0)
    with pytest.raises(ValueError, match="no click on 'plate'; there are clicks on mug"):
        pointer(frame(), "plate")


WORDS = [
    "<pad>",
    "<eos>",
    "<unk>",
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<frame_start>",
    "<im_end>",
    "<frame_end>",
]
WORDS += ["<im_low>", "<|image|>", "<|video|>", "Point", "to", "the", "mug", ".", "[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"]


def word_tokenizer(**special: str) -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=WORDS[3:13], **special)


def tiny_molmo2() -> torch.nn.Module:
    from transformers import Molmo2Config, Molmo2ForConditionalGeneration

    small = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32}
    config = Molmo2Config(
        vision_config={**small, "num_hidden_layers": 2, "image_size": [28, 28], "patch_size": 14},
        adapter_config={**small, "vision_feature_layer": [1, 0], "text_hidden_size": 16},
        text_config={**small, "vocab_size": 64, "additional_vocab_size": 8, "num_hidden_layers": 2, "max_position_embeddings": 256},
        image_start_token_id=5,
        low_res_image_start_token_id=6,
        image_end_token_id=8,
        image_patch_id=3,
        frame_start_token_id=7,
        frame_end_token_id=9,
    )
    torch.manual_seed(0)
    return Molmo2ForConditionalGeneration(config)


class OnlyText:
    """In place of Molmo 2's processor, whose image part needs torchvision: a chat of words."""

    def __init__(self) -> None:
        self.tokenizer, self.content = word_tokenizer(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"), []

    def apply_chat_template(self, messages: list[dict], **options: object) -> object:
        self.content = messages[0]["content"]
        text = " ".join(part["text"] for part in self.content if part["type"] == "text")
        return self.tokenizer(text, return_tensors="pt", return_token_type_ids=False)

    def batch_decode(self, tokens: torch.Tensor, **options: object) -> list[str]:
        return self.tokenizer.batch_decode(tokens, **options)


def test_molmo2_generates_greedily_and_only_its_answer_comes_back() -> None:
    model, processor = tiny_molmo2(), OnlyText()
    chat = TransformersChat(model, processor, max_new_tokens=4)
    first, second = chat("Point to the mug .", frame().image), chat("Point to the mug .", frame().image)
    assert first == second and [part["type"] for part in processor.content] == ["image", "text"]
    ids = processor.tokenizer("Point to the mug .", return_tensors="pt", return_token_type_ids=False)
    full = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert first == processor.tokenizer.decode(full[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def tiny_owlv2() -> DetectorPointer:
    from transformers import CLIPTokenizerFast, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil, Owlv2Processor
    from transformers.models.owlv2.configuration_owlv2 import Owlv2TextConfig, Owlv2VisionConfig

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = Owlv2TextConfig(**small, vocab_size=len(WORDS), max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=1)
    vision = Owlv2VisionConfig(**small, image_size=32, patch_size=8)
    torch.manual_seed(0)
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16))
    assert CLIPTokenizerFast is not None
    tokenizer = word_tokenizer(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.model_max_length = 16
    return DetectorPointer(model, Owlv2Processor(Owlv2ImageProcessorPil(size={"height": 32, "width": 32}), tokenizer), threshold=0.0)


def test_owlv2_points_into_the_image_and_at_nothing_above_every_score() -> None:
    pointer = tiny_owlv2()
    point = pointer(frame(), "mug")
    assert point is not None and 0 <= point[0] < 200 and 0 <= point[1] < 100
    assert pointer(frame(), "mug") == point
    pointer.threshold = 1.0
    assert pointer(frame(), "mug") is None


def tiny_grounding_dino() -> DetectorPointer:
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        GroundingDinoProcessor,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, out_indices=[2, 3, 4]
    )
    text = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=10,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(config)
    tokenizer = word_tokenizer(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", mask_token="[MASK]")
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
    return DetectorPointer(model, GroundingDinoProcessor(images, tokenizer), threshold=0.0)


def test_grounding_dino_points_into_the_image() -> None:
    pointer = tiny_grounding_dino()
    point = pointer(frame(), "Mug.")
    assert point is not None and 0 <= point[0] < 200 and 0 <= point[1] < 100
    pointer.threshold = 1.0
    assert pointer(frame(), "mug") is None


class BoxedProcessor:
    """Gives boxes that the test chose."""

    def __init__(self, boxes: list[list[float]], scores: list[float]) -> None:
        self.boxes, self.scores = torch.tensor(boxes), torch.tensor(scores)

    def __call__(self, **inputs: object) -> "BoxedProcessor":
        self.inputs = inputs
        return self

    def to(self, device: object) -> dict[str, object]:
        return {}

    def post_process_grounded_object_detection(self, outputs: object, **options: object) -> list[dict[str, torch.Tensor]]:
        assert options["target_sizes"] == [SIZE]
        return [{"boxes": self.boxes, "scores": self.scores}]


def test_the_centre_of_the_best_box_is_the_point_and_stays_in_the_image() -> None:
    class Model(torch.nn.Module):
        config = type("Config", (), {"model_type": "owlv2"})()
        device = torch.device("cpu")

        def forward(self) -> None:
            return None

    processor = BoxedProcessor([[0, 0, 10, 10], [100, 20, 140, 60]], [0.3, 0.6])
    assert DetectorPointer(Model(), processor)(frame(), "mug") == (120.0, 40.0)
    assert processor.inputs["text"] == [["a photo of a mug"]]
    beyond = DetectorPointer(Model(), BoxedProcessor([[180, 90, 260, 140]], [0.9]))(frame(), "mug")
    assert beyond is not None and beyond[0] < 200 and beyond[1] < 100
