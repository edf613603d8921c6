"""The attention processors that hand each row of a U-Net call its own text keys and values."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor, nn

from tara.core.lora import RowLowRank
from tara.errors import TaraError

KEY = "tara"  # the entry of cross_attention_kwargs that the processors listen to
STOCK = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor)
INSTALLATION = "tara_installation"

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one cross-attention layer, (rows, tokens, inner) each."""


@dataclass(frozen=True, eq=False)
class TextConditioning:
    """Everything that text and adapters say to one U-Net call.

    ``kv`` holds keys and values by cross-attention layer (``....attn2``), complete with the adapters' deltas.
    ``deltas`` holds further low-rank deltas by projection (``....attn1.to_q``, ``....attn2.to_out.0``), one per row.
    Rows are those of the U-Net's batch: ``[unconditional..., conditional...]`` in a guided stock pipeline.
    """

    kv: Mapping[str, KeysValues]
    deltas: Mapping[str, RowLowRank] | None = None

    @property
    def rows(self) -> int:
        return next(iter(self.kv.values()))[0].shape[0]

    def take(self, rows: Sequence[int]) -> "TextConditioning":
        """What is said to the given rows alone."""
        index = torch.tensor(list(rows), device=next(iter(self.kv.values()))[0].device)
        kv = {layer: (keys[index], values[index]) for layer, (keys, values) in self.kv.items()}
        deltas = self.deltas and {path: delta.take(index) for path, delta in self.deltas.items()}
        return TextConditioning(kv, deltas)


