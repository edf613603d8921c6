"""Continuous batching: images of many requests share network calls, one denoising step at a time.

```text
 waiting      [d] [e]                first come, first served, as soon as rows are free
 in flight    [a: step 17 of 30] [b: 3 of 8] [c: 0 of 20]
 one call     rows  a- a+  b+  c- c+   each with its own timestep, text keys and values, guidance and scheduler
```

Rows of one call share the network's weights and the image size, and nothing else. Images of other sizes, or whose
adapters have another global part, take turns.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import TextConditioning
from tara.families.text import TextEncoding
from tara.inference.batch import Conditioned, PromptRow, prepared_batch, prompt_rows
from tara.inference.capacity import ByteBoundedCache, rows_that_fit
from tara.inference.denoising import Denoising
from tara.inference.fusing import fused, global_part
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.inference.stock_pipeline import stock_guidance
from tara.inference.text_kv import TextEncoder

TURN = 4  # network calls of one size and global part before another's: fusing a global part costs about one call
CACHE_BYTES = 512 * 2**20


@dataclass(eq=False)
class Generation:
    """One image of a request on its way through an `Engine`, and its result.

    ``on_change`` is called in the engine's thread when a step, a preview, the image or the failure is there.
    """

    request: GenerationRequest
    seed: int
    on_change: Callable[["Generation"], object] = lambda _: None
    preview_every: int = 0
    """Steps between previews, 0 for none; may be changed at any time."""
    step: int = 0
    steps: int = 0
    """0 until it is in flight."""
    preview: Image.Image | None = None
    image: Image.Image | None = None
    failure: Exception | None = None
    cancelled: bool = False

    def cancel(self) -> None:
        """Give its rows to others at the next step."""
        self.cancelled = True

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.cancelled or self.image is not None or self.failure is not None


@dataclass(frozen=True)
class EngineStep:
    """One network call: its rows, all seconds that it took, and those spent on joining text keys and values."""

    rows: int
    seconds: float
    joining_seconds: float


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A prompt with its adapters, ready for network calls."""

    row: PromptRow
    conditioned: Conditioned
    guided: bool


@dataclass(frozen=True, eq=False)
class _InFlight:
    generation: Generation
    prepared: _Prepared
    denoising: Denoising
    load: float

    @property
    def key(self) -> tuple[Any, ...]:
        """What images share whose rows go into one call."""
        return self.denoising.size, self.prepared.row.batch_key


@dataclass(frozen=True, eq=False)
class _Joined:
    members: list[_InFlight]
    conditioning: TextConditioning
    encoding: TextEncoding


@dataclass
class _Turn:
    """Whose network calls are made now; ``weights`` holds their global part in the network."""

    key: object = None
    calls: int = 0
    weights: ExitStack | None = None
    last_served: dict[object, int] = field(default_factory=dict[object, int])


