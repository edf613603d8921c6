"""Detectors and encoders with a few random channels, as folders that transformers loads like any model."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    ViTConfig,
    ViTModel,
)

from tiny_bases import tokenizer

SIDE = 32
TRANSFORMER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TRANSFORMER, "image_size": SIDE, "patch_size": 8}
SQUARE = {"height": SIDE, "width": SIDE}
CUT = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}


def image_processor(model: str) -> Any:
    """A model's image processor that needs no torchvision; transformers before 5.4 has it under the plain name."""
    name = f"{model}ImageProcessor"
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def saved(folder: Path, *parts: object) -> Path:
    for part in parts:
        part.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def dinov2(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return saved(folder, Dinov2Model(Dinov2Config(**VISION)), image_processor("Bit")(**CUT))


def dino(folder: Path) -> Path:
    """As the first DINO is kept: a plain vision transformer."""
    torch.manual_seed(1)
    return saved(folder, ViTModel(ViTConfig(**VISION)), image_processor("ViT")(size=SQUARE))


def clip(folder: Path) -> Path:
    torch.manual_seed(2)
    words = tokenizer()
    text = {**TRANSFORMER, **_special_tokens(words), "max_position_embeddings": 77}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    return saved(folder, CLIPModel(config), image_processor("CLIP")(**CUT), words)


def owlv2(folder: Path) -> Path:
    torch.manual_seed(3)
    words = tokenizer()
    words.model_max_length = 16
    text = {**TRANSFORMER, **_special_tokens(words), "max_position_embeddings": 16}
    config = Owlv2Config(text_config=text, vision_config=VISION, projection_dim=32)
    return saved(folder, Owlv2ForObjectDetection(config), Owlv2Processor(image_processor("Owlv2")(size=SQUARE), words))


def grounding_dino(folder: Path) -> Path:
    torch.manual_seed(4)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "dog", "cat", "toy"]
    known = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=32)
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": SIDE,
            "embed_dim": 8,
            "depths": [1, 1, 1],
            "num_heads": [1, 1, 1],
            "window_size": 2,
            "out_indices": [2, 3],
        },
        text_config={"model_type": "bert", **TRANSFORMER, "vocab_size": len(words), "max_position_embeddings": 32},
        num_queries=5,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        num_feature_levels=2,
        max_text_len=32,
    )
    sizes = image_processor("GroundingDino")(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE})
    return saved(folder, GroundingDinoForObjectDetection(config), GroundingDinoProcessor(sizes, known))


def _special_tokens(words: object) -> dict[str, int]:
    size = len(words)  # type: ignore[arg-type]
    return {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
