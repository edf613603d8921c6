"""Tag shuffling, caption dropout, noise offset and random seeds: each does what kohya's users know by that name."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cli_commands import TINY
from tara.adapters.adapter import load_adapter
from tara.cli import main
from tara.core.noise import offset_noise, tag_orders
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.training.concept_settings import ConceptSettings
from tara.training.run.recipe_files import read_recipe
from tara.training.run.run import train_recipe
from tara.training.settings import Recipe, TrainSettings, train_settings
from training_fixtures import (
    Killed,
    all_same,
    difference,
    in_float64,
    killed_after,
    photo_folder,
    quick,
    run_steps,
    trained,
    training_of,
    two_concepts,
)

CALLS = 200
TAGS = "a xlo dog, running, grass, sunny day, from above"


def tagged(folder: Path, **settings: Any) -> ConceptSettings:
    """A dog of three photos with five tags each."""
    photos = photo_folder(folder / "dog")
    for number in range(3):
        (photos / f"{number}.txt").write_text(f"{TAGS}, photo {number}", encoding="utf-8")
    out = folder / "out" / "rex.safetensors"
    return ConceptSettings(images=photos, rare_word="xlo", class_word="dog", out=out, **settings)


def captions_of(concepts: Sequence[ConceptSettings], settings: TrainSettings, base: Base) -> list[str]:
    """Each row's caption in many calls."""
    training = training_of(concepts, settings, base)
    return [caption.text for call in range(CALLS) for caption in training.images(call).captions]


def test_an_order_of_tags_has_the_same_tags_and_the_kept_ones_in_front():
    orders = tag_orders(0, "xlo\ndog", TAGS, kept=2, count=300)
    tags = TAGS.split(", ")
    assert len(orders) == len(set(orders)) == 6  # 3! orders of the rest
    for order in orders:
        assert order.startswith("a xlo dog, running, ")
        assert sorted(order.split(", ")) == sorted(tags)
    assert orders == tag_orders(0, "xlo\ndog", TAGS, kept=2, count=300)
    assert orders != tag_orders(1, "xlo\ndog", TAGS, kept=2, count=300)


def test_shuffled_tags_are_trained_with_and_kept_ones_stay(shared_base: Base, tmp_path: Path):
    concept = tagged(tmp_path)
    seen = set(captions_of([concept], quick(shuffle_tags=True, keep_tags=1), shared_base))
    assert 3 < len(seen) <= 3 * 16
    for caption in seen:
        assert caption.startswith("a xlo dog, ")
        assert set(caption.split(", ")) - {f"photo {number}" for number in range(3)} == set(TAGS.split(", "))
    assert len(set(captions_of([concept], quick(), shared_base))) == 3


def test_shuffling_captions_without_tags_gets_a_note(shared_base: Base, tmp_path: Path):
    with pytest.warns(TaraWarning, match="shuffle_tags has no effect on 'xlo dog'"):
        training_of(two_concepts(tmp_path)[:1], quick(shuffle_tags=True), shared_base)


def test_kept_tags_without_shuffling_get_a_note(shared_base: Base, tmp_path: Path):
    with pytest.warns(TaraWarning, match="keep_tags has no effect without shuffle_tags"):
        training_of([tagged(tmp_path)], quick(keep_tags=1), shared_base)


def test_captions_are_dropped_at_the_given_rate_and_the_others_stay(shared_base: Base, tmp_path: Path):
    concept, attention = tagged(tmp_path), {"targets": "attention"}
    all_captions = captions_of([concept], quick(**attention), shared_base)
    captions = captions_of([concept], quick(caption_dropout=0.25, **attention), shared_base)
    assert Counter(caption == "" for caption in captions)[True] / len(captions) == pytest.approx(0.25, abs=0.07)
    assert all(caption in ("", before) for caption, before in zip(captions, all_captions, strict=True))


def test_a_dropped_caption_trains_only_what_acts_without_the_rare_word(shared_base: Base, tmp_path: Path):
    settings = quick(caption_dropout=0.999999, batch_size=1, steps=1, weight_decay=0, targets="attention")
    training = training_of([tagged(tmp_path)], settings, shared_base)
    before = training.adapters()[0]
    (record,) = run_steps(training)
    assert record.concepts[0].alignment == 0
    changed = {
        path for path, low in training.adapters()[0].layers.items() if not torch.equal(low.b, before.layers[path].b)
    }
    text = {f"{layer}.{name}" for layer in shared_base.text_layers for name in shared_base.family.kv_names}
    assert changed
    assert not changed & text


