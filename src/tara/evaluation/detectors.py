"""Finding things by their class word: open-vocabulary detectors from transformers."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tara.errors import TaraError
from tara.evaluation.pretrained import check_kind, fingerprint, load_model, load_part

MOST = 40
"""Boxes of a picture that are kept, the surest; doubles among them."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a kind of detector is asked, and from which confidence on its answer counts."""

    query: str
    confidence: float
    needs_scipy: bool = False


OWL = Family(query="a photo of a {class_word}", confidence=0.2, needs_scipy=True)
FAMILIES = {"owlv2": OWL, "owlvit": OWL, "grounding-dino": Family(query="a {class_word}", confidence=0.3)}
"""By the model type of transformers."""


class Detector:
    """An OWLv2, OWL-ViT or Grounding DINO model.

    Raises:
        TaraError: when it cannot be loaded, is no such model, or a package that it needs is missing.
    """

    def __init__(self, name: str, device: torch.device, confidence: float | None = None) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._family = FAMILIES[check_kind(name, FAMILIES)]
        if self._family.needs_scipy and find_spec("scipy") is None:
            raise TaraError(f"'{name}' needs the package scipy. Install it: pip install 'tara[eval]'.")
        self._model = load_model(AutoModelForZeroShotObjectDetection, name, device)
        self._processor = load_part(AutoProcessor, name)
        self._confidence = self._family.confidence if confidence is None else confidence
        self.key = f"{fingerprint(name, self._model)} from {self._confidence}"

    @torch.inference_mode()
    def find(self, image: Image.Image, kind: str) -> NDArray[np.float32]:
        """Every box that might hold a thing of the class, the surest first.

        One picture at a time: beside a larger one it would be padded, which changes what Grounding DINO sees.

        Returns:
            an array (boxes, 5): left, top, right, bottom as fractions of the picture, and the confidence.
        """
        query = self._family.query.format(class_word=kind)
        inputs = self._processor(images=[image], text=[[query]], return_tensors="pt")
        outputs = self._model(**inputs.to(self._model.device))
        (found,) = self._processor.post_process_grounded_object_detection(
            outputs, threshold=self._confidence, target_sizes=[(image.height, image.width)]
        )
        return _array(found["boxes"].float().cpu(), found["scores"].float().cpu(), image.size)


def _array(boxes: torch.Tensor, scores: torch.Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    order = scores.argsort(descending=True)[:MOST]
    sides = torch.tensor(size * 2, dtype=torch.float32)
    corners = torch.minimum(boxes[order].clamp(min=0), sides)
    seen = (corners[:, 2:] - corners[:, :2] >= 1).all(1)  # at least a pixel of it is inside the picture
    return torch.cat([corners / sides, scores[order, None]], dim=1)[seen].numpy()
