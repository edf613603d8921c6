"""``tara.prepare``, ``prepared`` and ``release``: turn prompts and adapters into arguments of a diffusers pipeline."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tara.errors import TaraError, nearest
from tara.families.base import Base
from tara.families.processors import INSTALLED
from tara.inference.batch import PreparedBatch, applied, prepared_batch, prompt_rows
from tara.inference.request import AdapterLists, GenerationRequest, requests_for
from tara.inference.settings import GenerationSettings
from tara.inference.text_kv import CachedTextEncoder
from tara.storage.validation import build, takes

SETTINGS = ("guidance_scale", "clip_skip", "context", "composer", "region")


@takes(GenerationSettings, only=SETTINGS)
def prepare(
    pipe: Any,
    prompt: str | Sequence[str],
    adapters: AdapterLists = (),
    *,
    negative_prompt: str | Sequence[str] | None = None,
    num_images_per_prompt: int = 1,
    **settings: Any,
) -> dict[str, Any]:
    """Keyword arguments for a stock diffusers pipeline call: ``pipe(**tara.prepare(pipe, ...), image=..., ...)``.

    For text-to-image, image-to-image, inpainting and ControlNet pipelines of SD 1.x, 2.x and SDXL. Installs attention
    processors; until `release` removes them, other code must not load LoRAs into the pipeline, set its processors or
    compile it. Pipeline calls without these arguments give the same images as before.

    Args:
        pipe: a loaded pipeline.
        prompt: one prompt or several.
        adapters: for all prompts, or one list for each prompt; see `tara.inference.active_adapter.AdapterLike`.
        negative_prompt: for all prompts, or one for each. With the composer tara, no adapter acts on it. Give it here,
            not to the pipeline call, which refuses a negative prompt together with its embeddings.
        num_images_per_prompt: give it here, not to the pipeline call.
        settings: guidance_scale, clip_skip, context, composer and region of
            `tara.inference.settings.GenerationSettings`. Give them here only. Everything else, such as
            num_inference_steps, generator, width, height and image, goes to the pipeline call.

    Returns:
        ``prompt_embeds``, ``negative_prompt_embeds`` with guidance, their pooled vectors for SDXL, ``guidance_scale``,
        ``num_images_per_prompt`` and ``cross_attention_kwargs`` with the adapters' keys and values.

    Raises:
        TaraError: when an adapter does not fit the base or the prompt; also when an adapter has a global part, or the
            composer takes several network evaluations per step (use `prepared` in these two cases).
    """
    base, batch = _prepared(pipe, prompt, adapters, negative_prompt, num_images_per_prompt, settings)
    if len(batch.evaluations) > 1:
        raise TaraError(
            "This composer evaluates the network with one adapter after the other. Use `with tara.prepared(...) as "
            "kwargs:`."
        )
    for active in (active for evaluation in batch.evaluations for active in evaluation.adapters):
        if active.global_strength:
            raise TaraError(
                f"{active.name} also changes layers that act on the whole image. Use `with tara.prepared(...) as "
                f"kwargs:`, or leave that part out with {active.name}:global=0."
            )
    if any(evaluation.confined for evaluation in batch.evaluations):
        raise TaraError("This composer confines adapters to regions of the image. Use `with tara.prepared(...)`.")
    base.processors.install()
    return batch.arguments


@takes(GenerationSettings, only=SETTINGS)
@contextmanager
def prepared(
    pipe: Any,
    prompt: str | Sequence[str],
    adapters: AdapterLists = (),
    *,
    negative_prompt: str | Sequence[str] | None = None,
    num_images_per_prompt: int = 1,
    **settings: Any,
) -> Generator[dict[str, Any]]:
    """`prepare` for a ``with`` block. Supports every composer, and adapters with a global part.

    The global part is fused into the weights. At the end of the block, also after an exception, the pipeline is
    restored.

    Raises:
        TaraError: as `prepare`, and when the prompts' global parts differ.
    """
    base, batch = _prepared(pipe, prompt, adapters, negative_prompt, num_images_per_prompt, settings)
    with applied(base, batch):
        yield batch.arguments


def release(pipe: Any) -> None:
    """Remove our attention processors from a pipeline again."""
    # needs no check of the base, which may have become unsupported since `prepare`
    for part in vars(pipe).values():
        if hasattr(part, INSTALLED):
            getattr(part, INSTALLED).release()


def _prepared(
    pipe: Any,
    prompt: str | Sequence[str],
    adapters: AdapterLists,
    negative_prompt: str | Sequence[str] | None,
    copies: int,
    settings: dict[str, Any],
) -> tuple[Base, PreparedBatch]:
    if copies < 1:
        raise TaraError(f"num_images_per_prompt is {copies}. Give 1 or more.")
    if others := [name for name in settings if name not in SETTINGS]:
        hint = nearest(others[0], SETTINGS)
        raise TaraError(
            f"tara.prepare takes {', '.join(SETTINGS)}, not '{others[0]}'.{hint} Give it to the pipeline call: "
            f"pipe(**tara.prepare(...), {others[0]}=...)."
        )
    base, chosen = Base(pipe), build(GenerationSettings, settings)
    requests = _with_negatives(requests_for(prompt, adapters, chosen), negative_prompt)
    rows = prompt_rows(base, requests)
    longest = max(row.chunks for row in rows)  # the rows of one call have the same number of tokens
    rows = [replace(row, chunks=longest) for row in rows]
    if len({row.batch_key for row in rows}) > 1:
        raise TaraError(
            "The adapters of these prompts need different network weights. Generate the prompts one by one."
        )
    return base, prepared_batch(CachedTextEncoder(base), pipe, rows, chosen, copies)


def _with_negatives(
    requests: Sequence[GenerationRequest], negatives: str | Sequence[str] | None
) -> list[GenerationRequest]:
    """The requests with their negative prompts: one for all requests, or one for each."""
    if negatives is None or isinstance(negatives, str):
        settings = [{"negative_prompt": negatives}] * len(requests)
    else:
        settings = [{"negative_prompt": negative} for negative in negatives]
    if len(settings) != len(requests):
        raise TaraError(
            f"There are {len(requests)} prompts but {len(settings)} negative prompts. Give one, or one for each prompt."
        )
    return [
        request.model_copy(update={"settings": request.settings.model_copy(update=update)})
        for request, update in zip(requests, settings, strict=True)
    ]
