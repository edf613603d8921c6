"""Generates the images of an evaluation. Existing images are kept, so an interrupted command can be resumed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path

from tara.evaluation.protocols import EvaluationPrompt
from tara.evaluation.subjects import ImageRecord
from tara.families.settings import BaseSettings
from tara.inference.pipeline import Pipeline
from tara.inference.provenance import RequestProvenance, png_with_provenance, was_made_as
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.storage.file_names import file_name
from tara.storage.files import atomic_write
from tara.storage.outputs import image_name


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedImages:
    """The images of one prompt with one composer, by seed."""

    provenance: RequestProvenance
    records: Mapping[int, ImageRecord]

    def missing(self) -> "PlannedImages":
        """The images that do not exist yet, or were generated with other settings."""
        records = {
            seed: record
            for seed, record in self.records.items()
            if not was_made_as(record.path, self.provenance.of_image(seed))
        }
        request = self.provenance.request.model_copy(update={"seeds": tuple(records)})
        return PlannedImages(provenance=replace(self.provenance, request=request), records=records)


def plan(
    prompts: Sequence[EvaluationPrompt],
    base: BaseSettings,
    settings: GenerationSettings,
    composers: Sequence[str],
    seeds: tuple[int, ...],
    out: Path,
) -> list[PlannedImages]:
    """The images of every prompt with every composer and seed, in ``out/images/COMPOSER/SUBJECTS``.

    Raises:
        TaraError: when a prompt lacks an adapter's rare word.
    """
    planned: list[PlannedImages] = []
    written: Counter[Path] = Counter()  # images by folder
    for composer, prompt in product(composers, prompts):
        own = settings.model_copy(update={"composer": composer})
        adapters, files = (
            tuple(adapter.active for adapter in prompt.trained),
            tuple(adapter.file for adapter in prompt.trained),
        )
        request = GenerationRequest(prompt=prompt.text, adapters=adapters, seeds=seeds, settings=own)
        request.check()
        folder = out / "images" / composer / file_name("+".join(subject.name for subject in prompt.subjects))
        records = {
            seed: ImageRecord(
                folder / image_name(number, seed), composer, prompt.text, seed, prompt.subjects, prompt.category
            )
            for number, seed in enumerate(seeds, written[folder] + 1)
        }
        written[folder] += len(seeds)
        provenance = RequestProvenance(request=request, base=base, adapters=files)
        planned.append(PlannedImages(provenance=provenance, records=records))
    return planned


def generate(
    pipeline: Pipeline, planned: Sequence[PlannedImages], batch_size: int, on_progress: Callable[[float, str], object]
) -> None:
    """Generate images, ``batch_size`` at a time. The files of a batch are written atomically when it is finished.

    ``on_progress`` takes the number of generated images, with fractions, and an empty note.

    Raises:
        TaraError: when an adapter does not fit the base.
    """
    done = 0
    for _, same_settings in groupby(planned, lambda images: images.provenance.request.settings.composer):
        left = list(same_settings)
        while left:
            # small calls: a call prepares all its requests first, and ties and dare merge adapters into full matrices
            call, left = left[:batch_size], left[batch_size:]
            wanted = [(images.provenance, seed, record) for images in call for seed, record in images.records.items()]
            images = pipeline.generate(
                [images.provenance.request for images in call],
                batch_size=batch_size,
                on_step=lambda step, done=done: on_progress(done + step.fraction * step.images, ""),
            )
            for image in images:
                provenance, seed, record = wanted[image.index]
                atomic_write(record.path, png_with_provenance(image.image, provenance.of_image(seed)))
                done += 1
