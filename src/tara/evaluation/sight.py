"""What finds subjects in pictures and tells them apart: the embedded world's judge, or a detector and encoders."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from tara.errors import TaraError
from tara.evaluation.scores import Detections
from tara.evaluation.settings import DETECTOR, JUDGE, EvaluationSettings
from tara.evaluation.subjects import Picture, Subject

BY_ITSELF = ("dino", "clip", "plain_dino", "confidence", "same_subject")
"""Settings of the encoders and of a detector, which the judge does without."""


class SubjectScorer(Protocol):
    """Looks at pictures; knows the subjects' photos since it was made."""

    @property
    def models(self) -> Mapping[str, str]:
        """What finds and what compares: use to name."""
        ...

    @property
    def thresholds(self) -> Mapping[Subject, float]:
        """The least likeness that counts as each subject."""
        ...

    def look(self, pictures: Sequence[Picture], images: Sequence[Image.Image]) -> list[Detections]:
        """What is seen in each picture of its own subjects.

        Args:
            pictures: which subjects should be there, and the prompts.
            images: the pictures themselves, in the same order.
        """
        ...


def load_scorer(
    settings: EvaluationSettings, subjects: Sequence[Subject], bases: Iterable[str | None], cache: Path
) -> SubjectScorer:
    """What the settings ask for: the judge when it is named, or for pictures that only toyland's base drew.

    Args:
        settings: the detector and the encoders.
        subjects: everybody, with the folders of their photos.
        bases: of the pictures, as far as they are known.
        cache: folder of what models made of pictures before.

    Raises:
        TaraError: when a model cannot be loaded, photos cannot be read, or settings have no effect.
    """
    detector = settings.detector or (JUDGE if set(bases) == {JUDGE} else DETECTOR)
    if detector == JUDGE:
        idle = [name for name in BY_ITSELF if name in settings.model_fields_set]
        if idle:
            flag = "--" + idle[0].replace("_", "-")
            raise TaraError(f"{flag} has no effect on toyland's judge, which compares by itself. Leave it out.")
        # the embedded world and its weights are read only where its judge is asked
        from tara.evaluation.judge import JudgeSight

        return JudgeSight(subjects)
    from tara.evaluation.features import FeatureCache
    from tara.evaluation.models import load_models
    from tara.evaluation.open_vocabulary import DetectorScorer

    features = FeatureCache(cache, settings.batch_size)
    return DetectorScorer(load_models(settings, detector), subjects, features, settings.same_subject)
