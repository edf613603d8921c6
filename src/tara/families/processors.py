"""Attention processors that use separate text keys and values for each row of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from tara.core.lora import LowRank
from tara.core.position_blocks import PositionBlocks
from tara.errors import TaraError

if TYPE_CHECKING:
    from tara.families.family import Family

CONDITIONING_KEY = "tara"  # the entry of cross_attention_kwargs that holds a TextConditioning
INSTALLED = "tara_processors"  # the attribute of a denoiser that holds its installed processors

Projection = Callable[[Tensor], Tensor]
KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one cross-attention layer, (rows, tokens, inner) each."""
Watch = Callable[[str, Tensor, Tensor, Tensor | None], object]
"""Observes a text cross-attention: its path, queries and keys (rows, heads, positions or tokens, d), additive mask."""


class RegionalText(Protocol):
    """For one network call: the text that each position of each row reads, and the deltas that act there."""

    @property
    def rows(self) -> int:
        """Number of rows of the network's batch. Text i < rows is the text of row i outside any region."""
        ...

    @property
    def watch(self) -> Watch | None:
        """The function that observes the text cross-attentions of this call; None if nothing does."""
        ...

    def text_blocks(self, positions: int) -> PositionBlocks | None:
        """All positions of a map of this many positions, grouped by text. None: every row reads its own text."""
        ...

    def text_delta(self, path: str, text: Tensor) -> LowRank | None:
        """The deltas of a projection for these texts (n,), along a leading axis. None if there are none."""
        ...


@dataclass(frozen=True, eq=False)
class TextConditioning:
    """What the attention layers need of the text and the adapters in one network call.

    ``kv`` has the keys and values of each cross-attention layer (``....attn2``), including the adapters' deltas.
    ``deltas`` has the deltas of other projections (``....attn1.to_q``, ``....attn2.to_out.0``), one per row. Rows are
    those of the network's batch: ``[unconditional..., conditional...]`` in a guided stock pipeline. If ``regional`` is
    given, there are more texts than rows, and each position reads one of them. ``watch`` observes the text
    cross-attentions of the call.
    """

    kv: Mapping[str, KeysValues]
    deltas: Mapping[str, LowRank] | None = None
    regional: RegionalText | None = None
    watch: Watch | None = None

    @property
    def rows(self) -> int:
        return self.regional.rows if self.regional else next(iter(self.kv.values()))[0].shape[0]

    def take(self, rows: Sequence[int]) -> TextConditioning:
        """The conditioning of the given rows, in that order."""
        index = torch.tensor(list(rows), device=next(iter(self.kv.values()))[0].device)
        kv = {layer: (keys[index], values[index]) for layer, (keys, values) in self.kv.items()}
        deltas = self.deltas and {path: delta.take(index) for path, delta in self.deltas.items()}
        return TextConditioning(kv, deltas)

    @staticmethod
    def join(parts: Sequence[TextConditioning]) -> TextConditioning:
        """Concatenate the rows of all parts. No part may have regions or deltas of other projections."""
        assert all(part.deltas is None and part.regional is None for part in parts), "these are made for one batch"
        if len(parts) == 1:
            return parts[0]
        kv = {
            layer: tuple(map(torch.cat, zip(*(part.kv[layer] for part in parts), strict=True))) for layer in parts[0].kv
        }
        return TextConditioning(cast(Mapping[str, KeysValues], kv))

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values, in bytes."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.kv.values())


class TextKVProcessor:
    """Calls the stock processor that it replaces, with the keys, values and deltas of a `TextConditioning`.

    The stock processor computes the attention. It gets an attention module whose projections return the prepared keys
    and values, or add a delta. Without a `TextConditioning` it gets the original attention module.
    """

    def __init__(self, layer: str, stock: Any, family: Family) -> None:
        self.layer = layer
        self.stock = stock
        self._projections, self._kv_names = family.attention_projections, family.kv_names

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        tara: TextConditioning | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """``hidden_states`` is (rows, positions, channels). Raises TaraError if ``tara`` has another number of rows."""
        replaced = {} if tara is None else self._replaced(attn, hidden_states, tara)
        if tara is None or not replaced:
            if tara is not None and encoder_hidden_states is not None:
                raise TaraError(
                    f"The prepared text has no keys and values for '{self.layer}'. Call tara.prepare on this pipeline."
                )
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        if tara.rows != hidden_states.shape[0]:
            raise TaraError(
                f"The network got {hidden_states.shape[0]} rows, but tara.prepare made text for {tara.rows}. Give "
                "tara.prepare the same prompts, guidance_scale and num_images_per_prompt as the pipeline call."
            )
        reads_text = self.layer in tara.kv
        watches = (tara.watch, tara.regional.watch if tara.regional else None)
        for watch in watches if reads_text else ():
            if watch is not None:
                self._observe(watch, attn, replaced, hidden_states, attention_mask)
        blocks = tara.regional.text_blocks(hidden_states.shape[1]) if tara.regional and reads_text else None
        if blocks is None:
            attn = _ModuleWithReplacements(attn, replaced)
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        # the stock processor gets each block as a row with its own text
        rows = blocks.positions[:, 0] // hidden_states.shape[1]
        text, mask = (None if of_row is None else of_row[rows] for of_row in (encoder_hidden_states, attention_mask))
        attn = _ModuleWithReplacements(attn, self._replaced(attn, hidden_states, tara, blocks.group))
        return blocks.scatter(self.stock(attn, blocks.gather(hidden_states), text, mask, *args, **kwargs), tara.rows)

    def _replaced(
        self, attn: Any, x: Tensor, tara: TextConditioning, texts: Tensor | None = None
    ) -> dict[str, Projection]:
        """Replacements of the projections, by name. ``texts`` (rows,) is the text of each row; None: its own."""
        replaced: dict[str, Projection] = {}
        for name in self._projections:
            path = f"{self.layer}.{name}"
            if texts is None:
                delta = None if tara.deltas is None else tara.deltas.get(path)
            else:
                delta = None if tara.regional is None else tara.regional.text_delta(path, texts)
            if delta is not None:
                replaced[name] = partial(_changed, attn.get_submodule(name), delta)
        read = slice(tara.rows) if texts is None else texts
        for name, prepared in zip(self._kv_names, tara.kv.get(self.layer, ()), strict=False):
            replaced[name] = partial(_prepared, prepared[read].to(x))
        return replaced

    def _observe(
        self, watch: Watch, attn: Any, replaced: Mapping[str, Projection], x: Tensor, mask: Tensor | None
    ) -> None:
        to_query = replaced.get(self._projections[0]) or attn.get_submodule(self._projections[0])
        parts = to_query(x), replaced[self._kv_names[0]](x)
        query, key = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, key.shape[2], len(key)).unflatten(0, (len(key), -1))
        watch(self.layer, query, key, mask)