def test_the_alignment_loss_is_that_of_the_rows_that_keep_their_caption(float64_base: Base, tmp_path: Path):
    concept = two_concepts(tmp_path)[:1]  # one fixed caption, whose loss does not depend on the number of rows
    settings = {"targets": "attention", "batch_size": 4, "steps": 1}
    whole = run_steps(training_of(concept, quick(**settings), float64_base))
    some = training_of(concept, quick(caption_dropout=0.5, **settings), float64_base)
    assert 0 < sum(caption.text == "" for caption in some.images(0).captions) < 4
    assert run_steps(some)[0].concepts[0].alignment == pytest.approx(whole[0].concepts[0].alignment, rel=1e-12)


def test_dropout_where_an_adapter_acts_on_its_word_alone_gets_a_note(shared_base: Base, tmp_path: Path):
    with pytest.warns(TaraWarning, match="Caption dropout only skips training images here"):
        training_of([tagged(tmp_path)], quick(caption_dropout=0.1), shared_base)


def test_the_noise_offset_adds_one_number_to_each_channel_of_the_noise(shared_base: Base, tmp_path: Path):
    concepts = two_concepts(tmp_path)[:1]
    plain, offset = (
        training_of(concepts, quick(noise_offset=value), shared_base).images(3).groups[0].target for value in (0.0, 0.1)
    )
    added = torch.stack(offset_noise(0, "xlo\ndog", 3, [tuple(plain.shape[1:])] * len(plain)))
    torch.testing.assert_close(offset, plain + 0.1 * added)
    many = torch.stack(offset_noise(0, "xlo\ndog", 0, [(4, 8, 8)] * 1000))
    assert float(many.mean()) == pytest.approx(0, abs=0.06)
    assert float(many.std()) == pytest.approx(1, abs=0.06)


ALL = {"shuffle_tags": True, "keep_tags": 1, "caption_dropout": 0.3, "noise_offset": 0.1, "targets": "attention"}


def test_with_all_of_them_a_resumed_training_equals_an_uninterrupted_one(shared_base: Base, tmp_path: Path):
    recipes = [
        Recipe(settings=quick(**ALL, checkpoint_every=2, steps=6), concepts=(tagged(tmp_path / name),))
        for name in ("whole", "killed")
    ]
    whole = train_recipe(recipes[0], shared_base)
    with pytest.raises(Killed):
        train_recipe(recipes[1], shared_base, on_step=killed_after(3))
    resumed = train_recipe(read_recipe(recipes[1].run_folder), shared_base, resume=True)
    assert all_same(whole, resumed)


def test_with_all_of_them_concepts_trained_together_equal_each_trained_alone(sd_pipe: Any, tmp_path: Path):
    base, (_, cat) = in_float64(sd_pipe), two_concepts(tmp_path / "two")
    for number in range(2):
        (cat.images / f"{number}.txt").write_text("a szn cat, asleep, on a bed, indoors", encoding="utf-8")
    concepts = [tagged(tmp_path), cat]
    together = trained(concepts, quick(**ALL), base)
    for concept, adapter in zip(concepts, together, strict=True):
        assert difference(trained([concept], quick(**ALL), base)[0], adapter) < 1e-8


def test_a_random_seed_is_drawn_anew_and_is_a_number_from_then_on():
    seeds = {train_settings(base="sd15", seed="random").seed for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_processes_that_would_each_draw_their_own_seed_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TaraError, match="several processes were launched, which need one seed; give a number"):
        train_settings(base="sd15", seed="random")


def test_a_random_seed_is_told_and_stored(
    base: Path, here: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
):
    photos = photo_folder(here / "dog")
    given = ["--images", str(photos), "--rare-word", "xlo", "--class-word", "dog", "--base", str(base), *TINY]
    assert main(["train", *given, "--seed", "random", "--out", "rex.safetensors"]) == 0
    seed = load_adapter(Path("rex.safetensors")).card.settings["seed"]
    assert f"seed {seed}." in capsys.readouterr().out
    assert read_recipe(Path("rex.run")).settings.seed == seed
    assert "'dice' is neither a whole number nor random." in refused("train", *given, "--seed", "dice")


@pytest.mark.parametrize(("flag", "value"), [("noise-offset", "2"), ("caption-dropout", "1"), ("keep-tags", "-1")])
def test_values_that_cannot_be_are_refused(flag: str, value: str, refused: Callable[..., str]):
    given = ["--images", ".", "--rare-word", "xlo", "--class-word", "dog", "--base", "tiny"]
    assert flag.replace("-", "_") in refused("train", *given, f"--{flag}={value}")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("shuffle_caption", "--shuffle-tags"),
        ("keep_tokens=1", "--keep-tags"),
        ("caption_dropout_rate", "--caption-dropout"),
    ],
)
def test_kohyas_names_are_answered_with_ours(theirs: str, ours: str, refused: Callable[..., str]):
    assert f"here: {ours}." in refused("train", "--images", ".", f"--{theirs}", "--base", "tiny")
