"""Continuous batching: whoever joins and leaves, an image is the one that `tara.Pipeline` generates."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import tiny_adapters
import tiny_bases
from tara.adapters.adapter import Adapter
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.capacity import ByteBoundedCache, bytes_per_row
from tara.inference.denoising import Generation
from tara.inference.engine import Engine, EngineStep
from tara.inference.pipeline import Pipeline
from tara.inference.request import GenerationRequest
from tara.inference.settings import SCHEDULERS, GenerationSettings

WORDS = {"xlo": "dog", "szn": "cat", "vkt": "house"}


def _pixels(image: Image.Image | None) -> NDArray[np.int64]:
    assert image is not None
    return np.asarray(image, dtype=np.int64)


def _request(words: Sequence[str], adapters: dict[str, Adapter], seed: int = 0, **settings: Any) -> GenerationRequest:
    prompt = "a photo of " + (" and ".join(f"a {word} {WORDS[word]}" for word in words) or "a robot")
    used = tuple(ActiveAdapter(adapters[word]) for word in words)
    return GenerationRequest(prompt=prompt, adapters=used, seeds=(seed,), settings=GenerationSettings(**settings))


def _generated(base: Base, request: GenerationRequest) -> NDArray[np.int64]:
    """The reference: stock diffusers' own loop, one image alone."""
    (made,) = Pipeline(base).generate([request])
    return _pixels(made.image)


def _adapters(base: Base) -> dict[str, Adapter]:
    """Two on the text's keys and values, and one that also changes self-attention."""
    targets = {"vkt": tiny_adapters.ATTENTION}
    return {
        word: tiny_adapters.random_adapter(
            base, word, kind, seed=len(word) + ord(word[0]), targets=targets.get(word, tiny_adapters.CROSS_KV)
        )
        for word, kind in WORDS.items()
    }