class Engine:
    """Generates images of many requests at once on one base; a context manager that gives the base back as it was.

    `submit`, `stop` and `Generation.cancel` may be called from any thread, everything else from one.

    Args:
        base: the base, which nobody else may change meanwhile.
        rows: of the base's own resolution in flight at once; as many as fit the memory when None. A guided image has 2.
        cache_bytes: for prepared prompts (encoded, with their adapters' keys and values); the least recently used go.
        on_step: called after each network call.

    Raises:
        TaraError: for a base that only its own pipeline can generate with.
    """

    def __init__(
        self,
        base: Base,
        *,
        rows: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        on_step: Callable[[EngineStep], object] = lambda _: None,
    ) -> None:
        _check_base(base)
        self.base = base
        self.rows = rows or rows_that_fit(base)
        self._on_step = on_step
        self._pipe = base.family.task_pipeline(base.pipe, "text-to-image")
        self._wake = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._in_flight: list[_InFlight] = []
        self._prepared = ByteBoundedCache[tuple[Any, ...], _Prepared](cache_bytes, _prepared_bytes)
        self._encoder = TextEncoder(base, cache_bytes // 8)
        self._turn = _Turn()
        self._joined: _Joined | None = None
        self._calls = 0
        self.cache_hits, self.cache_misses = 0, 0
        self._is_stopped = False

    def __enter__(self) -> Self:
        self.base.processors.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Let `run` return after the network call that it is making, and take no more requests."""
        with self._wake:
            self._is_stopped = True
            self._wake.notify_all()

    def close(self) -> None:
        """Cancel what is left, and give the base back as it was; `run` must have returned."""
        self.stop()
        for generation in (*self._waiting, *(member.generation for member in self._in_flight)):
            generation.cancel()
        self._drop_finished()
        self._end_turn()
        self.base.processors.release()

    def submit(
        self,
        request: GenerationRequest,
        on_change: Callable[[Generation], object] = lambda _: None,
        preview_every: int = 0,
    ) -> list[Generation]:
        """Queue a request: one `Generation` for each of its seeds.

        Raises:
            TaraError: for what only `tara.Pipeline` does, see `check_request`.
        """
        check_request(request)
        if request.settings.guidance_scale is None:
            suited = self.base.defaults.guidance_scale
            guidance = stock_guidance(self._pipe) if suited is None else suited
            settings = request.settings.model_copy(update={"guidance_scale": guidance})
            request = request.model_copy(update={"settings": settings})
        generations = [Generation(request, seed, on_change, preview_every) for seed in request.seeds]
        with self._wake:
            if self._is_stopped:
                raise TaraError("The engine is closed. Open another one.")
            self._waiting.extend(generations)
            self._wake.notify_all()
        return generations

    @property
    def waiting(self) -> int:
        """Images that wait for rows."""
        return len(self._waiting)

    @property
    def rows_in_flight(self) -> int:
        return sum(member.denoising.rows for member in tuple(self._in_flight))

    @property
    def cached_bytes(self) -> int:
        """Memory of the prepared prompts."""
        return self._prepared.bytes

    def run(self, poll_seconds: float = 1.0) -> None:
        """Work until `stop` is called from another thread: the body of the engine's own thread."""
        while not self._is_stopped:
            if not self.step():
                with self._wake:
                    self._wake.wait_for(lambda: self._waiting or self._is_stopped, poll_seconds)

    @torch.no_grad()
    def step(self) -> bool:
        """Let requests in and out, and make one network call; False when there is nothing to do."""
        self._drop_finished()
        self._let_in()
        members = self._next_members()
        if not members:
            return False
        started = time.perf_counter()
        joined = self._join(members)
        joining = time.perf_counter() - started
        try:
            predictions = self._predict(joined)
        except torch.OutOfMemoryError as failure:
            self._make_room(members, failure)
            return True
        except Exception as failure:  # the engine goes on for the others
            self._joined = None
            self._end_turn()
            for member in members:
                _end(member.generation, failure=failure)
            return True
        for member, prediction in zip(members, predictions, strict=True):
            self._advance(member, prediction)
        self._on_step(EngineStep(sum(map(len, predictions)), time.perf_counter() - started, joining))
        return True

    def _drop_finished(self) -> None:
        self._in_flight = [member for member in self._in_flight if not member.generation.is_over]
        with self._wake:
            if any(generation.cancelled for generation in self._waiting):
                self._waiting = deque(generation for generation in self._waiting if not generation.cancelled)

    def _let_in(self) -> None:
        """Start waiting images, in their order, while rows are free: nobody is overtaken."""
        while self._waiting:
            generation = self._waiting[0]
            load = self._load(generation.request.settings)
            # what is larger than everything is generated alone
            if self._in_flight and load + sum(member.load for member in self._in_flight) > self.rows:
                return
            try:
                self._in_flight.append(self._started(generation, load))
            except Exception as failure:  # whatever is wrong with one request is no matter of the others
                _end(generation, failure=failure)
            with self._wake:
                self._waiting.popleft()

    def _load(self, settings: GenerationSettings) -> float:
        """An image's rows, counted as rows of the base's own resolution."""
        rows = 2 if self.base.family.is_guided(self._pipe, settings.guidance_scale or 0.0) else 1
        height, width = _size(self.base, settings)
        return rows * height * width / self.base.resolution**2

    def _started(self, generation: Generation, load: float) -> _InFlight:
        settings = generation.request.settings
        prepared = self._prepare(generation.request)
        denoising = Denoising(self.base, settings, generation.seed, guided=prepared.guided)
        generation.steps = denoising.steps
        return _InFlight(generation, prepared, denoising, load)

    def _prepare(self, request: GenerationRequest) -> _Prepared:
        settings = request.settings
        guided = self.base.family.is_guided(self._pipe, settings.guidance_scale or 0.0)
        adapters = tuple(
            (active.adapter, active.weight, active.global_weight, active.rare_word, active.class_word)
            for active in request.adapters
        )
        options = (
            settings.negative_prompt,
            settings.composer_for(request.adapters),
            settings.context,
            settings.clip_skip,
        )
        key = request.prompt, adapters, options, guided
        if key in self._prepared:
            self.cache_hits += 1
        else:
            self.cache_misses += 1
            self._end_turn()  # text is encoded and projected by the base's own weights
            (row,) = prompt_rows(self.base, [request])
            batch = prepared_batch(self._encoder, self._pipe, [row], settings)
            self._prepared[key] = _Prepared(row, batch.evaluations[0], guided)
        return self._prepared[key]

    def _next_members(self) -> list[_InFlight]:
        """The images of the next network call: of those that can share one, the first that fit the memory."""
        keys = dict.fromkeys(member.key for member in self._in_flight)
        if not keys:
            self._end_turn()
            return []
        turn = self._turn
        if turn.key not in keys or (turn.calls >= TURN and len(keys) > 1):
            self._end_turn()
            # the one that has waited longest; of several new ones the first that came
            turn.key = min(keys, key=lambda key: turn.last_served.get(key, -1))
            turn.calls = 0
        turn.calls += 1
        turn.last_served = {key: turn.last_served[key] for key in keys if key in turn.last_served}
        turn.last_served[turn.key] = self._calls = self._calls + 1
        members: list[_InFlight] = []
        for member in self._in_flight:
            fits = not members or member.load + sum(other.load for other in members) <= self.rows
            if member.key == turn.key and fits:
                members.append(member)
        return members

    def _join(self, members: list[_InFlight]) -> _Joined:
        """The members' texts in one batch, made anew only when somebody has come or gone."""
        if self._joined is None or self._joined.members != members:
            parts = [member.prepared.conditioned for member in members]
            self._joined = _Joined(
                members,
                TextConditioning.join([part.conditioning for part in parts]),
                TextEncoding.join([part.encoding for part in parts]),
            )
        return self._joined

    def _predict(self, joined: _Joined) -> Sequence[Tensor]:
        """The network's prediction for each member, from one call."""
        if self._turn.weights is None:
            self._turn.weights = ExitStack()
            adapters = joined.members[0].prepared.row.everywhere
            self._turn.weights.enter_context(fused(self.base, global_part(adapters)))
        latents, timesteps = zip(*(member.denoising.inputs() for member in joined.members), strict=True)
        predicted = self.base.predict(torch.cat(latents), torch.cat(timesteps), joined.encoding, joined.conditioning)
        return predicted.split([member.denoising.rows for member in joined.members])

    def _end_turn(self) -> None:
        """Take the global part out of the network again."""
        if self._turn.weights is not None:
            self._turn.weights.close()
            self._turn.weights = None

    def _advance(self, member: _InFlight, prediction: Tensor) -> None:
        generation, denoising = member.generation, member.denoising
        try:
            denoising.advance(prediction)
            generation.step = denoising.step
            if denoising.is_done:
                _end(generation, image=denoising.image(self.base))
                return
            if generation.preview_every and denoising.step % generation.preview_every == 0:
                generation.preview = denoising.preview(self.base)
            generation.on_change(generation)
        except Exception as failure:
            _end(generation, failure=failure)

    def _make_room(self, members: list[_InFlight], failure: torch.OutOfMemoryError) -> None:
        """After a call that did not fit the memory: fewer rows from now on, or an end for what does not fit alone."""
        self._joined = None
        torch.cuda.empty_cache()
        if len(members) > 1:
            self.rows = max(1, int(sum(member.load for member in members) / 2))
            return
        full = TaraError("The device's memory is full. Choose a smaller size.")
        full.__cause__ = failure
        _end(members[0].generation, failure=full)


def check_request(request: GenerationRequest) -> None:
    """Refuse (TaraError) a composer whose network calls cannot be shared, and what starts from an image."""
    if request.settings.image is not None:
        raise TaraError("The engine generates from text alone. Leave the image out, or use tara.Pipeline.")
    composer = request.settings.composer_for(request.adapters)
    if composer.turns is not None or composer.regional:
        raise TaraError(
            f"The composer '{request.settings.composer or 'regions'}' has network calls of its own, which several "
            "requests cannot share. Choose another one, or use tara.Pipeline."
        )


def _check_base(base: Base) -> None:
    config = base.denoiser.config
    if getattr(config, "time_cond_proj_dim", None) is not None:
        raise TaraError("This base takes the guidance scale as an input (LCM-distilled). Use tara.Pipeline with it.")
    if int(config.in_channels) != int(base.vae.config.latent_channels):
        raise TaraError("This base is for inpainting or editing. Use a text-to-image base, or tara.Pipeline.")


def _size(base: Base, settings: GenerationSettings) -> tuple[int, int]:
    return settings.height or base.resolution, settings.width or base.resolution


def _end(generation: Generation, *, image: Image.Image | None = None, failure: Exception | None = None) -> None:
    generation.image, generation.failure = image, failure
    # a callback that fails would end the thread that all requests share
    with suppress(Exception):
        generation.on_change(generation)


def _prepared_bytes(prepared: _Prepared) -> int:
    deltas = (delta for active in prepared.row.acting for delta in active.adapter.all_layers.values())
    weights = sum(delta.a.nbytes + delta.b.nbytes for delta in deltas)
    return prepared.conditioned.conditioning.nbytes + prepared.conditioned.encoding.nbytes + weights
