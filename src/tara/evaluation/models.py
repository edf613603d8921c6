"""Pretrained transformers models by hub id or folder: image encoders, CLIP and open-vocabulary detectors.

Each class raises TaraError for a model that cannot be loaded or has another type. ``key`` identifies it in a cache.
"""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from tara.errors import TaraError, first_line
from tara.storage.hub import is_hub_id, not_fetched, one_try

# types of models with a class token that represents the image
VISION_TRANSFORMERS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
OWL = "a photo of a {class_word}", 0.2
DETECTORS = {"owlv2": OWL, "owlvit": OWL, "grounding-dino": ("a {class_word}", 0.3)}
"""Query and default confidence by model type."""
MAX_BOXES = 40  # most boxes of one image and class, before non-maximum suppression


class VisionEncoder:
    """A vision transformer such as DINO or DINOv2: an image's vector is its class token after the last norm."""

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoModel

        self._model, self._processor, self.key = _loaded(name, device, VISION_TRANSFORMERS, AutoModel)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "images width"]:
        inputs = self._processor(images=list(images), return_tensors="pt").to(self._model.device)
        return _unit_length(self._model(pixel_values=inputs["pixel_values"]).last_hidden_state[:, 0])


class ClipEncoder:
    """CLIP: vectors of images and texts in one space."""

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._model, self._processor, self.key = _loaded(name, device, ("clip",), CLIPModel)
        self._tokenizer = load_part(AutoTokenizer, name)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "images width"]:
        inputs = self._processor(images=list(images), return_tensors="pt").to(self._model.device)
        return _unit_length(self._model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts width"]:
        """One vector per text, which is truncated to the length of the text encoder."""
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self._model.device)
        features = self._model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return _unit_length(features.pooler_output)


ImageEncoder = VisionEncoder | ClipEncoder


class Detector:
    """An open-vocabulary object detector: OWLv2, OWL-ViT or Grounding DINO."""

    def __init__(self, name: str, device: torch.device, confidence: float | None = None) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._model, self._processor, model_key = _loaded(
            name, device, DETECTORS, AutoModelForZeroShotObjectDetection, AutoProcessor
        )
        self._query, default = DETECTORS[self._model.config.model_type]
        self._confidence = default if confidence is None else confidence
        self.key = f"{model_key} from {self._confidence}"

    @torch.inference_mode()
    def detect(self, image: Image.Image, class_word: str) -> Float[np.ndarray, "boxes 5"]:
        """Boxes of a class by descending confidence: left, top, right, bottom (fractions of the image), confidence.

        One image at a time, because a batch pads smaller images, which changes what Grounding DINO detects.
        """
        query = self._query.format(class_word=class_word)
        inputs = self._processor(images=[image], text=[[query]], return_tensors="pt").to(self._model.device)
        (result,) = self._processor.post_process_grounded_object_detection(
            self._model(**inputs), threshold=self._confidence, target_sizes=[(image.height, image.width)]
        )
        scores = result["scores"].float().cpu()
        order = scores.argsort(descending=True)[:MAX_BOXES]
        sides = torch.tensor(image.size * 2, dtype=torch.float32)
        corners = torch.minimum(result["boxes"].float().cpu()[order].clamp(min=0), sides)
        inside = (corners[:, 2:] - corners[:, :2] >= 1).all(1)  # by at least one pixel
        return torch.cat([corners / sides, scores[order, None]], dim=1)[inside].numpy()


def load_part(model_class: Any, name: str, **options: Any) -> Any:
    """Load a config, model, processor or tokenizer.

    If it is not on this machine, the TaraError says how to download it.
    """
    if "Processor" in model_class.__name__:
        options["backend"] = "pil"  # torchvision is not a dependency, and scores must not depend on it
    try:
        with one_try(name):
            return model_class.from_pretrained(name, **options)
    except Exception as failure:  # an unsuitable folder causes errors of any kind
        if not Path(name).exists():
            if is_hub_id(name):
                raise not_fetched(name, failure) from failure
            raise TaraError(f"There is no model '{name}'. Give its folder, or a hub id.") from failure
        reason = first_line(failure).rstrip(".")
        raise TaraError(f"The model '{name}' cannot be used ({reason}). Give its folder, or a hub id.") from failure


def _loaded(
    name: str, device: torch.device, types: Collection[str], model_class: Any, processor: Any = None
) -> tuple[Any, Any, str]:
    """A frozen float32 model, its processor (default: the image processor), and its cache key.

    Its type must be in ``types``.
    """
    from transformers import AutoConfig

    # not from `transformers` itself, which before 5.18 then asks for torchvision without needing it
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    model_type = str(load_part(AutoConfig, name).model_type)
    if model_type not in types:
        raise TaraError(
            f"'{name}' has the model type {model_type}. Give a model of one of these types: {', '.join(types)}."
        )
    model, report = load_part(model_class, name, output_loading_info=True)
    # nothing uses the pooler, and DINO's file does not have it
    missing = [key for key in sorted(report["missing_keys"]) if not key.startswith("pooler.")]
    if missing:
        raise TaraError(f"The model '{name}' is incomplete: it lacks '{missing[0]}'. Download it again.")
    model = model.float().eval().requires_grad_(False).to(device)
    return model, load_part(processor or AutoImageProcessor, name), _cache_key(name, model)


def _cache_key(name: str, model: Any) -> str:
    """A key that changes with the model: from a folder's files (size and time), or from the commit of a hub id."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(model.config, '_commit_hash', None)}"
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    files = repr([(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats])
    return f"{folder.name}@{hashlib.sha256(files.encode()).hexdigest()}"


def _unit_length(vectors: torch.Tensor) -> Float[np.ndarray, "rows width"]:
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
