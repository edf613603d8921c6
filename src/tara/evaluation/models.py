"""The models that an evaluation of photos and drawings looks with, loaded together before anything slow begins."""

from collections.abc import Mapping
from dataclasses import dataclass

from tara.evaluation.detectors import Detector
from tara.evaluation.encoders import ClipEncoder, VisionEncoder
from tara.evaluation.settings import NOTHING, EvaluationSettings
from tara.families.loading import device_named


@dataclass(frozen=True, kw_only=True, eq=False)
class Models:
    """A detector, the encoder that says who is who, and two that may be left out."""

    detector: Detector
    dino: VisionEncoder
    clip: ClipEncoder | None = None
    plain_dino: VisionEncoder | None = None
    names: Mapping[str, str]
    """What each is for, and its name."""


def load_models(settings: EvaluationSettings, detector: str) -> Models:
    """Load everything that the settings name.

    Raises:
        TaraError: when a model is not here, with the command that fetches it, or is of another kind.
    """
    device = device_named(settings.device)
    names = {"detector": detector, "identity": settings.dino, "clip": settings.clip, "plain_dino": settings.plain_dino}
    return Models(
        detector=Detector(detector, device, settings.confidence),
        dino=VisionEncoder(settings.dino, device),
        clip=None if settings.clip == NOTHING else ClipEncoder(settings.clip, device),
        plain_dino=None if settings.plain_dino == NOTHING else VisionEncoder(settings.plain_dino, device),
        names={active: name for active, name in names.items() if name != NOTHING},
    )
