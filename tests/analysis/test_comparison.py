"""Composers side by side: their order, their cost, and what the sheet shows."""

import pytest
from PIL import Image

import tiny_adapters
import tiny_bases
from tara.adapters.adapter import Adapter
from tara.analysis.comparison import SHOWN_SEEDS, ComposedImage, compare_composers, costs, grid, table
from tara.families.base import Base
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.composers import COMPOSERS
from tara.inference.pipeline import Pipeline
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.report.sheet import contact_sheet

PROMPT = "a xlo dog and a szn cat"


@pytest.fixture(scope="module")
def base() -> Base:
    return Base(tiny_bases.sd_pipeline())


def asked(base: Base, seeds: tuple[int, ...] = (0,)) -> GenerationRequest:
    words = [("xlo", "dog"), ("szn", "cat")]
    adapters = [tiny_adapters.random_adapter(base, *pair, seed=seed) for seed, pair in enumerate(words)]
    return GenerationRequest(
        prompt=PROMPT,
        adapters=tuple(map(ActiveAdapter, adapters)),
        seeds=seeds,
        settings=GenerationSettings(steps=2),
    )


def image(composer: str, seed: int, seconds: float, side: int = 8, number: int = 1) -> ComposedImage:
    return ComposedImage(
        composer=composer,
        number=number,
        seed=seed,
        image=Image.new("RGB", (side, side)),
        evaluations=3,
        seconds=seconds,
    )


def test_composers_take_turns_seed_by_seed_and_each_costs_its_evaluations(base: Base) -> None:
    layer = base.layer(base.text_layers[0])
    hooks, names = len(layer._forward_hooks), tuple(COMPOSERS)
    images = list(compare_composers(Pipeline(base), asked(base, (5, 3)), names))
    assert [(one.seed, one.composer) for one in images] == [(seed, name) for seed in (5, 3) for name in names]
    assert [one.evaluations for one in images] == [4 if one.composer == "composite" else 2 for one in images]
    assert all(one.seconds > 0 for one in images)
    assert len(layer._forward_hooks) == hooks
    assert len({one.image.tobytes() for one in images}) == len(images)


def test_a_compared_image_is_the_one_that_the_composer_generates_alone(base: Base) -> None:
    pipeline, request = Pipeline(base), asked(base, (0, 1))
    for one in compare_composers(pipeline, request, ["switch", "tara"]):
        (alone,) = pipeline(PROMPT, request.adapters, [one.seed], composer=one.composer, steps=2)
        assert one.image.tobytes() == alone.tobytes()


@pytest.mark.parametrize(("count", "ratio"), [(1, None), (2, 2.0), (4, 2.0)])
def test_the_time_ratio_is_the_median_over_seeds_without_the_first(count: int, ratio: float | None) -> None:
    images = {
        "sum": [image("sum", seed, seconds) for seed, seconds in enumerate([9.0, 4.0, 3.0, 1.0][:count])],
        "none": [image("none", seed, seconds) for seed, seconds in enumerate([1.0, 2.0, 1.0, 1.0][:count])],
    }
    request = GenerationRequest(prompt="a house")
    by_composer = costs(request, images)
    assert (by_composer["sum"]["time_ratio"], by_composer["none"]["time_ratio"]) == (ratio, ratio and 1.0)
    del images["none"]
    assert costs(request, images)["sum"]["time_ratio"] is None


def test_the_costs_have_the_prompt_and_the_files_of_each_composer(base: Base) -> None:
    images = {
        name: [image(name, seed, seconds, number=number) for number, seed in enumerate((7, 12), 1)]
        for name, seconds in (("tara", 3.0), ("none", 2.0))
    }
    by_composer = costs(asked(base, (7, 12)), images)
    assert (by_composer["tara"]["prompt"], by_composer["none"]["prompt"]) == (PROMPT, "a dog and a cat")
    assert by_composer["none"]["images"] == ["none/0001-seed7.png", "none/0002-seed12.png"]
    shown = table(by_composer)
    assert [row[:3] for row in shown.rows] == [("tara", "3", "1.50"), ("none", "3", "1.00")]
    assert shown.headings[:3] == ("composer", "network evaluations", "time relative to 'none'")


def test_the_sheet_has_a_row_for_each_composer_and_a_column_for_each_of_the_first_seeds() -> None:
    names = ("tara", "sum", "none")
    images = {name: [image(name, seed, 1.0, side=400) for seed in range(20)] for name in names}
    shown = grid(GenerationRequest(prompt=PROMPT, seeds=tuple(range(20))), images)
    assert [row.label.partition(": ")[0] for row in shown.rows] == list(names)
    assert shown.rows[1].label == "sum: summed LoRAs, on all tokens"
    assert shown.columns == tuple(f"seed {seed}" for seed in range(SHOWN_SEEDS))
    assert shown.note == f"The first {SHOWN_SEEDS} of 20 seeds."
    assert contact_sheet(shown).width > SHOWN_SEEDS * 300


def test_a_note_names_the_composers_that_the_adapters_were_not_made_for(base: Base) -> None:
    request = asked(base)
    dog, cat = request.adapters
    masked = Adapter(
        dog.adapter.card.model_copy(update={"settings": {"token_mask": True}}), dog.adapter.layers, name="dog"
    )
    images = {name: [image(name, 0, 1.0)] for name in ("tara", "sum", "switch", "none")}

    def note(adapters: tuple[ActiveAdapter, ...], images: dict[str, list[ComposedImage]]) -> str:
        return grid(request.model_copy(update={"adapters": adapters}), images).note

    text = note((ActiveAdapter(masked), cat), images)
    assert text.startswith("dog learned with token masks, each on its own word; sum, switch let")
    assert note((cat,), images) == ""
    assert note((ActiveAdapter(masked),), {"tara": images["tara"]}) == ""
