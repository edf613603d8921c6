from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

import tiny_adapters
from tara.adapters.adapter import Adapter
from tara.core.tokens import Tokenized
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter, as_active_adapter, parse_adapter
from tara.inference.binding import bind, bind_all_tokens

Bound = Callable[..., list[list[str]]]


@pytest.fixture
def base(sd_pipe: StableDiffusionPipeline) -> Base:
    return Base(sd_pipe)


@pytest.fixture
def rex(base: Base) -> Adapter:
    return tiny_adapters.random_adapter(base, "xlo", "dog")


@pytest.fixture
def tom(base: Base) -> Adapter:
    return tiny_adapters.random_adapter(base, "xlo", "cat")


def _words(text: Tokenized, active: ActiveAdapter, active_adapters: list[ActiveAdapter]) -> list[int]:
    """First characters of the words that ``active`` is bound to."""
    (binding,) = [found for found in bind(text, active_adapters) if found.active is active]
    return [text.offsets[word[0]][0] for word in binding.occurrences]


def test_every_occurrence_of_a_rare_word_is_bound_with_all_its_pieces(base: Base, rex: Adapter) -> None:
    (found,) = bind(base.tokenize("a xlo dog and XLO's dog, not a lo dog"), [ActiveAdapter(rex)])
    assert found.occurrences == ((2, 3), (6, 7))


def test_adapters_that_share_a_rare_word_are_told_apart_by_the_class_word(
    base: Base, rex: Adapter, tom: Adapter
) -> None:
    text = base.tokenize("a xlo cat beside a dog, and two xlo nice dogs, xlo's dog and a cat")
    active_adapters = [ActiveAdapter(rex), ActiveAdapter(tom)]
    with pytest.raises(TaraError, match="could mean"):
        bind(text, active_adapters)  # "xlo nice dogs" names neither class word
    text = base.tokenize("a xlo cat beside a dog, and two xlo nice dog, xlo's dog and a cat")
    assert _words(text, active_adapters[0], active_adapters) == [32, 46]
    assert _words(text, active_adapters[1], active_adapters) == [2]


def test_a_rare_word_inside_a_longer_one_is_not_bound_there(base: Base) -> None:
    active_adapters = [ActiveAdapter(tiny_adapters.random_adapter(base, word, "dog")) for word in ("xlo", "xlo big")]
    text = base.tokenize("a xlo big dog and a xlo dog")
    assert _words(text, active_adapters[0], active_adapters) == [20]
    assert _words(text, active_adapters[1], active_adapters) == [2]
    with pytest.raises(TaraError, match="'xlo' is not in the prompt"):
        bind(base.tokenize("a xlo big dog"), active_adapters)


def test_the_longer_class_word_wins(base: Base) -> None:
    active_adapters = [ActiveAdapter(tiny_adapters.random_adapter(base, "xlo", kind)) for kind in ("toy", "toy dog")]
    text = base.tokenize("a xlo toy dog and a xlo toy")
    assert _words(text, active_adapters[0], active_adapters) == [20]
    assert _words(text, active_adapters[1], active_adapters) == [2]


def test_rebinding_gives_an_adapter_another_word(base: Base, rex: Adapter, tom: Adapter) -> None:
    active_adapters = [ActiveAdapter(rex, rare_word="rex"), ActiveAdapter(tom)]
    text = base.tokenize("a rex dog and a xlo cat")
    assert _words(text, active_adapters[0], active_adapters) == [2]
    assert _words(text, active_adapters[1], active_adapters) == [16]
    active_adapters = [ActiveAdapter(rex, class_word="robot"), ActiveAdapter(tom)]
    assert _words(base.tokenize("a xlo robot and a xlo cat"), active_adapters[0], active_adapters) == [2]


def test_what_cannot_be_bound_is_one_clear_sentence(base: Base, rex: Adapter, tom: Adapter) -> None:
    cases = [
        (
            "a dog",
            [ActiveAdapter(rex)],
            r"'xlo' is not in the prompt 'a dog'\. xlo-dog.safetensors acts on 'xlo'\. Add",
        ),
        ("a xlo dog", [ActiveAdapter(rex), ActiveAdapter(tom)], "'xlo cat' is not in the prompt"),
        ("a xlo dog", [ActiveAdapter(rex), ActiveAdapter(rex)], "is given twice"),
        ("a xlo", [ActiveAdapter(rex), ActiveAdapter(tom)], "could mean"),
    ]
    for prompt, active_adapters, message in cases:
        with pytest.raises(TaraError, match=message):
            bind(base.tokenize(prompt), active_adapters)


def test_bound_everywhere_means_every_token(base: Base, rex: Adapter) -> None:
    (found,) = bind_all_tokens(base.tokenize("a dog"), [ActiveAdapter(rex)])
    assert found.occurrences == (tuple(range(77)),)


def test_options_follow_the_last_colon_unless_the_whole_is_a_file(rex: Adapter, tmp_path: Path) -> None:
    path = rex.save(tmp_path / "rex.safetensors")
    odd = rex.save(tmp_path / "rex:0.5")
    assert parse_adapter(str(path)).weight == 1.0
    assert parse_adapter(f"{path}:0.8").weight == 0.8
    assert parse_adapter(str(odd)).weight == 1.0
    assert parse_adapter(f"{odd}:0.8").weight == 0.8
    active = parse_adapter(f"{path}:weight=0.5,rare_word=rex,class_word=toy dog,global=0.25,alpha=8")
    assert (active.weight, active.rare_word, active.class_word, active.global_weight) == (0.5, "rex", "toy dog", 0.25)
    assert active.adapter.card.scale == 2.0
    assert as_active_adapter(path).name == "rex.safetensors"
    assert as_active_adapter(active) is active
    assert as_active_adapter(rex).adapter is rex


def test_wrong_options_are_refused_by_name(rex: Adapter, tmp_path: Path) -> None:
    path = rex.save(tmp_path / "rex.safetensors")
    with pytest.raises(TaraError, match=r"unknown key 'wieght'\. Did you mean 'weight'"):
        parse_adapter(f"{path}:wieght=1")
    with pytest.raises(TaraError, match="weight is 'much', not a valid number"):
        parse_adapter(f"{path}:much")
    for number in ("nan", "inf", "weight=-inf", "alpha=nan"):
        with pytest.raises(TaraError, match="not a valid number"):
            parse_adapter(f"{path}:{number}")
    with pytest.raises(TaraError, match="word is empty"):
        parse_adapter(f"{path}:rare_word=")
    with pytest.raises(TaraError, match="There is no adapter file"):
        parse_adapter(f"{tmp_path}/tom.safetensors:0.8")
