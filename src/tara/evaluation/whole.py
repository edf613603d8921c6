"""The picture as a whole: CLIP-T, CLIP-I and DINO as papers give them, which do not see who is who."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from tara.evaluation.encoders import ClipEncoder, ImageEncoder
from tara.evaluation.features import FeatureCache
from tara.evaluation.subjects import Picture, Subject


def mean_cosine(
    vectors: Float[np.ndarray, "rows width"], references: Float[np.ndarray, "references width"]
) -> Float[np.ndarray, " rows"]:
    """The mean cosine of each vector with all references, both of length 1.

    CLIP-I and DINO are this between generated pictures and photos of the subject (Ruiz et al., DreamBooth, CVPR 2023,
    section 4.2).
    """
    return (vectors @ references.T).mean(axis=1)


class WholePictures:
    """Compares whole pictures with their prompts and with whole photos of their subjects; leaves out what has no model.

    Args:
        clip: for ``clip_t``, ``plain_clip_t`` and ``plain_clip_i``.
        dino: for ``plain_dino``.
        photos: of each subject.
        features: what the encoders made of pictures before.
    """

    def __init__(
        self,
        clip: ClipEncoder | None,
        dino: ImageEncoder | None,
        photos: Mapping[Subject, Sequence[Image.Image]],
        features: FeatureCache,
    ) -> None:
        self._clip, self._features = clip, features
        given = {"plain_clip_i": clip, "plain_dino": dino}
        self._encoders = {name: encoder for name, encoder in given.items() if encoder}
        self._photos = {
            name: {subject: features.vectors(encoder, images) for subject, images in photos.items()}
            for name, encoder in self._encoders.items()
        }

    def scores(self, pictures: Sequence[Picture], images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """The figures of each picture.

        ``clip_t`` is the cosine of picture and prompt without rare words, ``plain_clip_t`` of picture and prompt as it
        stands (Hessel et al., CLIPScore, EMNLP 2021, without their factor); the others are `mean_cosine`.
        """
        found: list[dict[str, float]] = [{} for _ in pictures]
        if self._clip:
            vectors = self._features.vectors(self._clip, images)
            for name, prompts in (
                ("clip_t", [picture.plain_prompt for picture in pictures]),
                ("plain_clip_t", [picture.prompt for picture in pictures]),
            ):
                cosines = (vectors * self._clip.texts(prompts)).sum(axis=1)
                for figures, cosine in zip(found, cosines, strict=True):
                    figures[name] = float(cosine)
        for name, encoder in self._encoders.items():
            for figures, picture, vector in zip(found, pictures, self._features.vectors(encoder, images), strict=True):
                references = np.concatenate([self._photos[name][subject] for subject in picture.subjects])
                figures[name] = float(mean_cosine(vector[None], references)[0])
        return found
