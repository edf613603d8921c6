"""Continuous batching: images of many requests share network calls, one denoising step at a time.

```text
 waiting      [d] [e]                first come, first served, as soon as rows are free
 in flight    [a: step 17 of 30] [b: 3 of 8] [c: 0 of 20]
 one call     rows  a- a+  b+  c- c+   each with its own timestep, text keys and values, guidance and scheduler
```

Rows of one call share the network's weights and the image size, and nothing else. Images that differ in size or in the
global part of their adapters are in different calls, which take turns.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.batch import PreparedBatch, prepared_batch, prompt_rows
from tara.inference.capacity import ByteBoundedCache, rows_that_fit
from tara.inference.denoising import Denoising, Generation
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.inference.shared_calls import InFlight, SharedCalls
from tara.inference.stock_pipeline import stock_guidance
from tara.inference.text_kv import CachedTextEncoder

CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class EngineStep:
    """One network call: its rows, its total seconds, and the seconds spent on joining text keys and values."""

    rows: int
    seconds: float
    joining_seconds: float


class Engine:
    """Generates images of many requests at once on one base. As a context manager it restores the base at the end.

    `submit`, `stop` and `Generation.cancel` may be called from any thread, all other methods from one thread only.

    Args:
        base: the base. Other code must not change it while the engine is open.
        rows: most rows in flight, counted at the base's own resolution; a guided image has 2. None: as many as fit.
        cache_bytes: memory for prepared prompts (embeddings, keys and values). The least recently used are dropped.
        on_step: called after each network call.

    Raises:
        TaraError: for a base that only its own diffusers pipeline can generate with.
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
        self._in_flight: list[InFlight] = []
        self._prepared = ByteBoundedCache[tuple[Any, ...], PreparedBatch](cache_bytes, _prepared_bytes)
        self._encoder = CachedTextEncoder(base, cache_bytes // 8)
        self._calls = SharedCalls(base)
        self.cache_hits, self.cache_misses = 0, 0
        self._is_stopped = False

    def __enter__(self) -> Self:
        self.base.processors.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stop(self) -> None:
        """Refuse new requests, and make `run` return after its current network call."""
        with self._wake:
            self._is_stopped = True
            self._wake.notify_all()

    def close(self) -> None:
        """Cancel all unfinished images and restore the base. `run` must have returned before."""
        self.stop()
        for generation in (*self._waiting, *(member.generation for member in self._in_flight)):
            generation.cancel()
        self._drop_finished()
        self._calls.end_turn()
        self.base.processors.release()

    def submit(
        self,
        request: GenerationRequest,
        on_change: Callable[[Generation], object] = lambda _: None,
        preview_every: int = 0,
    ) -> list[Generation]:
        """Queue a request: one `Generation` for each of its seeds.

        Raises:
            TaraError: for requests that only `tara.Pipeline` supports, see `check_request`.
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
        """Memory of the prepared prompts, in bytes."""
        return self._prepared.bytes

    def run(self, poll_seconds: float = 1.0) -> None:
        """Make steps until another thread calls `stop`. The target of the engine's thread."""
        while not self._is_stopped:
            if not self.step():
                with self._wake:
                    self._wake.wait_for(lambda: self._waiting or self._is_stopped, poll_seconds)

    @torch.no_grad()
    def step(self) -> bool:
        """Drop cancelled images, start waiting ones and make one network call. False if there is nothing to do."""
        self._drop_finished()
        self._let_in()
        members = self._calls.next_members(self._in_flight, self.rows)
        if not members:
            return False
        started = time.perf_counter()
        joined = self._calls.join(members)
        joining = time.perf_counter() - started
        try:
            predictions = self._calls.predict(joined)
        except torch.OutOfMemoryError as failure:
            self._make_room(members, failure)
            return True
        except Exception as failure:  # the other requests go on
            self._calls.give_up()
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
        """Start waiting images in order of arrival while rows are free; a later image never starts first."""
        while self._waiting:
            generation = self._waiting[0]
            rows, load = self._rows(generation.request.settings)
            # an image with more rows than allowed is generated alone
            if self._in_flight and load + sum(member.load for member in self._in_flight) > self.rows:
                return
            try:
                self._in_flight.append(self._started(generation, load, guided=rows == 2))
            except Exception as failure:  # an error of one request must not end the others
                _end(generation, failure=failure)
            with self._wake:
                self._waiting.popleft()

    def _rows(self, settings: GenerationSettings) -> tuple[int, float]:
        """An image's number of rows in a network call, and the same counted as rows of the base's own resolution."""
        rows = 2 if self.base.family.is_guided(self._pipe, settings.guidance_scale or 0.0) else 1
        height, width = settings.height or self.base.resolution, settings.width or self.base.resolution
        return rows, rows * height * width / self.base.resolution**2

    def _started(self, generation: Generation, load: float, *, guided: bool) -> InFlight:
        prepared = self._prepare(generation.request, guided)
        denoising = Denoising(self.base, generation.request.settings, generation.seed, guided=guided)
        generation.steps = denoising.steps
        return InFlight(generation, prepared, denoising, load)

    def _prepare(self, request: GenerationRequest, guided: bool) -> PreparedBatch:
        settings = request.settings
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
            self._calls.end_turn()  # text is encoded and projected by the base's own weights
            (row,) = prompt_rows(self.base, [request])
            self._prepared[key] = prepared_batch(self._encoder, self._pipe, [row], settings)
        return self._prepared[key]

    def _advance(self, member: InFlight, prediction: Tensor) -> None:
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

    def _make_room(self, members: list[InFlight], failure: torch.OutOfMemoryError) -> None:
        """After a call ran out of memory: allow fewer rows from now on; an image that does not fit alone fails."""
        self._calls.give_up()
        torch.cuda.empty_cache()
        if len(members) > 1:
            self.rows = max(1, int(sum(member.load for member in members) / 2))
            return
        full = TaraError("The device's memory is full. Choose a smaller size.")
        full.__cause__ = failure
        _end(members[0].generation, failure=full)


def check_request(request: GenerationRequest) -> None:
    """Refuse (TaraError) a composer whose network calls cannot be shared, and image-to-image and inpainting."""
    if request.settings.image is not None:
        raise TaraError("The engine generates from text alone. Leave the image out, or use tara.Pipeline.")
    composer = request.settings.composer_for(request.adapters)
    if composer.turns is not None or composer.regional:
        raise TaraError(
            f"The composer '{request.settings.composer or 'regions'}' has network calls of its own, which several "
            "requests cannot share. Choose another composer, such as sum; tara.Pipeline has all."
        )


def _check_base(base: Base) -> None:
    config = base.denoiser.config
    if getattr(config, "time_cond_proj_dim", None) is not None:
        raise TaraError("This base takes the guidance scale as an input (LCM-distilled). Use tara.Pipeline with it.")
    if int(config.in_channels) != int(base.vae.config.latent_channels):
        raise TaraError("This base is for inpainting or editing. Use a text-to-image base, or tara.Pipeline.")


def _end(generation: Generation, *, image: Image.Image | None = None, failure: Exception | None = None) -> None:
    generation.image, generation.failure = image, failure
    # a callback that fails would end the thread that all requests share
    with suppress(Exception):
        generation.on_change(generation)


def _prepared_bytes(prepared: PreparedBatch) -> int:
    (row,), (text,) = prepared.rows, prepared.evaluations
    deltas = (delta for active in row.acting for delta in active.adapter.all_layers.values())
    weights = sum(delta.a.nbytes + delta.b.nbytes for delta in deltas)
    return text.conditioning.nbytes + text.encoding.nbytes + weights
