"""Composers side by side: in which order they are drawn, what they cost, and what the sheet shows."""

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

import tiny_adapters
from tara.adapters.adapter import Adapter
from tara.analysis.comparison import SHOWN_SEEDS, Compared, compared, figures, grid, table
from tara.families.base import Base
from tara.inference.binding import ActiveAdapter
from tara.inference.composers import COMPOSERS
from tara.inference.pipeline import Pipeline
from tara.report.page import contact_sheet

PROMPT = "a xlo dog and a szn cat"


def _uses(pipe: StableDiffusionPipeline) -> tuple[ActiveAdapter, ...]:
    words = [("xlo", "dog"), ("szn", "cat")]
    return tuple(
        ActiveAdapter(tiny_adapters.random_adapter(Base(pipe), *pair, seed=seed)) for seed, pair in enumerate(words)
    )


def _picture(composer: str, seed: int, seconds: float, side: int = 8) -> Compared:
    image = Image.new("RGB", (side, side))
    return Compared(composer=composer, seed=seed, image=image, evaluations=3, seconds=seconds)


def test_composers_take_turns_seed_by_seed_and_each_costs_its_evaluations(sd_pipe: StableDiffusionPipeline) -> None:
    hooks = len(sd_pipe.unet.conv_in._forward_hooks)
    names = tuple(COMPOSERS)
    drawn = list(compared(Pipeline(sd_pipe), PROMPT, _uses(sd_pipe), [5, 3], names, steps=3))
    assert [(one.seed, one.composer) for one in drawn] == [(seed, name) for seed in (5, 3) for name in names]
    assert [one.evaluations for one in drawn] == [6 if one.composer == "composite" else 3 for one in drawn]
    assert all(one.seconds > 0 for one in drawn)
    assert len(sd_pipe.unet.conv_in._forward_hooks) == hooks
    assert len({one.image.tobytes() for one in drawn}) == len(drawn)


def test_a_compared_picture_is_the_one_that_the_composer_draws_alone(sd_pipe: StableDiffusionPipeline) -> None:
    pipeline, active_adapters = Pipeline(sd_pipe), _uses(sd_pipe)
    for one in compared(pipeline, PROMPT, active_adapters, [0, 1], ["switch", "tara"], steps=2):
        (alone,) = pipeline(PROMPT, active_adapters, [one.seed], composer=one.composer, steps=2)
        assert one.image.tobytes() == alone.tobytes()


@pytest.mark.parametrize(("count", "ratio"), [(1, None), (2, 2.0), (4, 2.0)])
def test_the_time_ratio_is_the_median_over_seeds_without_the_first(count: int, ratio: float | None) -> None:
    pictures = {
        "sum": [_picture("sum", seed, seconds) for seed, seconds in enumerate([9.0, 4.0, 3.0, 1.0][:count])],
        "none": [_picture("none", seed, seconds) for seed, seconds in enumerate([1.0, 2.0, 1.0, 1.0][:count])],
    }
    found = figures("a house", (), pictures)
    assert (found["sum"]["time_ratio"], found["none"]["time_ratio"]) == (ratio, ratio and 1.0)
    del pictures["none"]
    assert figures("a house", (), pictures)["sum"]["time_ratio"] is None


def test_figures_say_what_was_drawn_and_where_it_is(sd_pipe: StableDiffusionPipeline) -> None:
    pictures = {
        name: [_picture(name, seed, seconds) for seed in (7, 12)] for name, seconds in (("tara", 3.0), ("none", 2.0))
    }
    found = figures(PROMPT, _uses(sd_pipe), pictures)
    assert (found["tara"]["prompt"], found["none"]["prompt"]) == (PROMPT, "a dog and a cat")
    assert found["none"]["pictures"] == ["none/seed-0007.png", "none/seed-0012.png"]
    shown = table(found)
    assert [row[:3] for row in shown.rows] == [("tara", "3", "1.50"), ("none", "3", "1.00")]
    assert shown.headings[:3] == ("composer", "U-Net evaluations", "time ratio")


def test_the_sheet_has_a_row_for_each_composer_and_a_column_for_each_of_the_first_seeds() -> None:
    names = ("tara", "sum", "none")
    pictures = {name: [_picture(name, seed, 1.0, side=1000) for seed in range(20)] for name in names}
    shown = grid(PROMPT, (), pictures)
    assert [row.label for row in shown.rows] == list(names)
    assert shown.columns == tuple(f"seed {seed}" for seed in range(SHOWN_SEEDS))
    assert shown.note == f"The first {SHOWN_SEEDS} of 20 seeds."
    assert contact_sheet(shown).width > SHOWN_SEEDS * 300


def test_a_reader_is_told_which_composers_the_adapters_were_not_made_for(sd_pipe: StableDiffusionPipeline) -> None:
    dog, cat = _uses(sd_pipe)
    masked = Adapter(
        dog.adapter.card.model_copy(update={"settings": {"token_mask": True}}), dog.adapter.layers, name="dog"
    )
    pictures = {name: [_picture(name, 0, 1.0)] for name in ("tara", "sum", "switch", "none")}
    note = grid(PROMPT, (ActiveAdapter(masked), cat), pictures).note
    assert note.startswith("dog learned with token masks, each on its own word alone; sum, switch let")
    assert grid(PROMPT, (cat,), pictures).note == ""
    assert grid(PROMPT, (ActiveAdapter(masked),), {"tara": pictures["tara"]}).note == ""
