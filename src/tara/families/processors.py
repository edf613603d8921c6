"""Attention processors that give each row of a network call its own text keys and values."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor, nn

from tara.core.lora import LowRank
from tara.errors import TaraError

KEY = "tara"  # the entry of cross_attention_kwargs that the processors listen to
STOCK = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor)
INSTALLED = "tara_processors"  # the attribute of a denoiser that holds its installed processors

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one cross-attention layer, (rows, tokens, inner) each."""


@dataclass(frozen=True, eq=False)
class TextConditioning:
    """The text and adapters of one network call, as its attention layers use them.

    ``kv`` holds keys and values by cross-attention layer (``....attn2``), complete with the adapters' deltas.
    ``deltas`` holds further low-rank deltas by projection (``....attn1.to_q``, ``....attn2.to_out.0``), one per row.
    Rows are those of the network's batch: ``[unconditional..., conditional...]`` in a guided stock pipeline.
    """

    kv: Mapping[str, KeysValues]
    deltas: Mapping[str, LowRank] | None = None

    @property
    def rows(self) -> int:
        return next(iter(self.kv.values()))[0].shape[0]

    def take(self, rows: Sequence[int]) -> "TextConditioning":
        """The conditioning of the given rows."""
        index = torch.tensor(list(rows), device=next(iter(self.kv.values()))[0].device)
        kv = {layer: (keys[index], values[index]) for layer, (keys, values) in self.kv.items()}
        deltas = self.deltas and {path: delta.take(index) for path, delta in self.deltas.items()}
        return TextConditioning(kv, deltas)


class Watch(Protocol):
    """Observes the queries and keys of each text cross-attention; the image does not depend on it."""

    def __call__(self, layer: str, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        """``query`` (rows, heads, positions, d), ``key`` (rows, heads, tokens, d), an additive ``mask`` if any."""
        ...


class TextKVProcessor:
    """Acts exactly as the stock processor it stands for, unless a `TextConditioning` comes along."""

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
            extra = () if temb is None and not args else (temb, *args)  # the sliced processor takes neither
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, *extra, **kwargs)
        if tara.rows != hidden_states.shape[0]:
            raise TaraError(
                f"The network got {hidden_states.shape[0]} rows, but tara.prepare made text for {tara.rows}. Give it the "
                "same prompts, guidance_scale and num_images_per_prompt as the pipeline call."
            )
        return self._attend(attn, hidden_states, attention_mask, tara)

    def _has_deltas(self, tara: TextConditioning) -> bool:
        return tara.deltas is not None and any(
            f"{self.layer}.{projection}" in tara.deltas for projection in ("to_q", "to_k", "to_v", "to_out.0")
        )

    def _project(self, projection: str, linear: nn.Module, x: Tensor, tara: TextConditioning) -> Tensor:
        delta = None if tara.deltas is None else tara.deltas.get(f"{self.layer}.{projection}")
        return linear(x) if delta is None else linear(x) + delta.to(dtype=x.dtype).delta(x)

    def _attend(self, attn: Any, x: Tensor, mask: Tensor | None, tara: TextConditioning) -> Tensor:
        # the operations of AttnProcessor2_0 in the same order, so that equal numbers give equal images
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


class AttentionProcessors:
    """Our processors for every attention of one denoiser, and a hook that notices when someone else replaces them.

    They are made once: installing them again after a release puts the same objects back, so that a compiled denoiser is
    not compiled anew.
    """

    def __init__(self, denoiser: Any, make: Callable[[str, Any], TextKVProcessor] = TextKVProcessor) -> None:
        self._denoiser, self._make = denoiser, make
        self._ours: dict[str, TextKVProcessor] = {}
        self._guard: Any = None

    @staticmethod
    def of(denoiser: Any, make: Callable[[str, Any], TextKVProcessor] = TextKVProcessor) -> "AttentionProcessors":
        """Those that are installed on a denoiser, or new ones for it."""
        return getattr(denoiser, INSTALLED, None) or AttentionProcessors(denoiser, make)

    @property
    def installed(self) -> bool:
        """Whether `install` has been called and `release` has not."""
        return getattr(self._denoiser, INSTALLED, None) is self

    def install(self) -> None:
        """Put our processors in place of the stock ones; doing it twice changes nothing.

        Raises:
            TaraError: when a processor is neither stock nor ours.
        """
        present: dict[str, Any] = self._denoiser.attn_processors
        ours: dict[str, TextKVProcessor] = {}
        for name, processor in present.items():
            layer, known = name.removesuffix(".processor"), self._ours.get(name)
            if isinstance(processor, TextKVProcessor):
                ours[name] = processor
            elif type(processor) not in STOCK:
                raise _replaced(layer, processor)
            else:
                ours[name] = known if known is not None and known.stock is processor else self._make(layer, processor)
        self._ours = ours
        if ours != present:
            self._denoiser.set_attn_processor(dict(ours))  # which it empties
        if not self.installed:
            setattr(self._denoiser, INSTALLED, self)
            self._guard = self._denoiser.register_forward_pre_hook(self._check, with_kwargs=True)

    def release(self) -> None:
        """Put the stock processors back where ours still are."""
        if not self.installed:
            return
        self._guard.remove()
        delattr(self._denoiser, INSTALLED)
        present: dict[str, Any] = self._denoiser.attn_processors
        self._denoiser.set_attn_processor(
            {name: p.stock if isinstance(p, TextKVProcessor) else p for name, p in present.items()}
        )

    @contextmanager
    def watched(self, watch: Watch) -> Generator[None]:
        """Report every text cross-attention to ``watch`` for a ``with`` block; installed before if need be.

        Raises:
            TaraError: as `install`.
        """
        before = self.installed
        self.install()
        processors = list(self._ours.values())
        earlier = [processor.watch for processor in processors]
        try:
            for processor in processors:
                processor.watch = watch
            yield
        finally:
            for processor, previous in zip(processors, earlier, strict=True):
                processor.watch = previous
            if not before:
                self.release()

    def _check(self, _denoiser: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before each network call: a processor that does not know our text would silently ignore the adapters."""
        if KEY not in (kwargs.get("cross_attention_kwargs") or {}):
            return
        for name in self._ours:
            layer = name.removesuffix(".processor")
            processor = self._denoiser.get_submodule(layer).processor
            if not isinstance(processor, TextKVProcessor):
                raise _replaced(layer, processor)


def _replaced(layer: str, processor: object) -> TaraError:
    return TaraError(
        f"The attention processor of '{layer}' is {type(processor).__name__}, which would ignore the adapters. Turn "
        "off xFormers, fused QKV projections and IP-Adapters, turn attention slicing on or off now, then call "
        "tara.prepare again."
    )
