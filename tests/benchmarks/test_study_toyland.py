"""The study runs whole with a step and a seed, goes on from what it kept, and its ideas change what they say."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tara import demo
from tara.analysis.attention import Subject
from tara.families.base import Base
from tara.families.processors import TextConditioning
from tara.inference.binding import ActiveAdapter
from tara.inference.pipeline import Pipeline
from tara.training.data.examples import read_examples
from tiny_adapters import random_adapter
from tiny_bases import sd_pipeline

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("masked, alignment off", "plain LoRAs, sum", "after 5", "strength 6", "keys tied", "own half counted")
PROMPT = "a xlo cat and a szn cat on the beach"


@pytest.fixture
def ideas(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("study_ideas")
    monkeypatch.setattr(module, "SAMPLING_STEPS", 2)
    return module


@pytest.fixture
def study(ideas: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with so few steps that only the form of its results can be judged."""
    monkeypatch.setitem(demo.SETTINGS, "batch_size", 1)
    module = importlib.import_module("study_toyland")
    monkeypatch.setattr(module, "SAMPLING_STEPS", 1)
    monkeypatch.setattr(module, "PAIRS", ((0, 1), (0, 2)))
    monkeypatch.setattr(sys.modules["toyland_cast"], "TRIPLES", ((0, 2, 4),))
    return module


def test_the_study_has_rows_gains_causes_and_checks_and_goes_on_from_what_it_kept(study: ModuleType, tmp_path: Path):
    first, *others = study.VARIANTS
    chosen = [first, *(one for one in others if one.part == "ideas" and any(name in one.name for name in NAMES))]
    styles, kept = study.STYLE_WAYS[-1:], list[int]()
    result = study.run(chosen, styles, 3, (0,), 1, tmp_path, lambda so_far: kept.append(len(so_far["gains"])))
    assert kept == [*range(1, len(chosen) + 1), len(chosen)]
    assert [(row["style"], row["targets"], row["captions"]) for row in result["styles"]] == [
        ("scanline", "attention", True),
        ("blueprint", "attention", True),
    ]
    assert [row["variant"] for row in result["gains"]] == [variant.name for variant in chosen]
    assert [(row["subjects"], row["same_class"]) for row in result["rows"][:4]] == [
        (1, False),
        (2, False),
        (2, True),
        (3, False),
    ]
    assert all(row["success"] == row["identity_absent_zero"] == [0, 0, 0] for row in result["gains"][:1])
    assert result["rows"][1]["alignment"] is not None
    assert result["failures"]["pairs"]["pictures"] == 2
    assert result["sheet"].width > 500
    assert {"name", "value", "bound", "holds"} == set(result["checks"][0])
    sys.modules["study_chart"].draw_chart(result["gains"], tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.width == 1430
    files = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if not {"photos", "style"} & set(path.parts)
    }
    again = study.run(chosen, styles, 3, (0,), 1, tmp_path, lambda so_far: None)
    assert json.dumps(again["rows"]) == json.dumps(result["rows"])  # nan is not itself
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_every_part_of_the_issue_has_its_variants(study: ModuleType):
    names = [variant.name for variant in study.VARIANTS]
    assert len(set(names)) == len(names)
    settings = [variant.way.changes for variant in study.VARIANTS if variant.part == "masks and alignment"]
    assert len({tuple(sorted(change.items())) for change in settings}) == 8
    assert set(sys.modules["study_variants"].QUICK) <= set(names)


def two_uses(backbone: Base) -> list[ActiveAdapter]:
    return [
        ActiveAdapter(random_adapter(backbone, seed=seed, word=word, kind="cat"))
        for seed, word in ((1, "xlo"), (2, "szn"))
    ]


def test_without_a_change_edited_drawing_is_the_studios(ideas: ModuleType):
    backbone = Base(sd_pipeline())
    active_adapters = two_uses(backbone)
    prompts, adapters = [PROMPT, "a xlo cat"], [active_adapters, active_adapters[:1]]
    ours = ideas.draw_edited(backbone, prompts, adapters, 5)
    nowhere = ideas.draw_edited(backbone, prompts, adapters, 5, regions=[[None, None], [None]], strength=3.0)
    studios = Pipeline(backbone)(prompts, adapters, [5], steps=2, batch_size=2)
    for one, two, three in zip(ours, nowhere, studios, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(three))
        np.testing.assert_allclose(np.asarray(two, float), np.asarray(three, float), atol=1)
    bound = ideas.draw_edited(backbone, [PROMPT], [active_adapters], 5, regions=[[(0, 0, 0.5, 1), None]], strength=9.0)
    assert bound[0].tobytes() != ours[0].tobytes()


def test_tied_and_contrasted_keys_are_what_they_say_and_other_rows_stay(ideas: ModuleType):
    keys = torch.randn(2, 6, 4, dtype=torch.float64)
    before = TextConditioning({"attn2": (keys, keys.clone())})
    active_adapters = two_uses(Base(sd_pipeline()))
    rows = [[Subject(active_adapters[0], rare=(1,), kind=(2,)), Subject(active_adapters[1], rare=(3, 4), kind=(5,))]]
    tied = ideas.tie_keys(before, rows).kv["attn2"]
    torch.testing.assert_close(tied[0][1, [1, 3, 4]], keys[1, [2, 5, 5]])
    apart = ideas.set_apart(before, rows, 3.0).kv["attn2"]
    centre, own = (keys[1, 1] + keys[1, 3:5].mean(0)) / 2, keys[1, 3:5].mean(0)
    torch.testing.assert_close(apart[0][1, 3:5].mean(0), centre + 3 * (own - centre))
    for edited in (tied, apart):
        torch.testing.assert_close(edited[0][0], keys[0])
        torch.testing.assert_close(edited[0][1, [0, 2, 5]], keys[1, [0, 2, 5]])
        torch.testing.assert_close(edited[1], before.kv["attn2"][1])


def test_delayed_adapters_leave_the_first_steps_to_the_base(ideas: ModuleType):
    delayed: Any = ideas.delayed(2)
    active_adapters = ("one", "two")
    assert delayed.members(active_adapters) == ((), active_adapters)
    assert [delayed.turn(step, 2) for step in range(4)] == [(0,), (0,), (1,), (1,)]


def test_a_diptych_puts_a_picture_of_the_base_beside_each_photo(ideas: ModuleType, tmp_path: Path):
    shared = importlib.import_module("toyland_cast")
    members = shared.cast(3, tmp_path / "photos")[:3]
    backbone = demo.load_base("toyland", device="cpu")
    diptychs = ideas.Diptychs(same_class=False, partner_counts=False)
    concepts = diptychs(members, backbone, tmp_path / "both")
    pictures = [example.image for example in read_examples(concepts[0].images, ("",))]
    assert sorted(picture.size for picture in pictures) == [(64, 64)] * 5 + [(128, 64)] * 5
    assert (concepts[0].images / "0-both.txt").read_text(encoding="utf-8") == "a photo of a xlo cat and a car"
    assert concepts[0].masks is not None
    with Image.open(concepts[0].masks / "0-both.png") as mask:
        half = np.asarray(mask)
    assert half[:, :64].min() == 255
    assert half[:, 64:].max() == 0
