"""The rows of one training call of the U-Net: concept by concept, in each ``[photos..., class pictures...]``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.backbone import TextEncoding
from tara.cache import Caption, KeysValues, Latents, TextCache
from tara.concepts import Material
from tara.draws import Draw, draw
from tara.losses import PredictionType, add_noise, min_snr_weights, snr, target_for
from tara.weights import Factors


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseSchedule:
    """What the base was trained to undo."""

    alphas_cumprod: Float[Tensor, " timesteps"]
    prediction_type: PredictionType
    snr_gamma: float | None
    """Gamma of the min-SNR weights; None weighs all timesteps alike."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureRows:
    """The picture side of a call."""

    noisy: Float[Tensor, "rows channels height width"]
    target: Float[Tensor, "rows channels height width"]
    timesteps: Int[Tensor, " rows"]
    sizes: Int[Tensor, "rows 6"]
    weights: Float[Tensor, " rows"] | None
    captions: tuple[Caption, ...]


def picture_rows(
    materials: Sequence[Material], schedule: NoiseSchedule, *, seed: int, call: int, batch_size: int
) -> PictureRows:
    """Choose and noise the pictures of a call; each concept's rows are a function of (seed, concept, call) alone."""
    captions: list[Caption] = []
    chosen: list[tuple[Latents, Draw]] = []
    count = schedule.alphas_cumprod.shape[0]
    for material in materials:
        drawn = _draw(material.latents, seed, material.key, call, batch_size, count)
        chosen.append((material.latents, drawn))
        for photo, chance in zip(drawn.photos, drawn.captions, strict=True):
            own = material.captions[photo]
            captions.append(own[int(chance * len(own))])
        if material.prior is not None:
            latents = material.prior.latents
            chosen.append((latents, _draw(latents, seed, material.key + "\nclass", call, batch_size, count)))
            captions += [material.prior.caption] * batch_size
    return _noised(chosen, schedule, tuple(captions))


def _draw(latents: Latents, seed: int, key: str, call: int, rows: int, timesteps: int) -> Draw:
    return draw(
        seed,
        key,
        call,
        rows=rows,
        photos=latents.photos,
        variants=latents.variants,
        timesteps=timesteps,
        shape=latents.shape,
    )


def _noised(
    chosen: Sequence[tuple[Latents, Draw]], schedule: NoiseSchedule, captions: tuple[Caption, ...]
) -> PictureRows:
    alphas, prediction_type = schedule.alphas_cumprod, schedule.prediction_type
    like = chosen[0][0].mean
    means, deviations, sizes = (
        torch.cat([getattr(cached, part)[list(drawn.photos), list(drawn.variants)] for cached, drawn in chosen])
        for part in ("mean", "deviation", "sizes")
    )
    posterior = torch.cat([drawn.posterior_noise for _, drawn in chosen]).to(like)
    noise = torch.cat([drawn.noise for _, drawn in chosen]).to(like)
    timesteps = torch.cat([drawn.timesteps for _, drawn in chosen]).to(like.device)
    latents = means + deviations * posterior
    weights = None
    if schedule.snr_gamma is not None:
        weights = min_snr_weights(snr(alphas, timesteps), schedule.snr_gamma, prediction_type)
    return PictureRows(
        noisy=add_noise(latents, noise, alphas, timesteps),
        target=target_for(prediction_type, latents, noise, alphas, timesteps),
        timesteps=timesteps,
        sizes=sizes,
        weights=weights,
        captions=captions,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TextRows:
    """The text side of a call, without deltas, and where the deltas go."""

    captions: tuple[Caption, ...]
    encoding: TextEncoding
    kv: Mapping[str, KeysValues]
    """Frozen keys and values, (rows, tokens, inner) each, by layer."""
    inputs: Float[Tensor, "concepts positions d"]
    """The embeddings that each concept's deltas act on."""
    places: Int[Tensor, " concepts*positions"] | None
    """Where among all (row, token) pairs these embeddings are; None when they are all of them, in order."""

    def with_deltas(self, frozen: Float[Tensor, "rows tokens inner"], factors: Factors, scale: float) -> Tensor:
        """Keys or values of one layer with every concept's delta in its own rows: one product for all concepts."""
        a, b = factors
        delta = scale * torch.bmm(torch.bmm(self.inputs, a.mT), b.mT)
        if self.places is None:
            return frozen + delta.view_as(frozen)
        return frozen.flatten(0, 1).index_add(0, self.places, delta.flatten(0, 1)).view_as(frozen)


def text_rows(captions: Sequence[Caption], texts: TextCache, *, concepts: int, tfm: bool) -> TextRows:
    """Put the rows' cached texts side by side.

    Args:
        captions: of all rows, the same number for every concept.
        texts: where their keys and values are.
        concepts: how many concepts share the rows.
        tfm: token focus mask: deltas act on the rare word's tokens only, otherwise on every token.
    """
    encoding = TextEncoding.join([caption.encoding for caption in captions])
    kv = [texts.kv(caption.text) for caption in captions]
    stacked = {
        layer: (torch.cat([row[layer][0] for row in kv]), torch.cat([row[layer][1] for row in kv])) for layer in kv[0]
    }
    inputs, places = encoding.embeddings.unflatten(0, (concepts, -1)).flatten(1, 2), None
    if tfm:
        inputs, places = _focused(captions, encoding.embeddings, concepts)
    return TextRows(captions=tuple(captions), encoding=encoding, kv=stacked, inputs=inputs, places=places)


def _focused(
    captions: Sequence[Caption], embeddings: Float[Tensor, "rows tokens d"], concepts: int
) -> tuple[Float[Tensor, "concepts positions d"], Int[Tensor, " places"]]:
    """The rare words' embeddings, padded with zeros to the same number in every concept, and their places."""
    tokens, per_concept = embeddings.shape[1], len(captions) // concepts
    places = [
        [
            row * tokens + position
            for row in range(concept * per_concept, (concept + 1) * per_concept)
            for position in captions[row].rare
        ]
        for concept in range(concepts)
    ]
    longest = max(map(len, places))
    # padding: zeros are added to the concept's own first token, so they change nothing, and nobody else's rows
    padded = [own + [concept * per_concept * tokens] * (longest - len(own)) for concept, own in enumerate(places)]
    counted = [[1.0] * len(own) + [0.0] * (longest - len(own)) for own in places]
    index = torch.tensor(padded, device=embeddings.device)
    inputs = embeddings.flatten(0, 1)[index] * embeddings.new_tensor(counted)[:, :, None]
    return inputs, index.flatten()
