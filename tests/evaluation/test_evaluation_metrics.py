"""What is compared with what: counterparts, clusters of intervals, and rows of the page."""

from pathlib import Path

import pytest
from PIL import Image

from tara.evaluation.metrics import ScoredImage, mean_metrics, metric_differences
from tara.evaluation.page import evaluation_page
from tara.evaluation.results import results
from tara.evaluation.scores import ImageScore, SubjectScore
from tara.evaluation.subjects import ImageRecord, Subject

REX, TOM, MAX = (Subject(rare_word=word, class_word="dog", photos=Path()) for word in ("xlo", "szn", "qev"))


def scored(
    identity: dict[Subject, float], seed: int = 0, series: str = "one", path: Path = Path("x.png")
) -> ScoredImage:
    """An image of these subjects, all of them present; each leaks as much as it lacks."""
    prompt = " and ".join(f"a {subject.name}" for subject in sorted(identity, key=lambda one: one.name))
    record = ImageRecord(path=path, series=series, prompt=prompt, seed=seed, subjects=tuple(identity))
    leakage = {
        number: {"dino": 1 - value} if len(identity) > 1 else {} for number, value in enumerate(identity.values())
    }
    subjects = [
        SubjectScore(
            box=(0, 0, 1, 1), correct=True, identity={"dino": value}, leakage=leakage[number], most_similar=number
        )
        for number, value in enumerate(identity.values())
    ]
    return ScoredImage(record=record, score=ImageScore(encoders=("dino",), subjects=tuple(subjects), image_metrics={}))


def page_of(images: list[ScoredImage]) -> str:
    return evaluation_page(images, {"command": "", "models": {}, **results(images, {}, Path())})


def test_a_subject_is_compared_with_itself_in_whichever_order_a_list_names_the_subjects() -> None:
    first, second = [scored({REX: 0.9, TOM: 0.2})], [scored({TOM: 0.1, REX: 0.7})]
    assert metric_differences(first, second)["identity"][0] == 0.15


def test_a_metric_of_one_group_among_several_has_an_interval_over_its_images() -> None:
    alone = [scored({one: 0.5}) for one in (REX, TOM)]
    pair = [scored({REX: 1 - leakage, TOM: 1 - leakage}, seed) for seed, leakage in enumerate((0.0, 0.5, 1.0))]
    assert mean_metrics([*alone, *pair])["leakage"][0] == 0.5
    better = [scored({REX: 0.5, TOM: 0.5}, seed) for seed in range(3)]
    assert metric_differences([*alone, *pair], better)["leakage"][0] == 0.0


def test_groups_of_one_class_have_rows_of_their_own_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path)
    images = [scored({REX: 0.9, other: 0.8}, series=name, path=path) for name in ("a", "b") for other in (TOM, MAX)]
    html = page_of(images)
    assert html.count("<img") == 4
    assert "Frames, in the order of a prompt&#39;s subjects: blue, orange." in html


@pytest.mark.parametrize(("count", "noted"), [(24, False), (25, True)])
def test_a_page_notes_how_many_rows_it_leaves_out(count: int, noted: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path)
    images = [scored({REX: 0.9}, seed, name, path) for name in ("a", "b") for seed in range(count)]
    html = page_of(images)
    assert ("The first 24 of 25 rows." in html) == noted


def test_all_differences_stand_in_one_table(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path)
    images = [scored({REX: value}, series=name, path=path) for name, value in (("a", 0.9), ("b", 0.5), ("c", 0.4))]
    html = page_of(images)
    assert html.count("<h2>Differences</h2>") == 1
    for row in ("<td>a minus b</td>", "<td>a minus c</td>", "<td>b minus c</td>"):
        assert row in html
