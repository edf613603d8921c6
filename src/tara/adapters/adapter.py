"""The adapter: low-rank layers and the card that describes them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from tara.adapters.card import CARD_KEY, AdapterCard, Context, parse_card
from tara.adapters.formats.methods import WeightChange
from tara.adapters.formats.modelspec import header_entries
from tara.adapters.formats.origin import family_of_file
from tara.adapters.formats.reading import LoraFile, Pair, read_lora
from tara.adapters.formats.writing import write_diffusers
from tara.core.lora import LowRank
from tara.errors import TaraError
from tara.families.text import TEXT_ENCODERS

__all__ = ["Adapter", "AdapterCard", "Context", "load_adapter"]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A card and its low-rank deltas by the path of the layer inside the denoiser.

    A path is for instance ``down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k``. ``text_layers`` has the
    deltas of the text encoders: ``text_encoder.text_model...``, ``text_encoder_2.text_model...``. ``name`` is used in
    messages.
    """

    card: AdapterCard
    layers: Mapping[str, LowRank]
    name: str = "adapter"
    text_layers: Mapping[str, LowRank] = field(default_factory=dict[str, LowRank])
    weight_changes: Mapping[str, WeightChange] = field(default_factory=dict[str, WeightChange])
    """Differences that depend on the base's weights (DoRA, OFT, IA3), see `tara.inference.fitting`."""
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict[str, Mapping[str, Tensor]])
    """Vectors (n, d) that the file brings along, by word and text encoder."""
    header: Mapping[str, str] = field(default_factory=dict[str, str])
    """The entries of the file that it was read from."""

    @cached_property
    def text_kv_deltas(self) -> dict[str, LowRank]:
        """The deltas of the text's keys and values. They can be masked by token, and are computed once per prompt."""
        return {path: low_rank for path, low_rank in self.layers.items() if path.endswith(self.card.text_kv)}

    @cached_property
    def global_deltas(self) -> dict[str, LowRank]:
        """The global part: all other deltas of the denoiser. They act whether the rare word is in the prompt or not."""
        return {path: low_rank for path, low_rank in self.layers.items() if path not in self.text_kv_deltas}

    @property
    def trained_with_token_mask(self) -> bool:
        """Whether it was trained with a token mask, to act on its rare word only. False for LoRAs of other tools."""
        return bool(self.card.settings.get("token_mask"))

    @cached_property
    def all_layers(self) -> dict[str, LowRank]:
        """The deltas of the denoiser and the text encoders together."""
        return {**self.layers, **self.text_layers}

    @cached_property
    def unit_scale(self) -> "Adapter":
        """The same adapter with every scale multiplied into B, so that alpha = rank. Files are written in this form.

        Some tools ignore an alpha that is stored only in the header; the adapter would act at a wrong scale there.
        """
        layers, text_layers = (
            {path: delta.unit_scale() for path, delta in part.items()} for part in (self.layers, self.text_layers)
        )
        ranks = {path: delta.rank for path, delta in {**layers, **text_layers}.items()}
        card = self.card.with_scales(ranks, {path: float(rank) for path, rank in ranks.items()})
        return replace(self, card=card, layers=layers, text_layers=text_layers)

    def save(self, path: str | Path) -> Path:
        """Write the adapter atomically as one ``.safetensors`` file, which diffusers and PEFT can read, too.

        Raises:
            TaraError: when the folder is not writable or the disk is full.
        """
        path = Path(path)
        # titled by its words, not by the path, so that the same adapter gives the same file
        title = f"{self.card.rare_word} {self.card.class_word}".strip() or Path(self.name).stem
        written = self.unit_scale
        write_diffusers(path, written.all_layers, written.card, header_entries(written.card, title))
        return path


def load_adapter(path: str | Path, alpha: float | None = None) -> Adapter:
    """Read an adapter onto the CPU: our own file, or a plain LoRA or textual inversion of another tool.

    Another tool's file has no card. Then the card is made from the weights and has no rare word. Give the rare word
    where the adapter is used (``FILE:rare_word=xlo,class_word=dog``).

    Args:
        path: a ``.safetensors`` file, a folder of PEFT, of diffusers or with a saved U-Net, or one of these on the hub,
            see `tara.adapters.formats.locating.lora_file`.
        alpha: overrides every layer's alpha (scale = alpha / rank). None: as the file says.

    Raises:
        TaraError: when the file is missing, damaged, incomplete, of a newer version, or of an unsupported kind.
    """
    path = Path(path)
    name = path.name if path.exists() else path.as_posix()  # on the hub, a file's name alone says little
    if alpha is not None and not math.isfinite(alpha):
        raise TaraError(f"alpha is {alpha}, which is not a number. Give for instance 32, or leave it out.")
    file = read_lora(path)
    pairs = file.pairs
    card_in_file = parse_card(path, file.header[CARD_KEY]) if CARD_KEY in file.header else None
    if card_in_file is not None:
        _check_ranks(path, card_in_file, pairs)
    alphas = {layer: _alpha(alpha, layer, pair, card_in_file) for layer, pair in pairs.items()}
    card = card_in_file or _card_from_weights(file)
    if pairs:
        card = card.with_scales({layer: pair.rank for layer, pair in pairs.items()}, alphas)
    low_ranks = {
        layer: LowRank(pair.a, pair.b, alphas[layer] / pair.rank, pair.kernel) for layer, pair in pairs.items()
    }
    return Adapter(
        card,
        {layer: low_rank for layer, low_rank in low_ranks.items() if not layer.startswith(TEXT_ENCODERS)},
        name=name,
        text_layers={layer: low_rank for layer, low_rank in low_ranks.items() if layer.startswith(TEXT_ENCODERS)},
        weight_changes=file.changes,
        embeddings=file.embeddings,
        header=file.header,
    )


def _alpha(override: float | None, layer: str, pair: Pair, card: AdapterCard | None) -> float:
    if override is not None:
        return override
    if pair.alpha is not None:
        return pair.alpha
    return float(pair.rank) if card is None else card.alpha_of(layer)


def _check_ranks(path: Path, card: AdapterCard, pairs: Mapping[str, Pair]) -> None:
    for layer, pair in pairs.items():
        if pair.rank != card.rank_of(layer):
            raise TaraError(
                f"'{path}' is damaged: layer '{layer}' has no pair of rank {card.rank_of(layer)}. Train the adapter "
                "again."
            )


def _card_from_weights(file: LoraFile) -> AdapterCard:
    """The card of another tool's file, from its weights and its header."""
    endings = AdapterCard.model_fields["text_kv"].default
    widths = {path: pair.a.shape[1] for path, pair in file.pairs.items() if not path.endswith((".bias", ".weight"))}
    convolved = any(pair.kernel for layer, pair in file.pairs.items() if layer.endswith("proj_in"))
    on_text = [layer for layer in widths if layer.endswith(endings)]
    return AdapterCard(
        rare_word=next(iter(file.embeddings)) if len(file.embeddings) == 1 else "",
        class_word="",
        phrase="",
        context="prompt",  # there is no instance prompt to take an embedding from
        family=family_of_file(widths, endings, file.header, convolved),
        rank=1,
        alpha=1,
        targets="cross_kv" if on_text and len(on_text) == len(file.pairs) + len(file.changes) else "everything",
        source=file.style,
        method=file.method,
    )
