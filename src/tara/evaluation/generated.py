"""Generates the images of an evaluation; existing images are kept, so an interrupted command can be continued."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

from tara.adapters.formats.peft_config import config_beside
from tara.evaluation.protocols import EvaluationPrompt
from tara.evaluation.subjects import ImageRecord
from tara.families.settings import BaseSettings
from tara.inference.pipeline import Pipeline
from tara.inference.provenance import Provenance, png_with_provenance, used_file
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.storage.file_names import file_name
from tara.storage.files import atomic_write
from tara.storage.outputs import image_name


@dataclass(frozen=True, eq=False)
class PlannedImage:
    """One image of a request for several seeds."""

    request: GenerationRequest
    provenance: Provenance
    record: ImageRecord


def plan(
    prompts: Sequence[EvaluationPrompt],
    base: BaseSettings,
    settings: GenerationSettings,
    composers: Sequence[str],
    seeds: tuple[int, ...],
    out: Path,
) -> list[PlannedImage]:
    """The images of every prompt with every composer and seed, in ``out/images/COMPOSER/SUBJECTS``.

    Raises:
        TaraError: when a prompt lacks an adapter's rare word.
    """
    planned: list[PlannedImage] = []
    for composer, prompt in product(composers, prompts):
        own = settings.model_copy(update={"composer": composer})
        adapters, files = tuple(one.active for one in prompt.trained), tuple(one.file for one in prompt.trained)
        request = GenerationRequest(prompt=prompt.text, adapters=adapters, seeds=seeds, settings=own)
        request.check()
        configs = [config_beside(Path(file.path)) for file in files]
        inputs = tuple(used_file(path) for path in configs if path)
        made = Provenance(prompt=prompt.text, seed=0, adapters=files, inputs=inputs, base=base, settings=own)
        folder = out / "images" / composer / file_name("+".join(one.name for one in prompt.subjects))
        for number, seed in enumerate(seeds, prompt.number * len(seeds) + 1):
            path = folder / image_name(number, seed)
            record = ImageRecord(path, composer, prompt.text, seed, prompt.subjects, prompt.category)
            planned.append(PlannedImage(request, made.model_copy(update={"seed": seed}), record))
    return planned


def generate(
    pipeline: Pipeline, planned: Sequence[PlannedImage], batch_size: int, on_progress: Callable[[float, str], object]
) -> None:
    """Generate images, ``batch_size`` at a time; each file is written whole as soon as its batch is finished.

    ``on_progress`` takes the number of generated images, with fractions, and an empty note.

    Raises:
        TaraError: when an adapter does not fit the base.
    """
    done = 0
    for _, of_composer in groupby(planned, lambda one: one.request.settings.composer):
        requests = [list(own) for _, own in groupby(of_composer, lambda one: id(one.request))]
        for start in range(0, len(requests), batch_size):
            # a call first prepares all of its requests: ties and dare merge the adapters of each into full matrices
            call = requests[start : start + batch_size]
            images = pipeline.generate(
                [own[0].request.model_copy(update={"seeds": tuple(one.record.seed for one in own)}) for own in call],
                batch_size=batch_size,
                on_step=lambda step, done=done: on_progress(done + step.fraction * step.images, ""),
            )
            of_call = [one for own in call for one in own]
            for image in images:
                one = of_call[image.index]
                atomic_write(one.record.path, png_with_provenance(image.image, one.provenance))
                done += 1
