"""Training: concepts become adapters, one step at a time, several of them side by side in one U-Net call."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tara.adapters.adapter import Adapter
from tara.core.losses import denoising_loss
from tara.core.noise import generator_for
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import TextConditioning
from tara.training.card import trained_card
from tara.training.concepts import check_concepts, check_on_base, prepare, prior_acts
from tara.training.data.encoded import TextCache
from tara.training.data.examples import Example
from tara.training.distributed import ALONE, Processes
from tara.training.image_batch import ImageBatch, image_batch
from tara.training.nan_guard import check_no_nan
from tara.training.optimizers import ConceptOptimizers, learning_rate_schedule
from tara.training.run.checkpoints import TrainingState
from tara.training.settings import ConceptSettings, TrainSettings
from tara.training.text_batch import TextBatch, alignment, text_batch, text_conditioning
from tara.training.weights import ConceptWeights

SKIPPED_IN_A_ROW = 50  # a loss scale that is still too large then is not the cause
SAME_WHEN_RESUMED = ("seed", "targets", "token_mask", "alpha", "optimizer")  # others may be changed on the way


@dataclass(frozen=True, kw_only=True)
class ConceptStep:
    """One concept's part in a step: its losses before the update, and what became of its gradient."""

    name: str
    loss: float
    denoising: float
    alignment: float
    prior: float
    grad_norm: float
    skipped: bool


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimiser step of all concepts; ``index`` counts finished steps, from 1 to ``steps``."""

    index: int
    steps: int
    learning_rate: float
    concepts: tuple[ConceptStep, ...]

    @property
    def loss(self) -> float:
        """Mean loss of the concepts."""
        return sum(concept.loss for concept in self.concepts) / len(self.concepts)


class Training:
    """A training run in progress: the concepts' material, their weights, and the number of finished steps."""

    def __init__(
        self,
        concepts: Sequence[ConceptSettings],
        settings: TrainSettings,
        base: Base,
        class_folders: Mapping[str, Path] | None = None,
        examples: Sequence[Sequence[Example]] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Read and encode everything that the steps need.

        Args:
            concepts: what to learn; each becomes one adapter.
            settings: how.
            base: the frozen base; its precision is the U-Net's.
            class_folders: for prior preservation, each class word's folder of class images.
            examples: what `tara.training.concepts.check_concepts` gave, when `tara.training.concepts.check_on_base` has
                looked at them already.
            processes: which share each step's calls of the U-Net and average what comes of them.

        Raises:
            TaraError: for bad photos, captions or words, a base that cannot be trained on, and a missing optimiser
                package.
        """
        if examples is None:
            examples = check_concepts(concepts, settings)
            check_on_base(concepts, examples, settings, base)
        folders = _prior_folders(concepts, settings, class_folders or {})
        self.concepts, self.settings, self.base, self.step = tuple(concepts), settings, base, 0
        self.processes = processes
        self._texts = TextCache(base)
        self._materials = [
            prepare(concept, read, settings, base, self._texts, folders.get(concept.class_word))
            for concept, read in zip(concepts, examples, strict=True)
        ]
        precise = torch.float64 if base.dtype == torch.float64 else torch.float32
        self._schedule = base.noise_schedule.to(base.device, precise)
        self._weights = ConceptWeights(
            {path: base.projection_sizes(path) for path in base.target_layers(settings.targets)},
            rank=settings.rank,
            scale=settings.scale,
            freeze_down=settings.freeze_down,
            generators=[generator_for(settings.seed, material.key, "weights") for material in self._materials],
            device=base.device,
            dtype=precise,
        )
        self._optimizers = ConceptOptimizers(
            self._weights.flat,
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
        self.is_whole = True
        """Whether weights, optimisers and ``step`` belong together; not so in the midst of an update."""
        self._last_text: TextBatch | None = None
        self._skipped = [0] * len(concepts)

    def steps(self) -> Iterator[StepRecord]:
        """Train to the last step. Between two records the run may be saved, the base used, or the rest left undone."""
        with _patched(self.base, self.settings.gradient_checkpointing):
            while self.step < self.settings.steps:
                self.base.processors.install()  # a preview may have released the pipeline
                if self.base.device.type != "cpu":  # and it needs these parts, which steps do not
                    self.base.offload()
                yield self._one_step()

    def adapters(self) -> list[Adapter]:
        """The adapters as they are now, one per concept, on the CPU."""
        return [
            Adapter(
                trained_card(concept, self.settings, self.base, self.step, self.processes.count),
                self._weights.of_concept(index),
                name=concept.file.name,
            )
            for index, concept in enumerate(self.concepts)
        ]

    def state(self) -> TrainingState:
        """Everything that a run resumed after this step needs."""
        tensors, plain = self._optimizers.state()
        named = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        return TrainingState(
            step=self.step,
            tensors={"weights": self._weights.flat.detach().clone(), **named},
            plain={
                "optimizer": plain,
                "concepts": [material.key for material in self._materials],
                "same": self._same(),
            },
        )

    def _same(self) -> dict[str, Any]:
        """What a resumed run must share with the one that wrote a checkpoint, beside its concepts."""
        settings = self.settings.model_dump(mode="json", include=set(SAME_WHEN_RESUMED))
        return {"base": self.base.fingerprint, **settings}

    def load(self, state: TrainingState) -> None:
        """Go on from a state; the steps to come are those of a run that was never stopped.

        Raises:
            TaraError: when the state is of other concepts, or its base, rank, seed, targets, masks or optimiser were
                others.
        """
        keys = [material.key for material in self._materials]
        if state.plain.get("concepts") != keys or state.tensors["weights"].shape != self._weights.flat.shape:
            raise TaraError(
                "The checkpoint is of other concepts, another base, rank or freeze_down than these settings. "
                "Resume with the settings of its run folder, or train anew."
            )
        for name, value in self._same().items():
            if (before := state.plain["same"].get(name)) != value:
                raise TaraError(
                    f"The checkpoint was written with {name} = {before}, but now {name} = {value}. "
                    "Resume with the settings of its run folder, or train anew."
                )
        named = {name.removeprefix("optimizer."): tensor for name, tensor in state.tensors.items()}
        del named["weights"]
        self._weights.load(state.tensors["weights"])
        self._optimizers.load(named, state.plain["optimizer"])
        self.step = state.step

    def _one_step(self) -> StepRecord:
        calls = self.processes.shard(self.step, self.settings.gradient_accumulation_steps)
        rate = self._learning_rate(self.step)
        factors = self._weights.flat.new_tensor(self._optimizers.loss_scales) / len(calls)
        total = torch.zeros(())
        for call in calls:
            losses = self._losses(call)
            (losses[0] * factors).sum().backward()
            total = total.to(losses) + losses.detach() / len(calls)
        total = self._over_processes(total)
        self._check_finite("loss", total[0], rate)
        self.is_whole = False
        applied = self._optimizers.step(rate)
        self.step += 1
        self.is_whole = True
        parts = [
            ConceptStep(
                name=concept.label,
                loss=loss,
                denoising=denoising,
                alignment=alignment,
                prior=prior,
                grad_norm=what.grad_norm,
                skipped=what.skipped,
            )
            for concept, (loss, denoising, alignment, prior), what in zip(
                self.concepts, total.T.tolist(), applied, strict=True
            )
        ]
        self._watch(parts, rate)
        return StepRecord(index=self.step, steps=self.settings.steps, learning_rate=rate, concepts=tuple(parts))

    def _over_processes(self, losses: Tensor) -> Tensor:
        """Average the gradients over all processes; give the average of the losses."""
        gradient = self._weights.flat.grad
        assert gradient is not None, "a backward pass comes first"
        self.processes.barrier()  # whatever fails in one process alone has failed by now
        self._weights.flat.grad = self.processes.mean(gradient)
        return self.processes.mean(losses)

    def _losses(self, call: int) -> Float[Tensor, "4 concepts"]:
        """Total, denoising, alignment and prior loss of each concept in one U-Net call."""
        settings, count = self.settings, len(self.concepts)
        images = image_batch(
            self._materials,
            self._schedule,
            seed=settings.seed,
            call=call,
            batch_size=settings.batch_size,
            snr_gamma=settings.snr_gamma,
        )
        text = self._text(images)
        learned = text_conditioning(self.base, text, self._weights)
        rows = self._denoising(images, text, learned).unflatten(0, (count, -1))
        denoising = rows[:, : settings.batch_size].mean(1)
        zeros = torch.zeros_like(denoising)
        prior = rows[:, settings.batch_size :].mean(1) if rows.shape[1] > settings.batch_size else zeros
        aligned = zeros
        if settings.aligns and settings.alignment_loss != "off":
            aligned = alignment(text, learned, concepts=count, photos=settings.batch_size, form=settings.alignment_loss)
        aligned = aligned.to(denoising)
        total = denoising + settings.alignment_weight * aligned + settings.prior_loss_weight * prior
        return torch.stack([total, denoising, aligned, prior])

    def _denoising(self, images: ImageBatch, text: TextBatch, learned: TextConditioning) -> Float[Tensor, " rows"]:
        """Each row's denoising loss; the U-Net is called once for each shape of picture."""
        losses: list[Tensor] = []
        for part in images.groups:
            alone = len(images.groups) == 1
            predicted = self.base.predict(
                part.noisy.to(self.base.dtype),
                part.timesteps,
                text.encoding if alone else text.encoding.take(part.rows),
                learned if alone else learned.take(part.rows),
                sizes=part.sizes,
            ).to(part.target)
            losses.append(denoising_loss(predicted, part.target, part.weights, part.focus))
        return images.in_order(losses)

    def _text(self, images: ImageBatch) -> TextBatch:
        # with one fixed caption per concept all calls have the same text
        last = self._last_text
        if last is None or last.captions != images.captions:
            last = text_batch(
                images.captions, self._texts, concepts=len(self.concepts), token_mask=self.settings.token_mask
            )
            self._last_text = last
        return last

    def _watch(self, parts: Sequence[ConceptStep], rate: float) -> None:
        """Stop at gradients that are not finite, unless a loss scale has yet to find its size, and at such weights."""
        self._skipped = [before + 1 if part.skipped else 0 for before, part in zip(self._skipped, parts, strict=True)]
        scaled = self.base.dtype == torch.float16
        if any(skipped > (SKIPPED_IN_A_ROW if scaled else 0) for skipped in self._skipped):
            self._check_finite("gradient", torch.tensor([part.grad_norm for part in parts]), rate, ended=True)
        self._check_finite("adapter", self._weights.flat.detach(), rate, ended=True)

    def _check_finite(self, what: str, numbers: Tensor, rate: float, ended: bool = False) -> None:
        names, step = [concept.label for concept in self.concepts], self.step if ended else self.step + 1
        numbers = numbers.reshape(len(names), -1)
        check_no_nan(what, numbers, names, step=step, rate=rate, precision=self.base.dtype)


def train_concepts(
    concepts: Sequence[ConceptSettings],
    settings: TrainSettings,
    base: Base,
    resume: TrainingState | None = None,
) -> Generator[StepRecord, None, list[Adapter]]:
    """Train several concepts side by side; each comes out as if it had been trained alone.

    Yields:
        a record of every step.

    Returns:
        the adapters, in the order of the concepts (a generator's value: ``adapters = yield from ...``).

    Raises:
        TaraError: see `Training`.
    """
    training = Training(concepts, settings, base)
    if resume is not None:
        training.load(resume)
    yield from training.steps()
    return training.adapters()


def _prior_folders(
    concepts: Sequence[ConceptSettings], settings: TrainSettings, given: Mapping[str, Path]
) -> Mapping[str, Path]:
    if not prior_acts(settings):
        return {}
    for concept in concepts:
        if concept.class_word not in given:
            raise TaraError(f"Prior preservation needs images of the class '{concept.class_word}'. Give their folder.")
    return given


@contextmanager
def _patched(base: Base, gradient_checkpointing: bool) -> Generator[None]:
    """Freeze the base and install our processors, and give it back as it was."""
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
