"""Pictures and sentences to vectors of length 1, by models from the hub or a folder."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from tara.evaluation.pretrained import check_kind, fingerprint, load_model, load_part

VISION_TRANSFORMERS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
"""Model types whose class token stands for the picture."""


class ImageEncoder(Protocol):
    """Pictures to vectors."""

    key: str
    """Tells this model's vectors from any other's."""

    def images(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "images width"]:
        """One vector for each picture."""
        ...


class VisionEncoder:
    """A vision transformer, DINO or DINOv2: a picture's vector is its class token after the last layer norm.

    Raises:
        TaraError: when it cannot be loaded or is of another kind.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoModel

        # not from `transformers` itself, which before 5.18 asks for torchvision then, and needs none
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        check_kind(name, VISION_TRANSFORMERS)
        self._model = load_model(AutoModel, name, device)
        self._processor = load_part(AutoImageProcessor, name)
        self.key = fingerprint(name, self._model)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "images width"]:
        """One vector for each picture."""
        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        return _unit(self._model(pixel_values=pixels.to(self._model.device)).last_hidden_state[:, 0])


class ClipEncoder:
    """CLIP: pictures and sentences in one space.

    Raises:
        TaraError: when it cannot be loaded or is of another kind.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoTokenizer, CLIPModel
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        check_kind(name, ("clip",))
        self._model = load_model(CLIPModel, name, device)
        self._processor = load_part(AutoImageProcessor, name)
        self._tokenizer = load_part(AutoTokenizer, name)
        self.key = fingerprint(name, self._model)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "images width"]:
        """One vector for each picture."""
        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        return _unit(self._model.get_image_features(pixel_values=pixels.to(self._model.device)).pooler_output)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts width"]:
        """One vector for each sentence; what is longer than the text encoder reads is cut off."""
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self._model.device)
        features = self._model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return _unit(features.pooler_output)


def _unit(vectors: torch.Tensor) -> Float[np.ndarray, "rows width"]:
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
