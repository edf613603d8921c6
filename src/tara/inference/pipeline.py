"""``tara.Pipeline``: generates images from requests."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tara.errors import TaraError
from tara.families.base import Base
from tara.families.loading import device_named, load_base
from tara.families.settings import ExecutionSettings, Precision, Prediction
from tara.inference.batch import PreparedBatch, PromptRow, applied, prepared_batch, prompt_rows
from tara.inference.confining import ImageRegions
from tara.inference.request import AdapterLists, GenerationRequest, requests_for
from tara.inference.settings import GenerationSettings
from tara.inference.stock_pipeline import apply_execution_settings, call_pipeline, compiler_failures, task_pipeline
from tara.inference.text_kv import CachedTextEncoder
from tara.storage.validation import build, takes

BATCH_SIZE = 4


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """One image with its request and seed. ``index`` numbers all seeds of the first request, then those of the next."""

    index: int
    seed: int
    image: Image.Image
    request: GenerationRequest
    regions: ImageRegions | None = None
    """Where each adapter acted; None if no adapter was confined to a region."""


@dataclass(frozen=True)
class DenoisingStep:
    """One denoising step of one batch: ``step`` of ``steps``, after ``done`` of ``images`` images were finished."""

    step: int
    steps: int
    done: int
    batch: int
    images: int

    @property
    def fraction(self) -> float:
        """Fraction of the work on all images that is done, from 0 to 1."""
        return (self.done + self.batch * self.step / self.steps) / self.images


OnStep = Callable[[DenoisingStep], object]


class Pipeline:
    """Generates images on one base with any adapters.

    Args:
        base: ``sd15``, ``sdxl``, a folder, a checkpoint, a hub id, a `Base` or a loaded diffusers pipeline.
        device: cuda, mps or cpu. None: the best one available. A loaded pipeline stays on its device.
        precision: auto, fp32, fp16 or bf16. This and the next four apply only to a base that is given by name.
        revision, variant, vae, prediction_type: see `tara.families.loading.load_base`.
        execution: fields of `tara.families.settings.ExecutionSettings`: compile, attention_slicing, offload.

    Raises:
        TaraError: when the base cannot be loaded or used, or cannot be run with these execution settings.
    """

    def __init__(
        self,
        base: str | Path | Base | Any,
        *,
        device: str | None = None,
        precision: Precision = "auto",
        revision: str | None = None,
        variant: str | None = None,
        vae: str | Path | None = None,
        prediction_type: Prediction | None = None,
        **execution: bool,
    ) -> None:
        self._execution = build(ExecutionSettings, execution)
        moved_to = None
        if isinstance(base, Base):
            self.base = base
        elif isinstance(base, (str, Path)):
            moved_to = device_named(device)
            self.base = load_base(
                base,
                # with offloading, the parts need not all fit on the GPU at once
                device="cpu" if self._execution.offload else device,
                precision=precision,
                revision=revision,
                variant=variant,
                vae=vae,
                prediction_type=prediction_type,
            )
        elif getattr(base, "controlnet", None) is not None:
            raise TaraError(
                f"A {type(base).__name__} needs a control image, which tara.Pipeline does not take. Call it yourself: "
                "`with tara.prepared(pipe, prompt, adapters) as kwargs: pipe(image=..., **kwargs)`."
            )
        else:
            self.base = Base(base)
        apply_execution_settings(self.base, self._execution, moved_to or self.base.device)
        self._encoder = CachedTextEncoder(self.base)

    @takes(GenerationSettings)
    def __call__(
        self,
        prompt: str | Sequence[str],
        adapters: AdapterLists = (),
        seeds: int | Iterable[int] = (0,),
        *,
        batch_size: int = BATCH_SIZE,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """Generate every prompt with every seed. All images of the first prompt come first. Arguments: see `stream`."""
        made = self.stream(prompt, adapters, seeds, batch_size=batch_size, on_step=on_step, **settings)
        return [generated.image for generated in sorted(made, key=lambda generated: generated.index)]

    @takes(GenerationSettings)
    def stream(
        self,
        prompt: str | Sequence[str],
        adapters: AdapterLists = (),
        seeds: int | Iterable[int] = (0,),
        *,
        batch_size: int = BATCH_SIZE,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Iterator[GeneratedImage]:
        """Generate every prompt with every seed and yield each image as soon as its batch is done.

        Args:
            prompt: one prompt or several.
            adapters: for all prompts, or one list for each prompt.
            seeds: one seed or several; each gives one image per prompt.
            batch_size: number of images in one network call. It changes pixel values by at most 1/255.
            on_step: called after each denoising step, for progress bars.
            settings: fields of `tara.inference.settings.GenerationSettings`; ``num_inference_steps`` is ``steps``.

        Raises:
            TaraError: for unknown or impossible settings, and when an adapter does not fit the base or the prompt.
        """
        requests = requests_for(prompt, adapters, build(GenerationSettings, settings), seeds)
        return self.generate(requests, batch_size=batch_size, on_step=on_step)

    def generate(
        self, requests: Sequence[GenerationRequest], *, batch_size: int = BATCH_SIZE, on_step: OnStep | None = None
    ) -> Iterator[GeneratedImage]:
        """Generate requests with equal settings. Each image depends on its own prompt, adapters and seed only.

        After each batch, the base is restored.

        Raises:
            TaraError: as `stream`.
        """
        if batch_size < 1:
            raise TaraError(f"batch_size is {batch_size}. Give 1 or more.")
        if not requests:
            return
        settings = requests[0].settings
        if settings.guidance_scale is None:
            settings = settings.model_copy(update={"guidance_scale": self.base.defaults.guidance_scale})
        assert all(request.settings == requests[0].settings for request in requests), (
            "one settings model for all requests"
        )
        rows = prompt_rows(self.base, requests)
        jobs = [(request, row, seed) for request, row in zip(requests, rows, strict=True) for seed in request.seeds]
        self.base.onload()  # training may have moved parts away
        pipe, arguments = task_pipeline(self.base, settings)
        if self._execution.offload:  # the pipeline that generates gives its parts back after each call
            pipe.enable_model_cpu_offload(device=self.base.device)
        done = 0
        ready: PreparedBatch | None = None
        for numbers in _batches([row for _, row, _ in jobs], batch_size):
            batch = [jobs[number] for number in numbers]
            batch_rows = [row for _, row, _ in batch]
            if ready is None or ready.rows != batch_rows:  # once per prompt, not once per batch
                ready = prepared_batch(self._encoder, pipe, batch_rows, settings)

            def report(step: int, steps: int, done: int = done, size: int = len(batch)) -> None:
                if on_step is not None:
                    on_step(DenoisingStep(step, steps, done, size, len(jobs)))

            with applied(self.base, ready), compiler_failures():
                seeds = [seed for *_, seed in batch]
                images = call_pipeline(pipe, settings, seeds, report, **ready.arguments, **arguments)
            done += len(batch)
            state = ready.evaluations[0].confined
            # computed before the next batch, which may use the same state object
            regions = [state.regions_of(row) if state else None for row in range(len(batch))]
            for number, (request, _, seed), image, of_image in zip(numbers, batch, images, regions, strict=True):
                yield GeneratedImage(number, seed, image, request, of_image)


def _batches(rows: Sequence[PromptRow], size: int) -> Iterator[list[int]]:
    """Split the indices of the rows into batches of at most ``size`` rows with equal `PromptRow.batch_key`."""
    groups: dict[Any, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.batch_key, []).append(number)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
