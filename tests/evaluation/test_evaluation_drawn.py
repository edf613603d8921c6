"""`tara evaluate pairs` and `dreambooth`: what is drawn, and what is kept when it is started again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import tiny_models
from tara.cli import main
from tara.errors import TaraError
from tara.evaluation import drawn
from tara.evaluation.protocols import Role, groups, together
from tara.evaluation.subjects import OTHER_CLASSES, SAME_CLASS, Subject
from tara.inference.binding import ActiveAdapter
from tara.inference.provenance import PictureSettings, UsedFile, read_origin
from tara.training.data.dreambooth import TABLE

TABLE_LINES = """Classes
subject_name,class
dog,dog
cat,toy
Object Prompts
prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]
Live Subject Prompts
prompt_list = [
'a {0} {1} in a chef outfit'.format(unique_token, class_token)
]
"""


@pytest.fixture
def command(trained: Path, base: Path, here: Path) -> Callable[..., list[Any]]:
    """A command that draws with two tiny adapters and looks with tiny models."""
    for build in (tiny_models.dinov2, tiny_models.owlv2):
        build(here / build.__name__)
    flags = ["--base", str(base), "--device", "cpu", "--steps", "1", "--detector", "owlv2", "--dino", "dinov2"]
    flags += ["--clip", "none", "--plain-dino", "none", "--confidence", "0"]
    who = ["-a", trained / "rex.safetensors", "-a", trained / "tom.safetensors"]
    photos = ["-r", f"xlo={trained / 'dog'}", "-r", f"szn={trained / 'cat'}"]
    return lambda protocol, *more: ["evaluate", protocol, *who, *photos, *flags, *more]


def run(arguments: list[Any]) -> dict[str, Any]:
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(Path("evaluation/results.json").read_text(encoding="utf-8"))


def test_pairs_are_drawn_by_each_composer_and_a_second_start_draws_only_the_rest(
    command: Callable[..., list[Any]], refused: Any
):
    flags = ["--prompt", "{subjects} on the beach", "--composers", "tara,sum", "--seeds", "0-1"]
    found = run(command("pairs", *flags))
    assert [series["name"] for series in found["series"]] == ["tara", "sum"]
    assert [one["seed"] for one in found["pictures"]] == [0, 1, 0, 1]
    assert {one["prompt"] for one in found["pictures"]} == {"a xlo dog and a szn cat on the beach"}
    assert found["differences"][0]["figures"]["presence"] is not None
    drawn = sorted(Path("evaluation/pictures").rglob("*.png"))
    assert drawn[0].as_posix() == "evaluation/pictures/sum/xlo-dog+szn-cat/00-seed-0000.png"
    assert read_origin(drawn[0]).settings.composer == "sum"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in drawn}
    drawn[1].unlink()
    drawn[2].write_bytes(drawn[2].read_bytes()[:100])
    again = run(command("pairs", *flags))
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in drawn}
    assert {path: png for path, (png, _) in after.items()} == {path: png for path, (png, _) in before.items()}
    assert [path for path in drawn if after[path][1] != before[path][1]] == drawn[1:3]
    assert again["series"] == found["series"]
    assert not list(Path("evaluation").rglob(".*"))
    assert "was drawn with another prompt" in refused(*command("pairs", *flags, "--guidance", "3"))


def test_the_data_sets_prompts_are_drawn_for_living_subjects_and_for_things(
    command: Callable[..., list[Any]], trained: Path, refused: Any
):
    assert f"There is no {TABLE} with prompts" in refused(*command("dreambooth"))
    (trained / TABLE).write_text(TABLE_LINES, encoding="utf-8")
    try:
        found = run(command("dreambooth", "--seeds", "5"))
    finally:
        (trained / TABLE).unlink()
    assert [one["prompt"] for one in found["pictures"]] == [
        "a xlo dog in a chef outfit",
        "a szn cat in the snow",
        "a red szn cat",
    ]
    assert [part["name"] for part in found["series"][0]["parts"]] == ["living subjects", "objects"]
    assert found["series"][0]["figures"]["leakage"] is None


def test_what_cannot_be_drawn_is_refused_with_what_to_do(
    command: Callable[..., list[Any]], trained: Path, refused: Any
):
    whole = command("pairs")
    assert "Nobody has said where the photos of 'szn cat' are" in refused(*whole[:8], *whole[10:])
    assert "no adapter of 'szn cat'" in refused(*whole[:4], *whole[6:9], f"szn cat={trained}", *whole[10:])
    assert "composer is 'blend'. Choose one of" in refused(*whole, "--composers", "blend")
    assert "names 'sxn'" in refused(*whole, "--groups", "xlo+sxn")
    assert "does not say where the subjects stand" in refused(*whole, "--prompt", "a beach")
    assert "is not a list of seeds" in refused(*whole, "--seeds", "x")
    assert "There is no scheduler 'eulr'" in refused(*whole, "--scheduler", "eulr")
    assert not Path("evaluation").exists()


def role(word: str, kind: str) -> Role:
    subject = Subject(rare_word=word, class_word=kind, photos=Path())
    return Role(subject=subject, active=ActiveAdapter(None), file=UsedFile(given="", path="", sha256=""))  # type: ignore[arg-type]


def test_no_more_merges_are_held_than_pictures_are_drawn_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    class Stub:
        def stream(self, prompts: list[str], *_: Any, **__: Any) -> Iterator[Any]:
            asked.append(len(prompts))
            yield from (SimpleNamespace(index=index, image=Image.new("RGB", (8, 8))) for index in range(len(prompts)))

    monkeypatch.setattr(drawn, "studio_of", lambda *_: Stub())
    roles = [role(word, "dog") for word in ("xlo", "szn", "qev", "vrk")]
    shots = drawn.plan(groups(roles, prompts=["{subjects}"]), [PictureSettings(composer="ties")], [0, 1], tmp_path)
    drawn.draw(shots, None, 4, lambda *_: None)
    assert asked == [4, 2, 4, 2]
    assert drawn.unfinished(shots) == []


def test_all_pairs_are_made_or_the_groups_that_are_listed():
    roles = [role("xlo", "dog"), role("szn", "cat"), role("qev", "dog")]
    scenes = groups(roles, prompts=["{subjects} here"])
    assert [scene.prompt for scene in scenes] == [
        "a xlo dog and a szn cat here",
        "a xlo dog and a qev dog here",
        "a szn cat and a qev dog here",
    ]
    assert [scene.part for scene in scenes] == [OTHER_CLASSES, SAME_CLASS, OTHER_CLASSES]
    (listed,) = groups(roles, ["QEV + szn cat+xlo"], ["{subjects}"])
    assert listed.prompt == "a qev dog, a szn cat and a xlo dog"
    with pytest.raises(TaraError, match="names a subject twice"):
        groups(roles, ["xlo+xlo dog"])
    with pytest.raises(TaraError, match="1 subjects make no pair"):
        groups(roles[:1])
    assert together([roles[0].subject]) == "a xlo dog"
