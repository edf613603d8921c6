"""Latents and text embeddings of a concept, computed once before training."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.core.losses import subject_weights
from tara.core.tokens import Span, Tokenized, class_word_of, word_spans
from tara.errors import TaraError
from tara.families.base import Base
from tara.families.processors import KeysValues
from tara.families.text import TextEncoding
from tara.training.data.crops import Framing, bucket_for, choose_crops, crop_mask, crop_pixels, size_conditioning
from tara.training.data.examples import Example

KV_BUDGET = 2**30  # bytes of keys and values that are kept; beyond it they are computed again from the embeddings


@dataclass(frozen=True, eq=False)
class Latents:
    """One photo in every variant (crop, flipped or not): mean and deviation of its scaled latents."""

    mean: Float[Tensor, "variants channels height width"]
    deviation: Float[Tensor, "variants channels height width"]
    sizes: Int[Tensor, "variants 6"]
    """See `tara.training.data.crops.size_conditioning`."""
    focus: Float[Tensor, "variants 1 height width"] | None
    """Weight of each place in the loss, see `tara.core.losses.subject_weights`; None where all weigh 1."""

    @property
    def variants(self) -> int:
        return self.mean.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's latents."""
        return tuple(self.mean.shape[1:])


def check_resolution(base: Base, resolution: int, buckets: bool = False) -> None:
    """Refuse (TaraError) a resolution that is no whole number of latents, or has no square bucket."""
    multiple = base.side_multiple if buckets else base.vae_scale
    if resolution % multiple:
        what = "with buckets this base" if buckets else "this base's autoencoder"
        raise TaraError(f"resolution = {resolution} is refused: {what} needs a multiple of {multiple}. Choose one.")


def cache_latents(base: Base, example: Example, framing: Framing, background_weight: float = 1.0) -> Latents:
    """Encode a photo in every variant; the deviation is kept so that each step samples the posterior anew."""
    image, target = example.image, (framing.resolution, framing.resolution)
    if framing.buckets:
        target = bucket_for(image.size, framing.resolution, base.side_multiple)
    cuts = choose_crops(image.size, framing.crops, example.name, target)
    variants = [(cut, mirrored) for cut in cuts for mirrored in ((False, True) if framing.flip else (False,))]
    # one image at a time: memory stays small, and no photo's numbers depend on how many variants there are
    encoded = [base.encode_images(crop_pixels(image, cut, target, mirrored)[None]) for cut, mirrored in variants]
    kept = torch.float64 if base.dtype == torch.float64 else torch.float32
    mean, deviation = (torch.cat(parts).to(base.device, kept) for parts in zip(*encoded, strict=True))
    sizes = [
        size_conditioning(image, cut, target, mirrored)
        if framing.own_sizes
        else (framing.resolution, framing.resolution, 0, 0, framing.resolution, framing.resolution)
        for cut, mirrored in variants
    ]
    focus = None
    if example.mask is not None:
        latent = (target[0] // base.vae_scale, target[1] // base.vae_scale)
        masks = torch.stack([crop_mask(example.mask, cut, latent, mirrored)[None] for cut, mirrored in variants])
        focus = subject_weights(masks.to(base.device, kept), background_weight)
    return Latents(mean, deviation, torch.tensor(sizes, device=base.device), focus)


@dataclass(frozen=True, eq=False)
class Caption:
    """An encoded caption and where its words are."""

    text: str
    encoding: TextEncoding
    rare_positions: tuple[int, ...]
    """Positions of the rare word's tokens, every occurrence: where the token mask is 1."""
    first_rare_positions: tuple[int, ...]
    """Positions of the first occurrence, which the alignment loss reads."""
    class_positions: tuple[int, ...]
    """Positions of the class word that belongs to it, empty when the caption has none."""


class TextCache:
    """Encoded captions, and their keys and values without any delta, in each text layer."""

    def __init__(self, base: Base, budget: int = KV_BUDGET) -> None:
        self._base, self._budget = base, budget
        self._encodings: dict[str, TextEncoding] = {}
        self._kv: dict[str, dict[str, KeysValues]] = {}

    def kv(self, caption: Caption) -> dict[str, KeysValues]:
        """The caption's frozen keys and values, (1, tokens, inner) each, by layer."""
        if caption.text in self._kv:
            return self._kv[caption.text]
        computed = self._base.text_kv(caption.encoding.embeddings)
        size = sum(part.nbytes for pair in computed.values() for part in pair)
        if size <= self._budget:
            self._budget -= size
            self._kv[caption.text] = computed
        return computed

    def caption(self, text: str, rare_word: str, class_word: str) -> Caption:
        """Encode a caption, each text once, and find its words; a caption without the rare word has neither.

        Raises:
            TaraError: when a word lies behind what the text encoder reads.
        """
        if text not in self._encodings:
            self._encodings[text] = self._base.encode([text])
        encoding = self._encodings[text]
        tokenized = encoding.tokenized[0]
        rare, of_class = caption_words(tokenized, rare_word, class_word)
        return Caption(
            text,
            encoding,
            rare_positions=tuple(position for span in rare for position in tokenized.positions(span)),
            first_rare_positions=tokenized.positions(rare[0]) if rare else (),
            class_positions=() if of_class is None else tokenized.positions(of_class),
        )


def caption_words(caption: Tokenized, rare_word: str, class_word: str) -> tuple[list[Span], Span | None]:
    """Every place of the rare word in a caption, and the class word that belongs to the first one.

    Raises:
        TaraError: when one lies behind what the text encoder reads.
    """
    rare = word_spans(caption.text, rare_word)
    of_class = class_word_of(caption.text, rare[0], class_word) if rare else None
    for span in (*rare, of_class):
        if span is not None and not caption.holds(span):
            raise TaraError(
                f"'{caption.text[slice(*span)]}' is beyond the part that the text encoder reads of "
                f"'{caption.text}'. Shorten the caption."
            )
    return rare, of_class