BASES = {"sd": Base(tiny_bases.sd_pipeline()), "sdxl": Base(tiny_bases.sdxl_pipeline("v_prediction"))}
ADAPTERS = {name: _adapters(base) for name, base in BASES.items()}
ARRIVALS = st.lists(
    st.fixed_dictionaries(
        {
            "wait": st.integers(0, 3),
            "words": st.lists(st.sampled_from(sorted(WORDS)), unique=True, max_size=3),
            "seed": st.integers(0, 2**63 - 1),
            "cancelled_at": st.none() | st.integers(0, 4),
            "settings": st.fixed_dictionaries(
                {
                    "steps": st.integers(1, 4),
                    "guidance_scale": st.sampled_from([1.0, 3.0, 7.5]),
                    "scheduler": st.none() | st.sampled_from(sorted(SCHEDULERS)),
                    "negative_prompt": st.sampled_from([None, "a big car", "a big car, " * 30]),
                    "width": st.sampled_from([None, 48]),
                    "composer": st.sampled_from(["tara", "tara", "sum"]),
                }
            ),
        }
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("name", BASES)
@trials(max_examples=6)
@given(ARRIVALS, st.integers(1, 9))
def test_an_image_does_not_depend_on_who_joins_or_leaves(name: str, arrivals: list[dict[str, Any]], rows: int) -> None:
    base, generations = BASES[name], list[tuple[Generation, int | None]]()
    with Engine(base, rows=rows) as engine:
        for arrival in arrivals:
            request = _request(arrival["words"], ADAPTERS[name], arrival["seed"], **arrival["settings"])
            (generation,) = engine.submit(request)
            generations.append((generation, arrival["cancelled_at"]))
            for _ in range(arrival["wait"]):
                engine.step()
                _cancel_due(generations)
        while engine.step():
            _cancel_due(generations)
    for generation, cancelled_at in generations:
        if generation.cancelled:
            assert generation.image is None
            assert generation.step == cancelled_at
        else:
            assert generation.failure is None
            assert np.abs(_pixels(generation.image) - _generated(base, generation.request)).max() <= 1


def _cancel_due(generations: list[tuple[Generation, int | None]]) -> None:
    for generation, cancelled_at in generations:
        if generation.step == cancelled_at and not generation.is_over:
            generation.cancel()


def _drain(engine: Engine) -> None:
    while engine.step():
        pass


def test_requests_share_calls_from_the_step_at_which_they_come() -> None:
    base, calls = BASES["sd"], list[EngineStep]()
    with Engine(base, rows=8, on_step=calls.append) as engine:
        engine.submit(_request(["xlo"], ADAPTERS["sd"], steps=4, guidance_scale=3.0))
        engine.step()
        engine.submit(_request(["szn"], ADAPTERS["sd"], steps=2, guidance_scale=1.0))
        _drain(engine)
    assert [call.rows for call in calls] == [2, 3, 3, 2]
    assert all(call.seconds >= call.joining_seconds >= 0 for call in calls)


def test_a_cancelled_request_frees_its_rows_at_the_next_step() -> None:
    base, calls = BASES["sd"], list[EngineStep]()
    with Engine(base, rows=2, on_step=calls.append) as engine:
        (long,) = engine.submit(_request(["xlo"], ADAPTERS["sd"], steps=50, guidance_scale=3.0))
        (next_,) = engine.submit(_request([], ADAPTERS["sd"], steps=1, guidance_scale=3.0))
        engine.step()
        assert (engine.rows_in_flight, engine.waiting) == (2, 1)
        long.cancel()
        engine.step()
        assert next_.image is not None
    assert len(calls) == 2


def test_rows_are_bounded_and_nobody_is_overtaken() -> None:
    base, order, rows = BASES["sd"], list[int](), list[int]()
    with Engine(base, rows=4, on_step=lambda call: rows.append(call.rows)) as engine:
        for number in range(12):
            # every third is four times as large, every fifth has a global part
            size = {"width": 64, "height": 64} if number % 3 == 0 else {}
            words = ["vkt"] if number % 5 == 0 else ["xlo"]
            request = _request(words, ADAPTERS["sd"], steps=2, guidance_scale=3.0, **size)
            engine.submit(request, lambda made, number=number: order.append(number) if made.step == 1 else None)
        _drain(engine)
    assert order == sorted(order)
    assert len(order) == 12
    assert max(rows) == 4


def test_sizes_and_global_parts_take_turns() -> None:
    base, alive = BASES["sd"], list[int]()
    with Engine(base, rows=64) as engine:
        for number, (words, width) in enumerate(((["xlo"], 32), (["vkt"], 32), (["xlo"], 64))):
            request = _request(words, ADAPTERS["sd"], steps=20, guidance_scale=1.0, width=width)
            engine.submit(request, lambda _, number=number: alive.append(number))
        _drain(engine)
    # nobody waits longer than one turn of each of the others
    for number in range(3):
        served = [call for call, who in enumerate(alive) if who == number]
        assert max(np.diff(served)) <= 2 * 4 + 1
        assert len(served) == 20


def test_the_base_is_given_back_as_it_was() -> None:
    pipe = tiny_bases.sd_pipeline()
    base, processors = Base(pipe), dict(pipe.unet.attn_processors)
    weights = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    with Engine(base) as engine:
        (generation,) = engine.submit(_request(["vkt"], _adapters(base), steps=5))
        engine.step()  # its global part is in the network now
    assert generation.cancelled
    assert all(torch.equal(weight, weights[name]) for name, weight in pipe.unet.state_dict().items())
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in processors.items())
    with pytest.raises(TaraError, match="engine is closed"):
        engine.submit(generation.request)


def test_a_prompt_is_prepared_once_for_as_long_as_the_cache_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    base, encoded = BASES["sd"], list[str]()
    encode = base.encode
    monkeypatch.setattr(base, "encode", lambda texts, skip=None: (encoded.extend(texts), encode(texts, skip))[1])
    request = _request(["xlo"], ADAPTERS["sd"], steps=1)
    with Engine(base, rows=2) as engine:
        for seed in range(3):
            engine.submit(request.model_copy(update={"seeds": (seed,)}))
        _drain(engine)
        assert encoded.count(request.prompt) == 1
        assert 0 < engine.cached_bytes < 2**21
    with Engine(base, rows=2, cache_bytes=1) as engine:
        for prompt in (request.prompt, "a cat", request.prompt):
            engine.submit(request.model_copy(update={"prompt": prompt, "adapters": ()}))
            _drain(engine)
    assert encoded.count(request.prompt) == 3


def test_the_least_recently_used_goes_first_and_the_newest_stays() -> None:
    cache = ByteBoundedCache[str, str](6, len)
    cache["one"], cache["two"] = "aaa", "bbb"
    assert cache["one"] == "aaa"
    cache["three"] = "c"
    assert list(cache) == ["one", "three"]
    assert cache.bytes == 4
    cache["large"] = "x" * 100
    assert list(cache) == ["large"]


def test_one_failing_request_is_no_matter_of_the_others() -> None:
    base = BASES["sd"]
    with Engine(base, rows=64) as engine:
        bad = [
            engine.submit(GenerationRequest(prompt="a robot", adapters=(ActiveAdapter(ADAPTERS["sd"]["xlo"]),)))[0],
            engine.submit(_request([], ADAPTERS["sd"], scheduler="lcm", steps=60))[0],
        ]
        (good,) = engine.submit(_request(["xlo"], ADAPTERS["sd"], steps=2))
        _drain(engine)
    assert [type(generation.failure) for generation in bad] == [TaraError] * 2
    assert "'xlo' is not in the prompt" in str(bad[0].failure)
    assert np.abs(_pixels(good.image) - _generated(base, good.request)).max() <= 1


def test_a_call_that_does_not_fit_the_memory_is_made_again_with_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    base, largest = BASES["sd"], 4
    predict = base.predict

    def small_memory(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(latents) > largest:
            raise torch.OutOfMemoryError
        return predict(latents, *rest)

    monkeypatch.setattr(base, "predict", small_memory)
    with Engine(base, rows=16) as engine:
        requests = [_request(["xlo"], ADAPTERS["sd"], seed, steps=2, guidance_scale=3.0) for seed in range(6)]
        made = [engine.submit(request)[0] for request in requests]
        _drain(engine)
        assert 2 <= engine.rows <= 4
        largest = 1
        (too_large,) = engine.submit(requests[0])
        _drain(engine)
    monkeypatch.undo()
    assert all(np.abs(_pixels(one.image) - _generated(base, one.request)).max() <= 1 for one in made)
    assert "memory is full" in str(too_large.failure)


def test_a_failing_network_call_ends_its_images_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    base, predict = BASES["sd"], BASES["sd"].predict
    weights = {name: weight.clone() for name, weight in base.denoiser.state_dict().items()}

    def broken_for_two(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(latents) > 1:
            raise RuntimeError("broken")
        return predict(latents, *rest)

    monkeypatch.setattr(base, "predict", broken_for_two)
    with Engine(base, rows=2) as engine:
        (failing,) = engine.submit(_request(["vkt"], ADAPTERS["sd"], steps=2, guidance_scale=3.0))
        assert engine.step()
        assert all(torch.equal(weight, weights[name]) for name, weight in base.denoiser.state_dict().items())
        (good,) = engine.submit(_request([], ADAPTERS["sd"], steps=2, guidance_scale=1.0))
        _drain(engine)
    assert (str(failing.failure), failing.image) == ("broken", None)
    assert np.abs(_pixels(good.image) - _generated(base, good.request)).max() <= 1


def test_a_thread_of_its_own_serves_other_threads_until_it_is_stopped() -> None:
    base, done = BASES["sd"], threading.Event()
    with Engine(base) as engine:
        thread = threading.Thread(target=engine.run)
        thread.start()
        (made,) = engine.submit(
            _request(["xlo"], ADAPTERS["sd"], steps=3), lambda made: done.set() if made.is_over else None
        )
        assert done.wait(60)
        engine.stop()
        thread.join(60)
        assert not thread.is_alive()
    assert made.image is not None
    assert (made.step, made.steps) == (3, 3)


def test_previews_are_small_images_of_what_is_to_come() -> None:
    base, previews = BASES["sd"], list[Image.Image]()
    with Engine(base) as engine:
        request = _request([], ADAPTERS["sd"], steps=6, width=128, height=64, guidance_scale=3.0)

        def keep(made: Generation) -> None:
            if made.preview is not None and made.preview not in previews:
                previews.append(made.preview)

        (made,) = engine.submit(request, keep, preview_every=2)
        _drain(engine)
    assert [preview.size for preview in previews] == [(32, 16)] * 2  # the third would be the image itself
    image = made.image
    assert image is not None
    small = _pixels(image.resize((32, 16), Image.Resampling.BOX))
    errors = [np.abs(_pixels(preview) - small).mean() for preview in previews]
    assert errors[1] < errors[0]


def test_what_only_the_pipeline_does_is_refused() -> None:
    base, adapters = BASES["sd"], ADAPTERS["sd"]
    with Engine(base) as engine:
        for settings, message in (
            ({"image": Image.new("RGB", (32, 32))}, "from text alone"),
            ({"composer": "switch"}, "calls of its own"),
            ({"composer": "regions"}, "calls of its own"),
        ):
            with pytest.raises(TaraError, match=message):
                engine.submit(_request(["xlo"], adapters, **settings))
    for changed, message in (
        ({"time_cond_proj_dim": 8}, "guidance scale as an input"),
        ({"in_channels": 9}, "inpaint"),
    ):
        with pytest.raises(TaraError, match=message):
            Engine(Base(tiny_bases.sd_pipeline(**changed)))


@pytest.mark.parametrize("channels", [32, 128])
def test_the_estimate_of_a_rows_memory_is_no_less_than_what_it_takes(channels: int) -> None:
    """Beside the sizes of all tensors that are alive at a time, counted as torch allocates them."""
    base = Base(tiny_bases.sd_pipeline(block_out_channels=(channels, 2 * channels), sample_size=32))
    estimate = bytes_per_row(base)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        encoding = base.encode([""])
        with torch.no_grad():
            base.predict(torch.zeros(1, 4, 32, 32), torch.zeros(1), encoding)
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert peak <= estimate <= 6 * peak


def test_rows_follow_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    base = BASES["sd"]
    row = bytes_per_row(base)
    for free, rows in ((0, 1), (5 * row / 0.6, 5), (2**40, 8)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: type("Memory", (), {"available": free}))
        assert Engine(base).rows == rows
