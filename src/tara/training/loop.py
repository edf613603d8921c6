"""The training loop: several concepts share each forward pass of the network and train independent adapters."""

import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tara.adapters.adapter import Adapter
from tara.core.losses import denoising_loss
from tara.core.noise import concept_key, generator_for
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import TextConditioning
from tara.training.checkpoints import TrainingState
from tara.training.distributed import ALONE, Processes
from tara.training.image_batch import ImageBatch, encode, image_batch
from tara.training.inputs import TrainingInputs, trained_card
from tara.training.optimizers import ConceptOptimizers, learning_rate_schedule
from tara.training.text_batch import TextBatch, TextCache, alignment, text_batch, text_conditioning
from tara.training.weights import ConceptWeights

SKIPPED_IN_A_ROW = 50  # after so many halvings, the loss scale cannot be the cause
SAME_WHEN_RESUMED = ("seed", "targets", "token_mask", "alpha", "optimizer")  # others may change at a resume


class NaNError(TaraError):
    """A loss, a gradient or a weight is NaN or infinite, so training cannot continue."""


@dataclass(frozen=True)
class ConceptStep:
    """One concept's losses before a step's update, its gradient norm, and whether its update was skipped."""

    name: str
    loss: float
    denoising: float
    alignment: float
    prior: float
    grad_norm: float
    skipped: bool


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step of all concepts; ``index`` counts finished steps, from 1 to ``steps``."""

    index: int
    steps: int
    learning_rate: float
    concepts: tuple[ConceptStep, ...]

    @property
    def loss(self) -> float:
        """Mean loss of the concepts."""
        return sum(concept.loss for concept in self.concepts) / len(self.concepts)


class Training:
    """A training run in progress: encoded images, weights, optimizers, and the number of finished steps.

    Args:
        inputs: concepts, settings and base, see `tara.training.inputs.check_inputs`.
        class_folders: for prior preservation, each class word's folder of class images.
        processes: share the network calls of each step and average the gradients.

    Raises:
        TaraError: for class images that are missing or cannot be read.
        NaNError: from `steps`, `adapters` and `state`, when a number is NaN or infinite.
    """

    def __init__(
        self, inputs: TrainingInputs, class_folders: Mapping[str, Path] | None = None, processes: Processes = ALONE
    ) -> None:
        self.inputs, self.processes, self.step = inputs, processes, 0
        self.concepts, self.settings, self.base = inputs.concepts, inputs.settings, inputs.base
        self.is_whole = True
        """Whether weights, optimizers and ``step`` belong together; not so in the midst of an update."""
        settings, base = inputs.settings, inputs.base
        self._texts = TextCache(base)
        self.sources = encode(inputs, class_folders or {}, self._texts)
        self._keys = [concept_key(concept.rare_word, concept.class_word) for concept in inputs.concepts]
        precise = torch.promote_types(base.dtype, torch.float32)
        self._schedule = base.noise_schedule.to(base.device, precise)
        self.weights = ConceptWeights(
            {path: base.projection_sizes(path) for path in base.target_layers(settings.targets)},
            rank=settings.rank,
            scale=settings.scale,
            initial_weights=settings.init_lora_weights,
            freeze_down=settings.freeze_down,
            generators=[generator_for(settings.seed, key, "weights") for key in self._keys],
            device=base.device,
            dtype=precise,
        )
        self.optimizers = ConceptOptimizers(
            self.weights.flat,
            name=settings.optimizer,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            loss_scaling=base.dtype == torch.float16,
        )
        self._learning_rate = learning_rate_schedule(
            settings.lr_scheduler,
            peak=settings.peak_learning_rate,
            warmup=settings.lr_warmup_steps,
            steps=settings.steps,
        )
        self._last_text: TextBatch | None = None
        self._skipped = [0] * len(self.concepts)

    def steps(self) -> Iterator[StepRecord]:
        """Train to the last step. Between two records, the caller may save the state, use the base, or stop."""
        with _patched(self.base, self.settings.gradient_checkpointing):
            while self.step < self.settings.steps:
                self.base.processors.install()  # a preview may have released the pipeline
                if self.base.device.type != "cpu":  # and it needs these parts, which steps do not
                    self.base.offload()
                yield self._one_step()

    def adapters(self) -> list[Adapter]:
        """The current adapters, one per concept, on the CPU."""
        self._refuse_nan("adapter", self.step, self._finite_weights().tolist())
        cards = [trained_card(self.inputs, concept, self.step, self.processes.count) for concept in self.concepts]
        return [
            Adapter(card, self.weights.of_concept(index), name=concept.file.name)
            for index, (concept, card) in enumerate(zip(self.concepts, cards, strict=True))
        ]

    def state(self) -> TrainingState:
        """The state from which a run can be resumed after this step."""
        self._refuse_nan("adapter", self.step, self._finite_weights().tolist())
        tensors, plain = self.optimizers.state()
        tensors = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        tensors["weights"] = self.weights.flat.detach().clone()
        plain = {"optimizer": plain, "concepts": self._keys, "same": self._same()}
        return TrainingState(step=self.step, tensors=tensors, plain=plain)

    def _same(self) -> dict[str, Any]:
        """The values, besides the concepts, that must be equal in a resumed run and its checkpoint."""
        settings = self.settings.model_dump(mode="json", include=set(SAME_WHEN_RESUMED))
        return {"base": self.base.fingerprint, **settings}

    def load(self, state: TrainingState) -> None:
        """Resume exactly from a state. Raises TaraError if the state was made with other settings."""
        again = "Resume with the settings of its run folder, or train from the start."
        weights = state.tensors["weights"]
        if state.plain.get("concepts") != self._keys or weights.shape != self.weights.flat.shape:
            raise TaraError(
                f"The checkpoint has other concepts, or another base, rank or freeze_down, than these settings. {again}"
            )
        for name, value in self._same().items():
            if (before := state.plain["same"].get(name)) != value:
                raise TaraError(f"The checkpoint was written with {name} = {before}, but now {name} = {value}. {again}")
        self.weights.flat.detach().copy_(weights)
        named = {name.removeprefix("optimizer."): tensor for name, tensor in state.tensors.items()}
        self.optimizers.load(named, state.plain["optimizer"])
        self.step = state.step

    def images(self, call: int) -> ImageBatch:
        """The images of a network call, counted from 0 since training began."""
        return image_batch(self.sources, self._schedule, self.settings, call)

    def text(self, images: ImageBatch) -> TextBatch:
        """The text that goes with the images of a call."""
        last = self._last_text
        if last is None or last.captions != images.captions:  # with one fixed caption per concept they never differ
            last = self._last_text = text_batch(
                images.captions, self._texts, concepts=len(self.concepts), token_mask=self.settings.token_mask
            )
        return last

    def _one_step(self) -> StepRecord:
        calls = self.processes.shard(self.step, self.settings.gradient_accumulation_steps)
        rate = self._learning_rate(self.step)
        factors = self.weights.flat.new_tensor(self.optimizers.loss_scales) / len(calls)
        total = torch.zeros(())
        for call in calls:
            losses = self._losses(call)
            (losses[0] * factors).sum().backward()
            total = total.to(losses) + losses.detach() / len(calls)
        gradient = self.weights.flat.grad
        assert gradient is not None, "a step has network calls"
        self.processes.barrier()  # a failure of a single process has happened by now
        self.weights.flat.grad, total = self.processes.mean(gradient), self.processes.mean(total)
        # one transfer to the host per step; the weights are those after the previous step
        numbers = [*total, self.optimizers.gradient_norms(), self._finite_weights().to(total)]
        *losses, norms, finite = torch.stack(numbers).tolist()
        self._refuse_nan("adapter", self.step, finite)
        self._refuse_nan("loss", self.step + 1, map(math.isfinite, losses[0]))
        self.is_whole = False
        self.optimizers.step(rate, norms)
        self.step += 1
        self.is_whole = True
        parts = [
            ConceptStep(concept.label, *part, skipped=not math.isfinite(part[-1]))
            for concept, *part in zip(self.concepts, *losses, norms, strict=True)
        ]
        self._skipped = [before + 1 if part.skipped else 0 for before, part in zip(self._skipped, parts, strict=True)]
        # fp16's loss scale needs some steps to find its size
        if max(self._skipped) > (SKIPPED_IN_A_ROW if self.base.dtype == torch.float16 else 0):
            self._refuse_nan("gradient", self.step, map(math.isfinite, norms))
        return StepRecord(index=self.step, steps=self.settings.steps, learning_rate=rate, concepts=tuple(parts))

    def _finite_weights(self) -> Bool[Tensor, " concepts"]:
        return self.weights.flat.detach().isfinite().all(1)

    def _refuse_nan(self, what: str, step: int, finite: Iterable[object]) -> None:
        """Raise NaNError, with the probable cause, for the first concept with values that are not finite."""
        for concept, is_finite in zip(self.concepts, finite, strict=True):
            if not is_finite:
                raise NaNError(f"Step {step}: the {what} of '{concept.label}' is NaN or infinite. {self._cause(step)}")

    def _cause(self, step: int) -> str:
        if self.base.dtype == torch.float16:
            return "The range of float16 is probably too small: use precision bf16 or fp32, or lower learning_rate."
        if step == 1:
            return "It happened in the first step, so the base or a photo is probably damaged. Try others."
        return f"The learning rate ({self._learning_rate(step - 1):g}) is probably too high: lower learning_rate."

    def _losses(self, call: int) -> Float[Tensor, "4 concepts"]:
        """Total, denoising, alignment and prior loss of each concept in one call of the network."""
        settings, count = self.settings, len(self.concepts)
        images = self.images(call)
        text = self.text(images)
        learned = text_conditioning(self.base, text, self.weights)
        rows = self._denoising(images, text, learned).unflatten(0, (count, -1))
        photos, class_images = rows[:, : settings.batch_size], rows[:, settings.batch_size :]
        denoising = photos.mean(1)
        prior = class_images.mean(1) if class_images.shape[1] else torch.zeros_like(denoising)
        aligned = alignment(text, learned, settings).to(denoising) if settings.aligns else torch.zeros_like(denoising)
        total = denoising + settings.alignment_weight * aligned + settings.prior_loss_weight * prior
        return torch.stack([total, denoising, aligned, prior])

    def _denoising(self, images: ImageBatch, text: TextBatch, learned: TextConditioning) -> Float[Tensor, " rows"]:
        """The denoising loss of each row. The network is called once per image shape."""
        losses: list[Tensor] = []
        for group in images.groups:
            alone = len(images.groups) == 1
            predicted = self.base.predict(
                group.noisy.to(self.base.dtype),
                group.timesteps,
                text.encoding if alone else text.encoding.take(group.rows),
                learned if alone else learned.take(group.rows),
                sizes=group.sizes,
            ).to(group.target)
            losses.append(denoising_loss(predicted, group.target, group.weights, group.pixel_weights))
        return images.in_order(losses)


@contextmanager
def _patched(base: Base, gradient_checkpointing: bool) -> Generator[None]:
    """Freeze the base in a ``with`` block, and restore it afterwards."""
    needed_gradients = [p for part in base.parts for p in part.parameters() if p.requires_grad]
    was_training = [part for part in base.parts if part.training]
    was_installed = base.processors.installed
    checkpoint = gradient_checkpointing and not base.denoiser.is_gradient_checkpointing
    try:
        for part in base.parts:
            part.requires_grad_(False).eval()
        if checkpoint:
            base.denoiser.enable_gradient_checkpointing()
        yield
    finally:
        base.onload()
        if checkpoint:
            base.denoiser.disable_gradient_checkpointing()
        if not was_installed:
            base.processors.release()
        for parameter in needed_gradients:
            parameter.requires_grad_()
        for part in was_training:
            part.train()
