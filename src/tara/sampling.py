"""Prompts, adapters and seeds to pictures."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tara.adapter import Context
from tara.backbone import Backbone
from tara.bases import drawing_precision, load_base
from tara.binding import AdapterLists, AdapterUse
from tara.conditioning import (
    Composer,
    EncodingCache,
    PromptRow,
    TextOptions,
    borrowed,
    global_key,
    pipeline_arguments,
    prompt_rows,
)
from tara.errors import TaraError, nearest
from tara.pictures import read_image

SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # as the published bases have it
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Names of schedulers for users, diffusers' classes, and what those need besides a base's own schedule."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How pictures are drawn.

    Attributes:
        steps: denoising steps.
        guidance_scale: classifier-free guidance; the base's own default when None, off at 1 or less.
        scheduler: a name in :data:`SCHEDULERS`; the base's own when None.
        negative_prompt: what to keep away from; adapters never act on it.
        width, height: in pixels, multiples of 8; the base's own when None, or the start picture's shape at that size.
        image: start picture (image-to-image, or the picture to repaint when there is a mask).
        strength: how much of the start picture is drawn anew, over 0 to 1.
        mask: white where the start picture is repainted.
        batch_size: pictures drawn in one U-Net call; changes a pixel by at most 1/255.
        context, composer, clip_skip: see :class:`tara.conditioning.TextOptions`.
    """

    steps: int = 30
    guidance_scale: float | None = None
    scheduler: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    image: Image.Image | str | Path | None = None
    strength: float = 0.8
    mask: Image.Image | str | Path | None = None
    batch_size: int = 4
    context: Context | None = None
    composer: Composer = "tara"
    clip_skip: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise TaraError(f"{name} is {getattr(self, name)}. Give 1 or more.")
        for name in ("width", "height"):
            size = getattr(self, name)
            if size is not None and (size < 8 or size % 8):
                raise TaraError(f"{name} is {size}. Give a multiple of 8.")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            hint = nearest(self.scheduler, SCHEDULERS)
            raise TaraError(f"There is no scheduler '{self.scheduler}'.{hint} Known: {', '.join(SCHEDULERS)}.")
        if self.mask is not None and self.image is None:
            raise TaraError("There is a mask but no image to repaint. Give the image too.")
        if self.image is not None and not (0 < self.strength <= 1 and int(self.steps * self.strength) >= 1):
            raise TaraError(
                f"strength is {self.strength} with {self.steps} steps, which draws nothing. Raise it, up to 1."
            )

    @property
    def text(self) -> TextOptions:
        """The part that concerns keys and values."""
        return TextOptions(
            guidance_scale=self.guidance_scale, clip_skip=self.clip_skip, context=self.context, composer=self.composer
        )


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
        dtype: half precision on CUDA and float32 elsewhere when None.
        revision, variant, vae: of a base that is loaded by name, see :func:`tara.bases.load_base`.

    Raises:
        TaraError: when the base cannot be loaded or used.
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
    ) -> None:
        if isinstance(base, Backbone):
            self.backbone = base
        elif isinstance(base, (str, Path)):
            dtype = dtype or drawing_precision(device)
            self.backbone = load_base(base, device, dtype, revision=revision, variant=variant, vae=vae)
        elif getattr(base, "controlnet", None) is not None:
            raise TaraError(
                f"A {type(base).__name__} needs a control picture, which Studio does not take. "
                "Call it yourself: `with tara.prepared(pipe, prompt, adapters) as kwargs: pipe(image=..., **kwargs)`."
            )
        else:
            self.backbone = Backbone.from_pipeline(base)
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
            settings: fields of :class:`SamplingSettings`.

        Raises:
            TaraError: for unknown or impossible settings, and when an adapter does not fit the base or the prompt.
        """
        chosen = sampling_settings(settings)
        if chosen.guidance_scale is None:
            chosen = replace(chosen, guidance_scale=self.backbone.guidance_scale)
        rows = prompt_rows(self.backbone, prompt, adapters, chosen.negative_prompt)
        jobs = [_Job(index, seed, row) for index, (row, seed) in enumerate(product(rows, seeds))]
        pipe, extra = _pipeline(self.backbone, chosen)
        painter = Backbone(pipe)
        drawn, text, text_of = 0, dict[str, Any](), list[PromptRow]()
        for batch in _batches(jobs, chosen.batch_size):
            batch_rows = [job.row for job in batch]
            if text_of != batch_rows:  # once per prompt, not once per batch
                text, text_of = pipeline_arguments(painter, batch_rows, chosen.text, self._texts), batch_rows
            report = None if on_step is None else _StepReport(on_step, drawn, len(batch), len(jobs))
            with borrowed(painter, batch_rows[0].uses):
                images = _draw(pipe, [job.seed for job in batch], chosen.steps, report, text | extra)
            drawn += len(batch)
            for job, image in zip(batch, images, strict=True):
                yield Generated(job.index, job.row.prompt, job.seed, image, job.row.uses, chosen)


def _draw(
    pipe: Any, seeds: Sequence[int], steps: int, report: "_StepReport | None", arguments: Mapping[str, Any]
) -> list[Image.Image]:
    # noise is drawn on the CPU, so that a seed means the same noise on every device
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    drawn = pipe(**arguments, num_inference_steps=steps, generator=generators, callback_on_step_end=report)
    return list(drawn.images)


def sampling_settings(settings: Mapping[str, Any]) -> SamplingSettings:
    """Settings by name.

    Raises:
        TaraError: for a name that does not exist (with the nearest one) or an impossible value.
    """
    known = [field.name for field in fields(SamplingSettings)]
    for name in settings.keys() - set(known):
        raise TaraError(f"There is no sampling setting '{name}'.{nearest(name, known)} Known: {', '.join(known)}.")
    return SamplingSettings(**settings)


@dataclass
class _StepReport:
    """A diffusers callback that tells a progress bar about each step."""

    tell: Callable[[SamplingStep], object]
    drawn: int
    batch: int
    images: int
    done: int = 0

    def __call__(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.done += 1  # second-order schedulers number their half steps alike
        steps = max(int(pipe.num_timesteps), self.done)
        self.tell(SamplingStep(self.done, steps, self.drawn, self.batch, self.images))
        return tensors


def _batches(jobs: Sequence[_Job], size: int) -> Iterator[list[_Job]]:
    """Jobs in order, split where the global parts, which sit in the U-Net's weights, differ."""
    groups: dict[Any, list[_Job]] = {}
    for job in jobs:
        groups.setdefault(global_key(job.row.uses), []).append(job)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _pipeline(backbone: Backbone, settings: SamplingSettings) -> tuple[Any, dict[str, Any]]:
    """The stock pipeline for these settings, of the base's own parts, and the arguments that only it takes."""
    from diffusers.pipelines.auto_pipeline import (
        AutoPipelineForImage2Image,
        AutoPipelineForInpainting,
        AutoPipelineForText2Image,
    )

    size = {"width": settings.width or backbone.resolution, "height": settings.height or backbone.resolution}
    if settings.image is None:
        task, extra = AutoPipelineForText2Image, size
    else:
        start = _fitted(_read(settings.image), settings, backbone.resolution)
        extra = {"image": start, "strength": settings.strength}
        task = AutoPipelineForImage2Image
        if settings.mask is not None:
            mask = _read(settings.mask).convert("L").resize(start.size, Image.Resampling.NEAREST)
            task, extra = AutoPipelineForInpainting, {**extra, "mask_image": mask, "width": start.width}
            extra["height"] = start.height
    # shares every part with the base's pipeline, whose own settings stay as they are
    pipe: Any = task.from_pipe(backbone.pipe)
    pipe.set_progress_bar_config(disable=True)
    if settings.scheduler is not None:
        pipe.scheduler = make_scheduler(settings.scheduler, backbone.scheduler.config)
    return pipe, extra


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A scheduler by its name in :data:`SCHEDULERS`, with a base's noise schedule and prediction type."""
    import diffusers

    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(config, **options)


def _read(image: Image.Image | str | Path) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else read_image(Path(image))


def _fitted(image: Image.Image, settings: SamplingSettings, resolution: int) -> Image.Image:
    """The start picture at the asked size; without one, its shape with the base's resolution as the short side."""
    scale = resolution / min(image.size)
    width, height = (max(8, round(side * scale / 8) * 8) for side in image.size)
    size = (settings.width or width, settings.height or height)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
