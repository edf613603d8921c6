"""The study runs whole with one step and one seed, resumes from its work folder, and its ideas change what they say."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import toyland
from tara.analysis.attention import SubjectTokens
from tara.families.base import Base
from tara.families.loading import load_base
from tara.families.processors import TextConditioning
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.pipeline import Pipeline
from tara.storage.photos import read_photos
from tara.training.inputs import check_inputs
from tiny_adapters import random_adapter
from tiny_bases import sd_pipeline
from training_fixtures import quick, two_concepts

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("masked, alignment off", "plain LoRAs, sum", "after 5", "strength 6", "keys tied", "own half counted")
PROMPT = "a xlo cat and a szn cat on the beach"


@pytest.fixture
def ideas(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script's ideas, with two denoising steps."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("study_ideas")
    monkeypatch.setattr(module, "SAMPLING_STEPS", 2)
    return module


@pytest.fixture
def study(ideas: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with so few steps that only the form of its results can be judged."""
    module, shared = importlib.import_module("study_toyland"), sys.modules["toyland_cast"]
    monkeypatch.setitem(shared.SETTINGS, "batch_size", 1)
    monkeypatch.setattr(shared, "SAMPLING_STEPS", 1)
    monkeypatch.setattr(shared, "TRIPLES", ((0, 2, 4),))
    monkeypatch.setattr(sys.modules["study_work"], "SAMPLING_STEPS", 1)
    for name in ("study_toyland", "study_work"):
        monkeypatch.setattr(sys.modules[name], "PAIRS", ((0, 1), (0, 2)))
    return module


@pytest.mark.slow
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
    default = result["gains"][0]  # minus itself; of fewer than five groups there is no interval
    assert default["success"][0] == default["identity_absent_zero"][0] == 0
    assert result["rows"][1]["alignment"] is not None
    assert result["failures"]["pairs"]["pictures"] == 2
    assert result["sheet"].width > 500
    assert {"name", "value", "bound", "holds"} == set(result["checks"][0])
    sys.modules["study_chart"].plot_gains(result["gains"], tmp_path / "chart.png")
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


def two_adapters(base: Base) -> list[ActiveAdapter]:
    return [
        ActiveAdapter(random_adapter(base, rare_word=word, class_word="cat", seed=seed))
        for seed, word in ((1, "xlo"), (2, "szn"))
    ]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=float)


def test_without_a_change_edited_images_are_the_pipelines(ideas: ModuleType):
    base = Base(sd_pipeline())
    both = two_adapters(base)
    prompts, adapters = [PROMPT, "a xlo cat"], [both, both[:1]]
    edited = ideas.generate_edited(base, prompts, adapters, 5)
    nowhere = ideas.generate_edited(base, prompts, adapters, 5, regions=[[None, None], [None]], strength=3.0)
    expected = Pipeline(base)(prompts, adapters, [5], steps=2, batch_size=2)
    for one, two, three in zip(edited, nowhere, expected, strict=True):
        np.testing.assert_array_equal(pixels(one), pixels(three))
        np.testing.assert_allclose(pixels(two), pixels(three), atol=1)
    bound = ideas.generate_edited(base, [PROMPT], [both], 5, regions=[[(0, 0, 0.5, 1), None]], strength=9.0)
    assert bound[0].tobytes() != edited[0].tobytes()
    assert not base.processors.installed


def test_delayed_adapters_leave_the_first_steps_to_the_base(ideas: ModuleType):
    base = Base(sd_pipeline())
    both = two_adapters(base)
    (late,) = ideas.generate_edited(base, [PROMPT], [both], 5, delay=1)
    (never,) = ideas.generate_edited(base, [PROMPT], [both], 5, delay=2)
    with_adapters, bare = (Pipeline(base)(PROMPT, own, [5], steps=2)[0] for own in (both, ()))
    np.testing.assert_array_equal(pixels(never), pixels(bare))
    assert len({image.tobytes() for image in (late, with_adapters, bare)}) == 3


def test_tied_and_contrasted_keys_are_what_they_say_and_other_rows_stay(ideas: ModuleType):
    keys = torch.randn(2, 6, 4, dtype=torch.float64)
    before = TextConditioning({"attn2": (keys, keys.clone())})
    first, second = two_adapters(Base(sd_pipeline()))
    rows = [
        [
            SubjectTokens(first, rare_positions=(1,), class_positions=(2,)),
            SubjectTokens(second, rare_positions=(3, 4), class_positions=(5,)),
        ]
    ]
    tied = ideas.tie_keys(before, rows).kv["attn2"]
    torch.testing.assert_close(tied[0][1, [1, 3, 4]], keys[1, [2, 5, 5]])
    apart = ideas.set_apart(before, rows, 3.0).kv["attn2"]
    centre, own = (keys[1, 1] + keys[1, 3:5].mean(0)) / 2, keys[1, 3:5].mean(0)
    torch.testing.assert_close(apart[0][1, 3:5].mean(0), centre + 3 * (own - centre))
    for edited in (tied, apart):
        torch.testing.assert_close(edited[0][0], keys[0])
        torch.testing.assert_close(edited[0][1, [0, 2, 5]], keys[1, [0, 2, 5]])
        torch.testing.assert_close(edited[1], before.kv["attn2"][1])


def test_tied_training_learns_values_alone(ideas: ModuleType, tmp_path: Path):
    settings = quick(steps=2, alignment_loss="off")
    training = ideas.TiedTraining(check_inputs(two_concepts(tmp_path), settings, Base(sd_pipeline())))
    assert len(list(training.steps())) == 2
    for adapter in training.adapters():
        learned = {path.rpartition(".")[2] for path, delta in adapter.layers.items() if delta.b.any()}
        assert learned == {"to_v"}


def test_a_diptych_puts_an_image_of_the_base_beside_each_photo(ideas: ModuleType, tmp_path: Path):
    shared = importlib.import_module("toyland_cast")
    members = shared.cast(3, tmp_path / "photos")[:3:2]
    diptychs = ideas.Diptychs(same_class=False, partner_counts=False)
    concepts = diptychs(members, load_base(toyland.BASE, device="cpu"), tmp_path / "both")
    sizes = [example.image.size for example in read_photos(concepts[0].images, ("",))]
    assert sorted(sizes) == [(64, 64)] * 5 + [(128, 64)] * 5
    assert (concepts[0].images / "0-both.txt").read_text(encoding="utf-8") == "a photo of a xlo cat and a car"
    assert concepts[0].masks is not None
    with Image.open(concepts[0].masks / "0-both.png") as mask:
        half = np.asarray(mask)
    assert half[:, :64].min() == 255
    assert half[:, 64:].max() == 0
