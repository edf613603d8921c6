"""Prompts and their adapters as rows of a batch: loaded, checked against the base, arranged by the composer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tara.adapters.adapter import Adapter
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter, ActiveAdapters, AdapterLike, AdapterLists, as_active_adapter
from tara.inference.composers import Composer
from tara.inference.embeddings import load_embeddings
from tara.inference.fusing import check_fits, cut_for_regions, with_changes
from tara.inference.places import Places, parse_places
from tara.inference.strength import check_strength


@dataclass(frozen=True, eq=False)
class PromptRow:
    """One prompt, its negative prompt and its adapters, as a composer arranges them.

    ``text`` is what is encoded of the prompt, ``acting`` are the adapters that act.
    """

    prompt: str
    negative: str | None
    adapters: ActiveAdapters
    text: str
    acting: ActiveAdapters
    composer: Composer
    places: Places

    @property
    def confined(self) -> ActiveAdapters:
        """The adapters that act in their own regions only: with such a composer all but the styles."""
        return tuple(active for active in self.acting if self.composer.regional and not self._is_everywhere(active))

    def _is_everywhere(self, active: ActiveAdapter) -> bool:
        return self.places[active.rare_word] is None if active.rare_word in self.places else active.is_style

    @property
    def everywhere(self) -> ActiveAdapters:
        """The adapters that act on the whole image."""
        return tuple(active for active in self.acting if active not in self.confined)

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """What rows must share for one batch: the composer, and the global parts, which are fused into the weights."""
        parts = [(id(active.adapter), active.global_strength) for active in self.everywhere if active.global_strength]
        # with one evaluation for each adapter, their number and order count too
        return id(self.composer), *((len(self.acting), *parts) if self.composer.turns else sorted(parts))


def prompt_rows(
    base: Base,
    prompt: str | Sequence[str],
    adapters: AdapterLists,
    negative_prompt: str | Sequence[str] | None,
    composer_for: Callable[[ActiveAdapters], Composer],
    regions: Sequence[str] = (),
) -> list[PromptRow]:
    """One row per prompt, its adapters loaded, checked against the base and arranged by the composer."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise TaraError("There is no prompt. Give at least one.")
    if negative_prompt is None or isinstance(negative_prompt, str):
        negatives: list[str | None] = [negative_prompt] * len(prompts)
    else:
        negatives = list(negative_prompt)
    if len(negatives) != len(prompts):
        raise TaraError(
            f"There are {len(prompts)} prompts but {len(negatives)} negative prompts. Give one, or one for each prompt."
        )
    per_prompt = adapters_per_prompt(adapters, len(prompts))
    places = parse_places(regions, {active.rare_word for of_prompt in per_prompt for active in of_prompt})
    chosen = [composer_for(of_prompt) for of_prompt in per_prompt]
    given = {
        (id(active), id(composer)): (active, composer)
        for of_prompt, composer in zip(per_prompt, chosen, strict=True)
        for active in of_prompt
    }
    ready = {key: _ready(base, active, composer) for key, (active, composer) in given.items()}
    per_prompt = [
        tuple(ready[id(active), id(composer)] for active in of_prompt)
        for of_prompt, composer in zip(per_prompt, chosen, strict=True)
    ]
    # prompts with the same adapters share their merge, and so a batch
    composers = dict(zip(per_prompt, chosen, strict=True))
    acting = {of_prompt: composer.adapters(of_prompt) for of_prompt, composer in composers.items()}
    _check_maskable(active for of_prompt, own in acting.items() if composers[of_prompt].masked for active in own)
    return [
        PromptRow(text, negative, own, composers[own].prompt(text, own), acting[own], composers[own], places)
        for text, negative, own in zip(prompts, negatives, per_prompt, strict=True)
    ]


def _ready(base: Base, active: ActiveAdapter, composer: Composer) -> ActiveAdapter:
    """An adapter as a composer uses it on a base, checked; what its file brings along for the base is in its place."""
    active = with_changes(base, active)
    check_fits(base, active)
    check_strength(base, active)
    load_embeddings(base, active)
    return cut_for_regions(active) if composer.regional and active.adapter.card.method else active


def _check_maskable(adapters: Iterable[ActiveAdapter]) -> None:
    for active in adapters:
        if method := active.adapter.card.method:
            raise TaraError(
                f"{active.name} holds {method}, which acts as a whole and cannot be masked by its word. Use "
                "--composer sum or regions."
            )


def adapters_per_prompt(adapters: AdapterLists, prompts: int) -> list[ActiveAdapters]:
    """Each prompt's adapters, loaded; each file is read once, and rows that name the same one share it."""
    if isinstance(adapters, (str, Path, Adapter, ActiveAdapter)):
        raise TaraError("adapters is one adapter, not a list. Write adapters=[...].")
    flat = cast(list[AdapterLike], [entry for entry in adapters if not isinstance(entry, (list, tuple))])
    if len(flat) == len(adapters):
        return [tuple(as_active_adapter(entry) for entry in flat)] * prompts
    if flat or len(adapters) != prompts:
        raise TaraError(f"adapters has {len(adapters)} entries. Give one list for all prompts, or {prompts} lists.")
    lists = cast(Sequence[Sequence[AdapterLike]], adapters)
    named = {str(entry): as_active_adapter(entry) for own in lists for entry in own if isinstance(entry, (str, Path))}
    return [
        tuple(named[str(entry)] if isinstance(entry, (str, Path)) else as_active_adapter(entry) for entry in own)
        for own in lists
    ]
