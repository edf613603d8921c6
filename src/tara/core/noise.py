"""Noise, timesteps and the order of photos, as functions of (seed, concept, network call)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRandomness:
    """The random choices for one concept's rows in one network call. Tensors are on the CPU, noise is float32."""

    photos: tuple[int, ...]
    variants: tuple[int, ...]
    captions: tuple[float, ...]
    """One number in [0, 1) per row, which selects one of the photo's captions."""
    timesteps: Int[Tensor, " rows"]
    posterior_noise: tuple[Float[Tensor, "*_shape"], ...]
    """One tensor per row, in the shape of its photo's latents."""
    noise: tuple[Float[Tensor, "*_shape"], ...]


def concept_key(rare_word: str, class_word: str) -> str:
    """Key of a concept's random numbers. It depends on its two words only, not on the other concepts or their order."""
    return f"{rare_word.lower()}\n{class_word.lower()}"


def generator_for(seed: int, *parts: str | int) -> torch.Generator:
    """A CPU generator seeded from a hash of the seed and the parts, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *parts))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def step_randomness(
    seed: int, key: str, call: int, *, rows: int, shapes: Sequence[Shape], variants: int, timesteps: int
) -> StepRandomness:
    """The random choices for one concept in one network call.

    Args:
        key: see `concept_key`.
        call: number of the network call since training began, from 0.
        rows: rows of this concept in a call.
        shapes: shape of each photo's latents; every photo is used once before any is used again.
        variants: number of crops and flips of each photo.
        timesteps: number of training timesteps, which are chosen uniformly.
    """
    generator = generator_for(seed, key, "call", call)
    photos = tuple(_photo(seed, key, call * rows + row, len(shapes)) for row in range(rows))
    chosen = [shapes[photo] for photo in photos]
    return StepRandomness(
        photos=photos,
        variants=tuple(torch.randint(variants, (rows,), generator=generator).tolist()),
        captions=tuple(torch.rand(rows, generator=generator, dtype=torch.float64).tolist()),
        timesteps=torch.randint(timesteps, (rows,), generator=generator),
        posterior_noise=_noise(chosen, generator),
        noise=_noise(chosen, generator),
    )


def offset_noise(seed: int, key: str, call: int, shapes: Sequence[Shape]) -> tuple[Float[Tensor, "_channels 1 1"], ...]:
    """One normal random number per channel of each row. Noise offset adds a multiple of it to the noise.

    Args:
        seed, key, call: see `step_randomness`.
        shapes: shape of each row's latents.
    """
    generator = generator_for(seed, key, "noise offset", call)
    return tuple(torch.randn(shape[0], 1, 1, generator=generator) for shape in shapes)


def dropped_rows(seed: int, key: str, call: int, *, rows: int, rate: float) -> tuple[bool, ...]:
    """Whether to drop the caption of each row of a concept in one network call, with probability ``rate``."""
    generator = generator_for(seed, key, "caption dropout", call)
    return tuple((torch.rand(rows, generator=generator, dtype=torch.float64) < rate).tolist())


def tag_orders(seed: int, key: str, caption: str, *, kept: int, count: int) -> tuple[str, ...]:
    """Up to ``count`` different shuffles of a caption's comma-separated tags. The first ``kept`` tags stay first."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    head, tail = tags[:kept], tags[kept:]
    generator = generator_for(seed, key, "tags", caption)
    orders = [torch.randperm(len(tail), generator=generator).tolist() for _ in range(count)]
    return tuple(dict.fromkeys(", ".join([*head, *(tail[place] for place in order)]) for order in orders))


def _noise(shapes: Sequence[Shape], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Noise of each row. Rows of the same shape are generated in one call."""
    noise = {
        shape: iter(torch.randn(shapes.count(shape), *shape, generator=generator)) for shape in dict.fromkeys(shapes)
    }
    return tuple(next(noise[shape]) for shape in shapes)


def _photo(seed: int, key: str, position: int, photos: int) -> int:
    """The photo at a position of the shuffled order, which is shuffled anew in each epoch."""
    epoch, place = divmod(position, photos)
    return int(torch.randperm(photos, generator=generator_for(seed, key, "order", epoch))[place])
