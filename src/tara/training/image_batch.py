"""The images of a training: encoded photos and class images, and those of one batch.

A batch's rows lie concept by concept, ``[photos..., class images...]`` in each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.losses import NoiseSchedule
from tara.core.noise import StepRandomness, concept_key, dropped_rows, offset_noise, step_randomness
from tara.errors import TaraError
from tara.storage.photos import Photo, read_photos
from tara.training.concept_settings import ConceptSettings
from tara.training.inputs import TrainingInputs
from tara.training.latents import Latents, cache_latents
from tara.training.prompts import class_phrase
from tara.training.settings import TrainSettings
from tara.training.text_batch import Caption, TextCache


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """Encoded images that a concept is trained with: its photos, or the class images of prior preservation."""

    key: str
    """Names the random numbers of these images, see `tara.core.noise.step_randomness`."""
    latents: tuple[Latents, ...]
    captions: tuple[tuple[Caption, ...], ...]
    """For each image the captions that it is trained with."""
    empty: Caption | None
    """The caption of a row whose own is dropped; None without caption dropout."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SameShapeRows:
    """The images of one shape, which the network takes in one call. ``rows`` are their indices among all rows."""

    rows: tuple[int, ...]
    noisy: Float[Tensor, "rows channels height width"]
    target: Float[Tensor, "rows channels height width"]
    timesteps: Int[Tensor, " rows"]
    sizes: Int[Tensor, "rows 6"]
    weights: Float[Tensor, " rows"] | None
    pixel_weights: Float[Tensor, "rows 1 height width"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBatch:
    """The images of a call: the caption of every row, and the images grouped by shape (one group without buckets)."""

    captions: tuple[Caption, ...]
    groups: tuple[SameShapeRows, ...]

    def in_order(self, values: Sequence[Float[Tensor, " rows"]]) -> Float[Tensor, " rows"]:
        """Values in the order of the shapes' rows, reordered to the rows of the call."""
        joined = torch.cat(list(values))
        numbers = torch.tensor([row for group in self.groups for row in group.rows], device=joined.device)
        return joined[numbers.argsort()]


class _Row(NamedTuple):
    """The random choices for one row."""

    caption: Caption
    latents: Latents
    variant: int
    timestep: Tensor
    posterior_noise: Tensor
    noise: Tensor


def encode(inputs: TrainingInputs, class_folders: Mapping[str, Path], texts: TextCache) -> list[list[ImageSource]]:
    """Encode each concept's photos and, with prior preservation, its class images.

    The encoders are not needed afterwards.

    Raises:
        TaraError: for class images that are missing or cannot be read.
    """

    def source(key: str, concept: ConceptSettings, photos: Sequence[Photo], settings: TrainSettings) -> ImageSource:
        latents: list[Latents] = []
        captions: list[tuple[Caption, ...]] = []
        for photo in photos:
            words = concept.rare_word, concept.class_word
            latents += [cache_latents(inputs.base, photo, settings)] * photo.repeats
            captions += [tuple(texts.caption(text, *words) for text in photo.captions)] * photo.repeats
        empty = texts.caption("", concept.rare_word, concept.class_word) if settings.caption_dropout else None
        return ImageSource(key=key, latents=tuple(latents), captions=tuple(captions), empty=empty)

    encoded: list[list[ImageSource]] = []
    for concept, photos in zip(inputs.concepts, inputs.photos, strict=True):
        key = concept_key(concept.rare_word, concept.class_word)
        sources = [source(key, concept, photos, inputs.settings)]
        if inputs.settings.uses_class_images:
            images = _class_images(concept, inputs.settings, class_folders)
            sources.append(source(f"{key}\nclass", concept, images, inputs.settings.model_copy(update={"crops": 1})))
        encoded.append(sources)
    return encoded


def _class_images(concept: ConceptSettings, settings: TrainSettings, folders: Mapping[str, Path]) -> list[Photo]:
    if concept.class_word not in folders:
        raise TaraError(f"Prior preservation needs images of the class '{concept.class_word}'. Give their folder.")
    captions = (class_phrase(concept, settings),)
    return [replace(image, captions=captions) for image in read_photos(folders[concept.class_word], captions)]


def image_batch(
    sources: Sequence[Sequence[ImageSource]], schedule: NoiseSchedule, settings: TrainSettings, call: int
) -> ImageBatch:
    """Choose the images of a call and add noise. The rows of a source depend only on (seed, source, call)."""
    rows: list[_Row] = []
    for source in (source for of_concept in sources for source in of_concept):
        chosen = step_randomness(
            settings.seed,
            source.key,
            call,
            rows=settings.batch_size,
            shapes=[image.shape for image in source.latents],
            variants=source.latents[0].variants,
            timesteps=schedule.timesteps,
        )
        columns = (
            _captions(source, chosen, settings, call),
            [source.latents[photo] for photo in chosen.photos],
            chosen.variants,
            chosen.timesteps,
            chosen.posterior_noise,
            _offset(source, chosen, settings, call),
        )
        rows += [_Row(*row) for row in zip(*columns, strict=True)]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        by_shape.setdefault(row.latents.shape, []).append(number)
    groups = tuple(_noised(numbers, rows, schedule, settings.snr_gamma) for numbers in by_shape.values())
    return ImageBatch(captions=tuple(row.caption for row in rows), groups=groups)


def _captions(source: ImageSource, chosen: StepRandomness, settings: TrainSettings, call: int) -> list[Caption]:
    """The caption of each row; the empty caption if it is dropped."""
    texts = [source.captions[photo] for photo in chosen.photos]
    captions = [of_photo[int(chance * len(of_photo))] for of_photo, chance in zip(texts, chosen.captions, strict=True)]
    if source.empty is None:
        return captions
    dropped = dropped_rows(settings.seed, source.key, call, rows=len(captions), rate=settings.caption_dropout)
    return [source.empty if is_dropped else text for text, is_dropped in zip(captions, dropped, strict=True)]


def _offset(source: ImageSource, chosen: StepRandomness, settings: TrainSettings, call: int) -> Sequence[Tensor]:
    """The noise of each row plus the noise offset, a random number per channel."""
    if not settings.noise_offset:
        return chosen.noise
    offsets = offset_noise(settings.seed, source.key, call, [tuple(noise.shape) for noise in chosen.noise])
    return [noise + settings.noise_offset * offset for noise, offset in zip(chosen.noise, offsets, strict=True)]


def _noised(
    numbers: Sequence[int], all_rows: Sequence[_Row], schedule: NoiseSchedule, snr_gamma: float | None
) -> SameShapeRows:
    rows = [all_rows[number] for number in numbers]
    mean = torch.stack([row.latents.mean[row.variant] for row in rows])
    deviation = torch.stack([row.latents.deviation[row.variant] for row in rows])
    noise = torch.stack([row.noise for row in rows]).to(mean)
    timesteps = torch.stack([row.timestep for row in rows]).to(mean.device)
    latents = mean + deviation * torch.stack([row.posterior_noise for row in rows]).to(mean)
    return SameShapeRows(
        rows=tuple(numbers),
        noisy=schedule.add_noise(latents, noise, timesteps),
        target=schedule.target(latents, noise, timesteps),
        timesteps=timesteps,
        sizes=torch.stack([row.latents.sizes[row.variant] for row in rows]),
        weights=None if snr_gamma is None else schedule.min_snr_weights(timesteps, snr_gamma),
        pixel_weights=_pixel_weights(rows, mean[:, :1]),
    )


def _pixel_weights(rows: Sequence[_Row], like: Tensor) -> Float[Tensor, "rows 1 height width"] | None:
    """The rows' masks as loss weights; 1 everywhere for a row without a mask. None if no row has a mask."""
    masks = [None if row.latents.pixel_weights is None else row.latents.pixel_weights[row.variant] for row in rows]
    if all(mask is None for mask in masks):
        return None
    return torch.stack([like.new_ones(like.shape[1:]) if mask is None else mask for mask in masks])
