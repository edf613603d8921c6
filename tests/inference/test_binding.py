from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline

import tiny_adapters
from tara.adapters.adapter import Adapter
from tara.core.tokens import Tokenized
from tara.errors import TaraError, TaraWarning
from tara.families.base import Backbone
from tara.inference.binding import AdapterUse, as_use, bind, bind_everywhere, parse_use, warn_if_cut

Bound = Callable[..., list[list[str]]]


@pytest.fixture
def backbone(sd_pipe: StableDiffusionPipeline) -> Backbone:
    return Backbone(sd_pipe)


@pytest.fixture
def rex(backbone: Backbone) -> Adapter:
    return tiny_adapters.random_adapter(backbone, "xlo", "dog")


@pytest.fixture
def tom(backbone: Backbone) -> Adapter:
    return tiny_adapters.random_adapter(backbone, "xlo", "cat")


def _words(text: Tokenized, use: AdapterUse, uses: list[AdapterUse]) -> list[int]:
    """First characters of the words that ``use`` is bound to."""
    (binding,) = [found for found in bind(text, uses) if found.use is use]
    return [text.offsets[word[0]][0] for word in binding.occurrences]


def test_every_occurrence_of_a_rare_word_is_bound_with_all_its_pieces(backbone: Backbone, rex: Adapter) -> None:
    (found,) = bind(backbone.tokenize("a xlo dog and XLO's dog, not a lo dog"), [AdapterUse(rex)])
    assert found.occurrences == ((2, 3), (6, 7))


def test_adapters_that_share_a_rare_word_are_told_apart_by_the_class_word(
    backbone: Backbone, rex: Adapter, tom: Adapter
) -> None:
    text = backbone.tokenize("a xlo cat beside a dog, and two xlo nice dogs, xlo's dog and a cat")
    uses = [AdapterUse(rex), AdapterUse(tom)]
    with pytest.raises(TaraError, match="could mean"):
        bind(text, uses)  # "xlo nice dogs" names neither class word
    text = backbone.tokenize("a xlo cat beside a dog, and two xlo nice dog, xlo's dog and a cat")
    assert _words(text, uses[0], uses) == [32, 46]
    assert _words(text, uses[1], uses) == [2]


def test_a_rare_word_inside_a_longer_one_is_not_bound_there(backbone: Backbone) -> None:
    uses = [AdapterUse(tiny_adapters.random_adapter(backbone, word, "dog")) for word in ("xlo", "xlo big")]
    text = backbone.tokenize("a xlo big dog and a xlo dog")
    assert _words(text, uses[0], uses) == [20]
    assert _words(text, uses[1], uses) == [2]
    with pytest.raises(TaraError, match="'xlo' is not in the prompt"):
        bind(backbone.tokenize("a xlo big dog"), uses)


def test_the_longer_class_word_wins(backbone: Backbone) -> None:
    uses = [AdapterUse(tiny_adapters.random_adapter(backbone, "xlo", kind)) for kind in ("toy", "toy dog")]
    text = backbone.tokenize("a xlo toy dog and a xlo toy")
    assert _words(text, uses[0], uses) == [20]
    assert _words(text, uses[1], uses) == [2]


def test_rebinding_gives_an_adapter_another_word(backbone: Backbone, rex: Adapter, tom: Adapter) -> None:
    uses = [AdapterUse(rex, word="rex"), AdapterUse(tom)]
    text = backbone.tokenize("a rex dog and a xlo cat")
    assert _words(text, uses[0], uses) == [2]
    assert _words(text, uses[1], uses) == [16]
    uses = [AdapterUse(rex, kind="robot"), AdapterUse(tom)]
    assert _words(backbone.tokenize("a xlo robot and a xlo cat"), uses[0], uses) == [2]


def test_what_cannot_be_bound_is_one_clear_sentence(backbone: Backbone, rex: Adapter, tom: Adapter) -> None:
    cases = [
        (
            "a dog",
            [AdapterUse(rex)],
            r"'xlo' is not in the prompt 'a dog'\. xlo-dog.safetensors listens to 'xlo'\. Add",
        ),
        ("a xlo dog", [AdapterUse(rex), AdapterUse(tom)], "'xlo cat' is not in the prompt"),
        ("a xlo dog", [AdapterUse(rex), AdapterUse(rex)], "listen to the same words"),
        ("a xlo", [AdapterUse(rex), AdapterUse(tom)], "could mean"),
        ("big " * 76 + "xlo dog", [AdapterUse(rex)], "'xlo', which .* lies behind the last of 77 tokens: 'big"),
        ("big " * 73 + "xlo dog", [AdapterUse(rex)], "'dog', which .* is lost"),
        ("a xlo dog " + "big " * 76 + "xlo dog", [AdapterUse(rex)], "'xlo', which"),
    ]
    for prompt, uses, message in cases:
        with pytest.raises(TaraError, match=message):
            bind(backbone.tokenize(prompt), uses)


def test_a_lost_end_without_bound_words_is_a_warning_that_names_it(backbone: Backbone, rex: Adapter) -> None:
    text = backbone.tokenize("a xlo dog " + "big " * 75 + "house")
    assert bind(text, [AdapterUse(rex)])[0].occurrences == ((2, 3),)
    with pytest.warns(TaraWarning, match="is lost: 'big big big big house'"):
        warn_if_cut(text)
    warn_if_cut(backbone.tokenize("a xlo dog"))


def test_bound_everywhere_means_every_token(backbone: Backbone, rex: Adapter) -> None:
    (found,) = bind_everywhere(backbone.tokenize("a dog"), [AdapterUse(rex)])
    assert found.occurrences == (tuple(range(77)),)


def test_options_follow_the_last_colon_unless_the_whole_is_a_file(rex: Adapter, tmp_path: Path) -> None:
    path = rex.save(tmp_path / "rex.safetensors")
    odd = rex.save(tmp_path / "rex:0.5")
    assert parse_use(str(path)).weight == 1.0
    assert parse_use(f"{path}:0.8").weight == 0.8
    assert parse_use(str(odd)).weight == 1.0
    assert parse_use(f"{odd}:0.8").weight == 0.8
    use = parse_use(f"{path}:weight=0.5,word=rex,kind=toy dog,global=0.25,alpha=8")
    assert (use.weight, use.rare_word, use.class_word, use.global_weight) == (0.5, "rex", "toy dog", 0.25)
    assert use.adapter.card.scale == 2.0
    assert as_use(path).name == "rex.safetensors"
    assert as_use(use) is use
    assert as_use(rex).adapter is rex


def test_wrong_options_are_refused_by_name(rex: Adapter, tmp_path: Path) -> None:
    path = rex.save(tmp_path / "rex.safetensors")
    with pytest.raises(TaraError, match=r"unknown key 'wieght'\. Did you mean 'weight'"):
        parse_use(f"{path}:wieght=1")
    with pytest.raises(TaraError, match="weight is 'much', not a number"):
        parse_use(f"{path}:much")
    for number in ("nan", "inf", "weight=-inf", "alpha=nan"):
        with pytest.raises(TaraError, match="not a number"):
            parse_use(f"{path}:{number}")
    with pytest.raises(TaraError, match="word is empty"):
        parse_use(f"{path}:word=")
    with pytest.raises(TaraError, match="There is no adapter file"):
        parse_use(f"{tmp_path}/tom.safetensors:0.8")