def _prepared(result: Tensor, _inputs: Tensor) -> Tensor:
    return result


def _changed(projection: nn.Module, delta: LowRank, inputs: Tensor) -> Tensor:
    return projection(inputs) + delta.to(dtype=inputs.dtype).delta(inputs)


class _ModuleWithReplacements:
    """A module in which some submodules, named by their paths, are replaced by functions."""

    def __init__(self, module: Any, replaced: Mapping[str, Projection]) -> None:
        self._module, self._by_path = module, replaced

    def __getattr__(self, name: str) -> Any:
        if name in self._by_path:
            return self._by_path[name]
        part = getattr(self._module, name)
        inside = {path.removeprefix(f"{name}."): f for path, f in self._by_path.items() if path.startswith(f"{name}.")}
        return _ModuleWithReplacements(part, inside) if inside else part

    def __getitem__(self, index: int) -> Any:
        return getattr(self, str(index))


class AttentionProcessors:
    """Our processors for every attention of a denoiser, and a hook that checks that no other code has replaced them.

    They are made once. Installing them again after a release uses the same objects, so that a compiled denoiser is not
    compiled again.
    """

    def __init__(self, denoiser: nn.Module, family: Family) -> None:
        self._denoiser, self._family = denoiser, family
        self._ours: dict[str, TextKVProcessor] = {}
        self._guard: Any = None

    @property
    def installed(self) -> bool:
        """Whether `install` has been called and `release` has not."""
        return getattr(self._denoiser, INSTALLED, None) is self

    def install(self) -> None:
        """Replace the stock processors by ours. A second call has no effect.

        Raises:
            TaraError: when a processor is neither stock nor ours.
        """
        ours: dict[str, TextKVProcessor] = {}
        for layer in self._family.attention_layers(self._denoiser):
            present, earlier = self._attention(layer).processor, self._ours.get(layer)
            if isinstance(present, TextKVProcessor):
                ours[layer] = present
            elif type(present) not in self._family.stock_processors:
                raise _would_ignore_adapters(layer, present)
            elif earlier is not None and earlier.stock is present:
                ours[layer] = earlier
            else:
                ours[layer] = TextKVProcessor(layer, present, self._family)
        self._ours = ours
        for layer, processor in ours.items():
            self._attention(layer).processor = processor
        if not self.installed:
            setattr(self._denoiser, INSTALLED, self)
            self._guard = self._denoiser.register_forward_pre_hook(self._check, with_kwargs=True)

    def release(self) -> None:
        """Restore the stock processors, except where other code has replaced ours."""
        if not self.installed:
            return
        self._guard.remove()
        delattr(self._denoiser, INSTALLED)
        for attention in map(self._attention, self._ours):
            if isinstance(attention.processor, TextKVProcessor):
                attention.processor = attention.processor.stock

    def _attention(self, layer: str) -> Any:
        return self._denoiser.get_submodule(layer)

    def _check(self, _denoiser: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the denoiser. Refuses (TaraError) other processors, which would ignore the adapters."""
        if CONDITIONING_KEY not in (kwargs.get("cross_attention_kwargs") or {}):
            return
        for layer in self._ours:
            if not isinstance(processor := self._attention(layer).processor, TextKVProcessor):
                raise _would_ignore_adapters(layer, processor)


def _would_ignore_adapters(layer: str, processor: object) -> TaraError:
    return TaraError(
        f"The attention processor of '{layer}' is {type(processor).__name__}, which would ignore the adapters. Turn "
        "off xFormers, fused QKV projections and IP-Adapters, set attention slicing as you want it, then call "
        "tara.prepare again."
    )
