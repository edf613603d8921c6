"""`tara evaluate pairs` and `dreambooth`: which images are generated, and which are kept by a second start."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tara.cli import main
from tara.errors import TaraError
from tara.evaluation.generated import generate, plan
from tara.evaluation.protocols import TrainedSubject, group_prompts, joined_names
from tara.evaluation.subjects import OTHER_CLASSES, SAME_CLASS, Subject
from tara.families.settings import BaseSettings
from tara.inference.active_adapter import ActiveAdapter
from tara.inference.provenance import UsedFile, read_provenance, was_made_as
from tara.inference.request import GenerationRequest
from tara.inference.settings import GenerationSettings
from tara.storage.dreambooth import TABLE

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
def command(trained: Path, base: Path, tiny: Path, here: Path) -> Callable[..., list[Any]]:
    """A command that generates with two tiny adapters and scores with tiny models."""
    flags = ["--base", base, "--device", "cpu", "--steps", "1", "--detector", tiny / "owlv2", "--dino", tiny / "dinov2"]
    flags += ["--clip", "none", "--plain-dino", "none", "--confidence", "0"]
    adapters = ["-a", trained / "rex.safetensors", "-a", trained / "tom.safetensors"]
    photos = ["-r", f"xlo={trained / 'dog'}", "-r", f"szn={trained / 'cat'}"]
    return lambda protocol, *more: ["evaluate", protocol, *adapters, *photos, *flags, *more]


def run(arguments: list[Any]) -> dict[str, Any]:
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(Path("evaluation/results.json").read_text(encoding="utf-8"))


def test_pairs_are_generated_by_each_composer_and_a_second_start_generates_only_the_rest(
    command: Callable[..., list[Any]], refused: Any
):
    flags = ["--prompt", "{subjects} on the beach", "--composers", "tara,sum", "--seeds", "0-1"]
    found = run(command("pairs", *flags))
    assert [series["name"] for series in found["series"]] == ["tara", "sum"]
    assert [one["seed"] for one in found["images"]] == [0, 1, 0, 1]
    assert {one["prompt"] for one in found["images"]} == {"a xlo dog and a szn cat on the beach"}
    assert found["differences"][0]["metrics"]["presence"]
    images = sorted(Path("evaluation/images").rglob("*.png"))
    assert images[0].as_posix() == "evaluation/images/sum/xlo-dog+szn-cat/0001-seed0.png"
    assert read_provenance(images[0]).settings.composer == "sum"
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in images}
    images[1].unlink()
    images[2].write_bytes(images[2].read_bytes()[:100])
    again = run(command("pairs", *flags))
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in images}
    assert {path: png for path, (png, _) in after.items()} == {path: png for path, (png, _) in before.items()}
    assert [path for path in images if after[path][1] != before[path][1]] == images[1:3]
    assert again["series"] == found["series"]
    assert not list(Path("evaluation").rglob(".*"))
    said = refused(*command("pairs", *flags, "--guidance-scale", "3"))
    assert "'evaluation' exists already and differs in: guidance_scale." in said


def test_a_folder_that_pairs_wrote_is_scored_again_without_generating(
    command: Callable[..., list[Any]], trained: Path, tiny: Path
):
    found = run(command("pairs", "--prompt", "{subjects} on the beach", "--composers", "tara", "--seeds", "0-1"))
    photos = ["-r", f"xlo={trained / 'dog'}", "-r", f"szn={trained / 'cat'}"]
    models = ["--detector", tiny / "owlv2", "--dino", tiny / "dinov2", "--clip", "none", "--plain-dino", "none"]
    folder = ["evaluate", "folder", "evaluation/images/tara", *photos, *models, "--confidence", "0", "--out", "again"]
    assert main([str(argument) for argument in folder]) == 0
    again = json.loads(Path("again/results.json").read_text(encoding="utf-8"))
    assert [series["metrics"] for series in again["series"]] == [series["metrics"] for series in found["series"]]


def test_the_data_sets_prompts_are_generated_for_living_subjects_and_for_objects(
    command: Callable[..., list[Any]], trained: Path, refused: Any
):
    assert f"There is no {TABLE} with prompts" in refused(*command("dreambooth"))
    (trained / TABLE).write_text(TABLE_LINES, encoding="utf-8")
    try:
        found = run(command("dreambooth", "--seeds", "5"))
    finally:
        (trained / TABLE).unlink()
    assert [one["prompt"] for one in found["images"]] == [
        "a xlo dog in a chef outfit",
        "a szn cat in the snow",
        "a red szn cat",
    ]
    assert [category["name"] for category in found["series"][0]["categories"]] == ["living subjects", "objects"]
    assert "leakage" not in found["series"][0]["metrics"]


def test_what_cannot_be_generated_is_refused_with_what_to_do(
    command: Callable[..., list[Any]], trained: Path, refused: Any
):
    whole = command("pairs")
    assert "There are no photos of 'szn cat'" in refused(*whole[:8], *whole[10:])
    assert "no adapter for 'szn cat'" in refused(*whole[:4], *whole[6:9], f"szn cat={trained}", *whole[10:])
    assert "composer is 'blend'. Choose one of" in refused(*whole, "--composers", "blend")
    assert "names 'sxn'" in refused(*whole, "--groups", "xlo+sxn")
    assert "does not say where the subjects go" in refused(*whole, "--prompt", "a beach")
    assert "is not a list of seeds" in refused(*whole, "--seeds", "x")
    assert 'Invalid value "eulr" for --scheduler' in refused(*whole, "--scheduler", "eulr")
    assert not Path("evaluation").exists()


def trained_subject(rare_word: str, class_word: str) -> TrainedSubject:
    subject = Subject(rare_word=rare_word, class_word=class_word, photos=Path())
    return TrainedSubject(
        subject=subject,
        active=ActiveAdapter(None, rare_word=rare_word, class_word=class_word),  # type: ignore[arg-type]
        file=UsedFile(given="", path="", sha256=""),
    )


def test_no_more_merges_are_held_than_images_are_generated_at_a_time(tmp_path: Path):
    requests: list[int] = []

    class Stub:
        def generate(self, of_call: list[GenerationRequest], **_: Any) -> Iterator[Any]:
            requests.append(len(of_call))
            jobs = [(request, seed) for request in of_call for seed in request.seeds]
            yield from (SimpleNamespace(index=n, image=Image.new("RGB", (8, 8))) for n in range(len(jobs)))

    trained = [trained_subject(word, "dog") for word in ("xlo", "szn", "qev", "vrk")]
    prompts = group_prompts(trained, prompts=["{subjects}"])
    planned = plan(prompts, BaseSettings(base="tiny"), GenerationSettings(), ["ties"], (0, 1), tmp_path)
    generate(Stub(), planned, 4, lambda *_: None)  # type: ignore[arg-type]
    assert requests == [4, 2]
    made = [(seed, record.path, one.provenance) for one in planned for seed, record in one.records.items()]
    assert len(made) == 12
    assert all(was_made_as(path, provenance.of_image(seed)) for seed, path, provenance in made)


def test_all_pairs_are_made_or_the_groups_that_are_listed():
    trained = [trained_subject("xlo", "dog"), trained_subject("szn", "cat"), trained_subject("qev", "dog")]
    prompts = group_prompts(trained, prompts=["{subjects} here"])
    assert [prompt.text for prompt in prompts] == [
        "a xlo dog and a szn cat here",
        "a xlo dog and a qev dog here",
        "a szn cat and a qev dog here",
    ]
    assert [prompt.category for prompt in prompts] == [OTHER_CLASSES, SAME_CLASS, OTHER_CLASSES]
    (listed,) = group_prompts(trained, ["QEV + szn cat+xlo"], ["{subjects}"])
    assert listed.text == "a qev dog, a szn cat and a xlo dog"
    with pytest.raises(TaraError, match="names a subject twice"):
        group_prompts(trained, ["xlo+xlo dog"])
    with pytest.raises(TaraError, match="only 1 is given"):
        group_prompts(trained[:1])
    assert joined_names([trained[0].subject]) == "a xlo dog"
