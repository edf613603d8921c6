"""Prompts, adapters and seeds to pictures."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tara.errors import TaraError
from tara.families.base import Backbone
from tara.families.loading import best_precision, device_named, load_base
from tara.families.settings import ExecutionSettings, Prediction
from tara.inference.binding import AdapterLists, AdapterUse
from tara.inference.execution import compiler_failures, execute, offload
from tara.inference.prepare import Composed, EncodingCache, PromptRow, at_work, composed, prompt_rows
from tara.inference.stock_pipelines import Drawer, SamplingSettings, drawer, sampling_settings
from tara.storage.validation import build


@dataclass(frozen=True, eq=False)
class Generated:
    """One picture and what made it; ``index`` counts prompts first, then seeds."""

    index: int
    prompt: str
    seed: int
    image: Image.Image
    uses: tuple[AdapterUse, ...]
    settings: SamplingSettings

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters' files."""
        return tuple(use.name for use in self.uses)


@dataclass(frozen=True)
class SamplingStep:
    """One denoising step of one batch: ``step`` of ``steps``, ``drawn`` of ``images`` pictures finished before it."""

    step: int
    steps: int
    drawn: int
    batch: int
    images: int

    @property
    def fraction(self) -> float:
        """How much of everything is done."""
        return (self.drawn + self.batch * self.step / self.steps) / self.images


@dataclass(frozen=True, eq=False)
class _Job:
    index: int
    seed: int
    row: PromptRow


class Studio:
    """Draws pictures on one base with any adapters.

    Args:
        base: ``toyland``, ``sd15``, ``sdxl``, a folder, a hub id, a :class:`Backbone` or a loaded diffusers pipeline.
        device: the best one found when None; a loaded pipeline stays where it is.
        dtype: the best one for the device when None, see :func:`tara.families.loading.best_precision`.
        revision, variant, vae, prediction_type: of a base that is loaded by name, see :func:`tara.families.loading.load_base`.
        execution: fields of :class:`tara.training.settings.ExecutionSettings`: compile, attention_slicing, offload.

    Raises:
        TaraError: when the base cannot be loaded or used, or not run so.
    """

    def __init__(
        self,
        base: str | Path | Backbone | Any = "toyland",
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        variant: str | None = None,
        vae: str | Path | None = None,
        prediction_type: Prediction | None = None,
        **execution: bool,
    ) -> None:
        self._execution = build(ExecutionSettings, execution)
        place = None
        if isinstance(base, Backbone):
            self.backbone = base
        elif isinstance(base, (str, Path)):
            place = device_named(device)
            self.backbone = load_base(
                base,
                # parts that wait in the CPU's memory need not all have been on the GPU at once
                "cpu" if self._execution.offload else device,
                dtype or best_precision(place),
                revision=revision,
                variant=variant,
                vae=vae,
                prediction_type=prediction_type,
            )
        elif getattr(base, "controlnet", None) is not None:
            raise TaraError(
                f"A {type(base).__name__} needs a control picture, which Studio does not take. "
                "Call it yourself: `with tara.prepared(pipe, prompt, adapters) as kwargs: pipe(image=..., **kwargs)`."
            )
        else:
            self.backbone = Backbone.from_pipeline(base)
        execute(self.backbone, self._execution, place or self.backbone.device)
        self._texts: EncodingCache = {}

    def __call__(
        self,
        prompt: str | Sequence[str],
        adapters: AdapterLists = (),
        seeds: Iterable[int] = (0,),
        *,
        on_step: Callable[[SamplingStep], object] | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        """The pictures of every prompt with every seed, prompts first; arguments as in :meth:`stream`."""
        drawn = sorted(self.stream(prompt, adapters, seeds, on_step=on_step, **settings), key=lambda one: one.index)
        return [one.image for one in drawn]

    def stream(
        self,
        prompt: str | Sequence[str],
        adapters: AdapterLists = (),
        seeds: Iterable[int] = (0,),
        *,
        on_step: Callable[[SamplingStep], object] | None = None,
        **settings: Any,
    ) -> Iterator[Generated]:
        """Draw every prompt with every seed and yield each picture as soon as its batch is done.

        A picture is a function of its prompt, adapters and seed, whatever the batch it is drawn in. The U-Net is given
        back as it was found after each batch.

        Args:
            prompt: one prompt or several.
            adapters: for all prompts, or one list for each prompt.
            seeds: one generator each.
            on_step: called after each denoising step, for progress bars.
            settings: fields of :class:`tara.inference.stock_pipelines.SamplingSettings`.

        Raises:
            TaraError: for unknown or impossible settings, and when an adapter does not fit the base or the prompt.
        """
        chosen = sampling_settings(settings)
        if chosen.guidance_scale is None:
            chosen = replace(chosen, guidance_scale=self.backbone.guidance_scale)
        rows = prompt_rows(self.backbone, prompt, adapters, chosen.negative_prompt, chosen.text.composed_by)
        jobs = [_Job(index, seed, row) for index, (row, seed) in enumerate(product(rows, seeds))]
        self.backbone.wake()  # a training may have let parts rest
        how = drawer(self.backbone, chosen)
        if self._execution.offload:  # the pipeline that draws gives its parts back after each call
            offload(how.pipe, self.backbone.device)
        painter = Backbone(how.pipe)
        drawn = 0
        ready: tuple[list[PromptRow], Composed] | None = None
        for batch in _batches(jobs, chosen.batch_size):
            batch_rows = [job.row for job in batch]
            if ready is None or ready[0] != batch_rows:  # once per prompt, not once per batch
                ready = batch_rows, composed(painter, batch_rows, chosen.text, self._texts)
            report = None if on_step is None else _StepReport(on_step, drawn, len(batch), len(jobs))
            with at_work(painter, ready[1]), compiler_failures():
                images = _draw(how, [job.seed for job in batch], chosen.steps, report, ready[1].arguments)
            drawn += len(batch)
            for job, image in zip(batch, images, strict=True):
                yield Generated(job.index, job.row.prompt, job.seed, image, job.row.uses, chosen)


def _draw(
    how: Drawer, seeds: Sequence[int], steps: int, report: "_StepReport | None", text: Mapping[str, Any]
) -> list[Image.Image]:
    # noise is drawn on the CPU, so that a seed means the same noise on every device
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    kept = how.kept and how.kept.wearing(seeds)

    def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if kept is not None:
            tensors["latents"] = kept.put_back(pipe, index, tensors["latents"])
        if report is not None:
            report(int(pipe.num_timesteps))
        return tensors

    drawn = how.pipe(
        **text, **how.arguments, num_inference_steps=steps, generator=generators, callback_on_step_end=after_step
    )
    return list(drawn.images)


@dataclass
class _StepReport:
    """Tells a progress bar about each step of a batch."""

    tell: Callable[[SamplingStep], object]
    drawn: int
    batch: int
    images: int
    done: int = 0

    def __call__(self, steps: int) -> None:
        self.done += 1  # second-order schedulers take more steps than they were asked for
        self.tell(SamplingStep(self.done, max(steps, self.done), self.drawn, self.batch, self.images))


def _batches(jobs: Sequence[_Job], size: int) -> Iterator[list[_Job]]:
    """Jobs in order, split where the global parts, which sit in the U-Net's weights, or their turns differ."""
    groups: dict[Any, list[_Job]] = {}
    for job in jobs:
        groups.setdefault(job.row.batch_key, []).append(job)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]