class Watch(Protocol):
    """Told what each text cross-attention compares; whatever it does with that, the picture stays the same."""

    def __call__(self, layer: str, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        """``query`` (rows, heads, positions, d), ``key`` (rows, heads, tokens, d), an additive ``mask`` if any."""
        ...


class TextKVProcessor:
    """Acts exactly as the stock processor it stands for, unless a :class:`TextConditioning` comes along."""

    def __init__(self, layer: str, stock: Any) -> None:
        self.layer = layer
        self.stock = stock
        self.watch: Watch | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        tara: TextConditioning | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """``hidden_states`` is (rows, positions, channels); raises TaraError when the rows do not match."""
        ours = tara is not None and (self.layer in tara.kv or self._has_deltas(tara))
        if tara is None or not ours:
            if tara is not None and encoder_hidden_states is not None:
                raise TaraError(f"The prepared text lacks '{self.layer}'. Call tara.prepare on this pipeline.")
            rest = () if temb is None and not args else (temb, *args)  # the sliced processor takes neither
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, *rest, **kwargs)
        if tara.rows != hidden_states.shape[0]:
            raise TaraError(
                f"The U-Net got {hidden_states.shape[0]} rows, but tara.prepare made text for {tara.rows}. Give it the "
                "same prompts, guidance_scale and num_images_per_prompt as the pipeline call."
            )
        return self._attend(attn, hidden_states, attention_mask, tara)

    def _has_deltas(self, tara: TextConditioning) -> bool:
        return tara.deltas is not None and any(
            f"{self.layer}.{projection}" in tara.deltas for projection in ("to_q", "to_k", "to_v", "to_out.0")
        )

    def _project(self, projection: str, linear: nn.Module, x: Tensor, tara: TextConditioning) -> Tensor:
        delta = None if tara.deltas is None else tara.deltas.get(f"{self.layer}.{projection}")
        return linear(x) if delta is None else linear(x) + delta.delta(x)

    def _attend(self, attn: Any, x: Tensor, mask: Tensor | None, tara: TextConditioning) -> Tensor:
        # the operations of AttnProcessor2_0 in the same order, so that equal numbers give equal pictures
        rows = x.shape[0]
        query = self._project("to_q", attn.to_q, x, tara)
        if self.layer in tara.kv:
            key, value = (part.to(query) for part in tara.kv[self.layer])
        else:
            key, value = (self._project(name, getattr(attn, name), x, tara) for name in ("to_k", "to_v"))
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, key.shape[1], rows)
            assert mask is not None
            mask = mask.view(rows, attn.heads, -1, mask.shape[-1])
        query, key, value = (
            part.view(rows, -1, attn.heads, part.shape[-1] // attn.heads).transpose(1, 2)
            for part in (query, key, value)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if self.watch is not None and self.layer in tara.kv:
            self.watch(self.layer, query, key, mask)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.0, is_causal=False)
        out = out.transpose(1, 2).reshape(rows, -1, out.shape[1] * out.shape[3]).to(query.dtype)
        out = attn.to_out[1](self._project("to_out.0", attn.to_out[0], out, tara))
        return out / attn.rescale_output_factor


class Installation:
    """Our processors on one U-Net, and the guard that notices when someone else replaces them."""

    def __init__(self, unet: Any) -> None:
        self.attentions = {
            name.removesuffix(".processor"): unet.get_submodule(name.removesuffix(".processor"))
            for name in unet.attn_processors
        }
        self.guard = unet.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, _unet: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each U-Net call: a processor that does not know our text would silently draw the base's picture."""
        if KEY not in (kwargs.get("cross_attention_kwargs") or {}):
            return
        for layer, attention in self.attentions.items():
            if not isinstance(attention.processor, TextKVProcessor):
                raise _replaced(layer, attention.processor)


_INSTALLED_BEFORE: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()
"""The last processors of ours on each U-Net."""


def install(unet: Any) -> None:
    """Put our processors on every attention of a diffusers U-Net; doing it twice changes nothing.

    Raises:
        TaraError: when a processor is neither stock nor ours.
    """
    processors: dict[str, Any] = unet.attn_processors
    # kept from one time to the next: a compiled U-Net is compiled anew for processors that it has not seen
    kept = _INSTALLED_BEFORE.get(unet, {})
    ours: dict[str, Any] = {}
    for name, processor in processors.items():
        layer = name.removesuffix(".processor")
        if isinstance(processor, TextKVProcessor):
            ours[name] = processor
        elif type(processor) not in STOCK:
            raise _replaced(layer, processor)
        elif name in kept and kept[name].stock is processor:
            ours[name] = kept[name]
        else:
            ours[name] = TextKVProcessor(layer, processor)
    _INSTALLED_BEFORE[unet] = ours
    if ours != processors:
        unet.set_attn_processor(dict(ours))  # which it empties
    if getattr(unet, INSTALLATION, None) is None:
        setattr(unet, INSTALLATION, Installation(unet))


def installed(unet: Any) -> bool:
    """Whether :func:`install` has been called and :func:`uninstall` has not."""
    return getattr(unet, INSTALLATION, None) is not None


def uninstall(unet: Any) -> None:
    """Put the stock processors back where ours still are."""
    installation: Installation | None = getattr(unet, INSTALLATION, None)
    if installation is None:
        return
    installation.guard.remove()
    delattr(unet, INSTALLATION)
    processors: dict[str, Any] = unet.attn_processors
    unet.set_attn_processor({name: p.stock if isinstance(p, TextKVProcessor) else p for name, p in processors.items()})


@contextmanager
def watched(unet: Any, watch: Watch) -> Generator[None]:
    """Tell ``watch`` of every text cross-attention for a ``with`` block; the U-Net is then given back as it was found.

    Raises:
        TaraError: as :func:`install`.
    """
    before = installed(unet)
    install(unet)
    processors: list[TextKVProcessor] = list(unet.attn_processors.values())
    earlier = [processor.watch for processor in processors]
    try:
        for processor in processors:
            processor.watch = watch
        yield
    finally:
        for processor, previous in zip(processors, earlier, strict=True):
            processor.watch = previous
        if not before:
            uninstall(unet)


def _replaced(layer: str, processor: object) -> TaraError:
    return TaraError(
        f"The attention processor of '{layer}' is {type(processor).__name__}, which would ignore the adapters. Turn "
        "off xFormers, fused QKV projections and IP-Adapters, turn attention slicing on or off now, then call "
        "tara.prepare again."
    )


def no_grad_kv(attn: Any, embeddings: Tensor) -> KeysValues:
    """Keys and values of text embeddings (rows, tokens, d) through a layer's current, frozen projections."""
    with torch.no_grad():
        return attn.to_k(embeddings), attn.to_v(embeddings)
