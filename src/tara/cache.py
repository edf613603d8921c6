"""What the frozen autoencoder and text encoder make of a concept, computed once before training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tara.backbone import Backbone, TextEncoding
from tara.data import Example, choose_crops, crop_pixels, size_conditioning
from tara.errors import TaraError
from tara.tokens import Span, Tokenized, word_spans

KV_BUDGET = 2**30  # bytes of keys and values that are kept; beyond it they are computed again from the embeddings

KeysValues = tuple[Float[Tensor, "1 tokens inner"], Float[Tensor, "1 tokens inner"]]


@dataclass(frozen=True, eq=False)
class Latents:
    """Posterior mean and deviation of every photo in every variant (crop, flipped or not), in the U-Net's scale."""

    mean: Float[Tensor, "photos variants channels height width"]
    deviation: Float[Tensor, "photos variants channels height width"]
    sizes: Int[Tensor, "photos variants 6"]
    """What size-conditioned families are told of each variant, see :func:`tara.data.size_conditioning`."""

    @property
    def photos(self) -> int:
        return self.mean.shape[0]

    @property
    def variants(self) -> int:
        return self.mean.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one picture's latents."""
        return tuple(self.mean.shape[2:])


def check_resolution(backbone: Backbone, resolution: int) -> None:
    """Refuse (TaraError) a side of the training pictures that is no whole number of latents."""
    if resolution % backbone.vae_scale:
        raise TaraError(
            f"resolution = {resolution} is refused: this base's autoencoder needs a multiple of {backbone.vae_scale}. "
            "Choose one."
        )


def cache_latents(
    backbone: Backbone, examples: Sequence[Example], *, resolution: int, crops: int, flip: bool
) -> Latents:
    """Encode every photo in every variant; the deviation is kept so that each step samples the posterior anew.

    Raises:
        TaraError: when the autoencoder does not fit the resolution.
    """
    check_resolution(backbone, resolution)
    means: list[Tensor] = []
    deviations: list[Tensor] = []
    sizes: list[list[tuple[int, ...]]] = []
    for example in examples:
        cuts = choose_crops(example.image.size, crops, example.name)
        variants = [(cut, mirrored) for cut in cuts for mirrored in ((False, True) if flip else (False,))]
        pixels = torch.stack([crop_pixels(example.image, cut, resolution, mirrored) for cut, mirrored in variants])
        # one picture at a time: memory stays small, and no photo's numbers depend on how many variants there are
        encoded = [backbone.encode_images(one[None]) for one in pixels]
        means.append(torch.cat([mean for mean, _ in encoded]))
        deviations.append(torch.cat([deviation for _, deviation in encoded]))
        sizes.append([size_conditioning(example.image, cut, resolution, mirrored) for cut, mirrored in variants])
    kept = torch.float64 if backbone.dtype == torch.float64 else torch.float32
    return Latents(
        torch.stack(means).to(backbone.device, kept),
        torch.stack(deviations).to(backbone.device, kept),
        torch.tensor(sizes, device=backbone.device),
    )


@dataclass(frozen=True, eq=False)
class Caption:
    """An encoded caption and where its words are."""

    text: str
    encoding: TextEncoding
    rare: tuple[int, ...]
    """Positions of the rare word's tokens, every occurrence: where the token focus mask is 1."""
    first_rare: tuple[int, ...]
    """Positions of the first occurrence, which the alignment loss looks at."""
    kind: tuple[int, ...]
    """Positions of the class word that belongs to it, empty when the caption has none."""


class TextCache:
    """Encoded captions, and their keys and values without any delta, in each cross-attention layer."""

    def __init__(self, backbone: Backbone, budget: int = KV_BUDGET) -> None:
        self._backbone = backbone
        self._budget = budget
        self._encodings: dict[str, TextEncoding] = {}
        self._kv: dict[str, dict[str, KeysValues]] = {}

    def encode(self, text: str) -> TextEncoding:
        """The text's embeddings, (1, tokens, d); the text encoder runs at most once for each text."""
        if text not in self._encodings:
            self._encodings[text] = self._backbone.encode([text])
        return self._encodings[text]

    def kv(self, text: str) -> dict[str, KeysValues]:
        """The text's frozen keys and values, (1, tokens, inner) each, by layer."""
        if text in self._kv:
            return self._kv[text]
        computed = self._backbone.kv(self.encode(text).embeddings)
        size = sum(part.nbytes for pair in computed.values() for part in pair)
        if size <= self._budget:
            self._budget -= size
            self._kv[text] = computed
        return computed

    def caption(self, text: str, rare_word: str, class_word: str) -> Caption:
        """Encode a caption and find its words; a caption without the rare word has none to find.

        Raises:
            TaraError: when a word lies behind what the text encoder reads.
        """
        encoding = self.encode(text)
        tokenized = encoding.tokenized[0]
        rare, kind = caption_words(tokenized, rare_word, class_word)
        return Caption(
            text,
            encoding,
            rare=tuple(position for span in rare for position in tokenized.positions(span)),
            first_rare=_positions(tokenized, rare[:1]),
            kind=_positions(tokenized, kind),
        )


def caption_words(caption: Tokenized, rare_word: str, class_word: str) -> tuple[list[Span], list[Span]]:
    """Every place of the rare word in a caption, and the class word that belongs to the first one.

    Raises:
        TaraError: when one lies behind what the text encoder reads.
    """
    rare = word_spans(caption.text, rare_word)
    kind = _belonging(word_spans(caption.text, class_word), rare)
    for span in (*rare, *kind):
        if not caption.holds(span):
            raise TaraError(
                f"'{caption.text[slice(*span)]}' lies behind the end of what the text encoder reads of "
                f"'{caption.text}'. Shorten the caption."
            )
    return rare, kind


def _belonging(kinds: Sequence[Span], rare: Sequence[Span]) -> list[Span]:
    """The class word that follows the first rare word, or the last one before it."""
    if not rare or not kinds:
        return []
    following = [span for span in kinds if span[0] >= rare[0][1]]
    return [following[0] if following else kinds[-1]]


def _positions(tokenized: Tokenized, spans: Sequence[Span]) -> tuple[int, ...]:
    return tuple(position for span in spans for position in tokenized.positions(span))
