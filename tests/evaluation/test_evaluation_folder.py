"""`tara evaluate folder` on images whose subjects are known."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from known_models import BLUE, GREEN, RED, YELLOW, colour_photos, halves, known_scorer
from tara.cli import main
from tara.errors import TaraError
from tara.evaluation import scorer
from tara.evaluation.folder import adapter_words, find_images
from tara.evaluation.subjects import ImageRecord, Subject, prompted_subjects, read_subjects
from tara.families.settings import BaseSettings
from tara.inference.provenance import Provenance, png_with_provenance, used_file

SUBJECTS = {"xlo dog": RED, "qev cat": BLUE, "szn toy": GREEN, "vrk toy": YELLOW, "kib house": RED}
PROMPT = "a xlo dog and a qev cat on the beach"


def save(path: Path, image: Image.Image, prompt: str, seed: int, **provenance: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Provenance(prompt=prompt, seed=seed, base=BaseSettings(base="tiny"), **provenance)
    path.write_bytes(png_with_provenance(image, made))
    return path


@pytest.fixture
def photos(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flags that name the subjects' photos; models with known answers take the place of real ones."""
    monkeypatch.setattr(scorer, "load_scorer", lambda settings, subjects, cache: known_scorer(subjects, cache))
    flags: list[str] = []
    for name, colour in SUBJECTS.items():
        folder = colour_photos(Path("photos") / name.split()[0], colour)
        flags += ["-r", f"{name}={folder}"]
    return flags


def results(folder: str = "evaluation") -> dict[str, Any]:
    return json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))


def test_right_images_succeed_and_swapped_ones_do_not(photos: list[str], here: Path, capsys: Any):
    for seed in range(3):
        save(here / "right" / f"{seed}.png", halves(RED, BLUE), PROMPT, seed)
        save(here / "wrong" / f"{seed}.png", halves(BLUE, RED), PROMPT, seed)
    (here / "right" / "sheet.png").write_bytes(b"a sheet has no seed")
    assert main(["evaluate", "folder", "right", "wrong", *photos]) == 0
    found = results()
    right, wrong = found["series"]
    assert (right["name"], right["count"]) == ("right", 3)
    assert right["metrics"]["success"] == [1.0, None, None]
    assert right["metrics"]["identity"][0] > 0.8
    assert right["metrics"]["leakage"][0] == 0.0
    assert right["confusion"] == {"xlo dog": {"xlo dog": 3}, "qev cat": {"qev cat": 3}}
    assert wrong["metrics"]["presence"][0] == 1.0
    assert wrong["metrics"]["success"][0] == 0.0
    assert wrong["metrics"]["leakage"][0] > 0.3
    assert wrong["confusion"] == {"xlo dog": {"qev cat": 3}, "qev cat": {"xlo dog": 3}}
    (difference,) = found["differences"]
    assert (difference["first"], difference["second"]) == ("right", "wrong")
    assert difference["metrics"]["success"] == [1.0, None, None]
    assert "right, 3 images: success 1.00" in capsys.readouterr().out


def test_the_table_has_a_row_for_each_subject_of_each_image(photos: list[str], here: Path):
    save(here / "out" / "0.png", halves(RED, BLUE), "a xlo dog and a kib house", 0)
    assert main(["evaluate", "folder", "out", *photos, "--out", "scores"]) == 0
    with (here / "scores" / "results.csv").open(newline="", encoding="utf-8") as file:
        present, absent = csv.DictReader(file)
    assert (present["subject"], present["presence"], present["most_similar"]) == ("xlo dog", "1.0", "xlo dog")
    assert (absent["subject"], absent["presence"], absent["identity"]) == ("kib house", "0.0", "")
    assert (absent["identity_absent_zero"], absent["success"], absent["file"]) == ("0.0", "False", "out/0.png")


def test_the_page_shows_images_then_metrics_then_the_command(photos: list[str], here: Path):
    save(here / "out" / "0.png", halves(RED, BLUE), PROMPT, 0)
    assert main(["evaluate", "folder", "out", *photos]) == 0
    html = (here / "evaluation" / "index.html").read_text(encoding="utf-8")
    assert html.count("<img") == 2  # the subjects' photos beside the image
    assert (
        html.index(">photos<")
        < html.index(PROMPT)
        < html.index("<img")
        < html.index("identity_absent_zero")
        < html.index("tara evaluate folder out -r")
    )
    assert "://" not in html


def test_pairs_of_one_class_are_distinguished_and_reported_separately(photos: list[str], here: Path):
    save(here / "out" / "0.png", halves(YELLOW, GREEN), "a szn toy and a vrk toy on the beach", 0)
    save(here / "out" / "1.png", halves(RED, BLUE), PROMPT, 0)
    assert main(["evaluate", "folder", "out", *photos]) == 0
    (series,) = results()["series"]
    assert series["metrics"]["success"][0] == 1.0
    assert [category["name"] for category in series["categories"]] == ["same class", "different classes"]


def test_a_list_names_images_without_provenance(photos: list[str], here: Path, refused: Any):
    halves(RED, BLUE).save(here / "a.png")
    entry = {"file": "a.png", "prompt": "whatever", "subjects": ["xlo dog", "qev cat"], "seed": 3}
    (here / "list.json").write_text(json.dumps([entry]), encoding="utf-8")
    assert main(["evaluate", "folder", "list.json", *photos]) == 0
    (series,) = results()["series"]
    assert (series["name"], series["metrics"]["success"][0]) == ("list", 1.0)
    for wrong, said in (
        ({**entry, "file": "b.png"}, "entry 1: there is no image b.png"),
        ({**entry, "subjects": ["xlo dgo"]}, "Did you mean 'xlo dog'?"),
        ({"file": "a.png"}, "entry 1: 'prompt' is missing"),
        ({**entry, "promt": ""}, "there is no setting 'promt'"),
    ):
        (here / "list.json").write_text(json.dumps([wrong]), encoding="utf-8")
        assert said in refused("evaluate", "folder", "list.json", *photos)
    for text, said in (
        ("[", "is not a JSON file"),
        ("{}", "is not a list"),
        ("[]", "is not a list of images"),
    ):
        (here / "list.json").write_text(text, encoding="utf-8")
        assert said in refused("evaluate", "folder", "list.json", *photos)


def test_what_cannot_be_scored_is_refused_with_what_to_do(photos: list[str], here: Path, refused: Any):
    image = save(here / "out" / "0.png", halves(RED, BLUE), "a red car", 0)
    assert "nothing to score" in refused("evaluate", "folder", *photos)
    assert "no folder 'nowhere'" in refused("evaluate", "folder", "nowhere", *photos)
    assert "names none of the subjects (xlo dog" in refused("evaluate", "folder", "out", *photos)
    save(image, halves(RED, BLUE), "a xlo dog", 0)
    assert "'xlo' is not RARE_WORD=FOLDER" in refused("evaluate", "folder", "out", "-r", "xlo")
    assert "has no class word" in refused("evaluate", "folder", "out", "-r", "xlo=photos/xlo")
    assert "Two --references are for 'xlo dog'" in refused("evaluate", "folder", "out", *photos[:2], *photos[:2])
    assert "There is no folder nowhere" in refused("evaluate", "folder", "out", "-r", "xlo dog=nowhere")
    (here / "photographs").mkdir()
    halves(RED, BLUE).save(here / "photographs" / "0.jpg")
    assert "has no images that `tara generate` wrote" in refused("evaluate", "folder", "photographs", *photos)
    halves(RED, BLUE).save(image)
    said = refused("evaluate", "folder", "out", *photos)
    assert "does not store how it was generated" in said
    assert "Images of other tools need a JSON list" in said
    assert not Path("evaluation").exists()


def test_the_adapters_of_an_image_name_its_class_words_as_long_as_they_exist(trained: Path, here: Path):
    adapter = used_file(trained / "rex.safetensors")
    lost = adapter.model_copy(update={"given": "gone.safetensors", "path": "gone.safetensors", "sha256": "0"})
    save(here / "out" / "0.png", halves(RED, BLUE), "a xlo dog", 0, adapters=(adapter, lost))
    assert adapter_words(find_images([here / "out"])) == [("xlo", "dog")]


def test_a_prompt_names_its_subjects():
    rex, tom, max_ = (
        Subject(rare_word=word, class_word=class_word, photos=Path())
        for word, class_word in (("sks", "dog"), ("sks", "cat"), ("xlo", "dog"))
    )
    subjects = (rex, tom, max_)
    assert prompted_subjects("a sks dog on a beach", subjects) == (rex,)
    assert prompted_subjects("a sks brown dog and a xlo dog", subjects) == (rex, max_)
    assert prompted_subjects("a cat", subjects) == (tom,)
    assert prompted_subjects("a house", subjects) == ()


def test_a_class_word_comes_from_the_text_the_adapter_or_the_data_sets_table(tmp_path: Path):
    (tmp_path / "prompts_and_classes.txt").write_text("Classes\nsubject_name,class\ndog6,dog\n", encoding="utf-8")
    said, known, table = read_subjects(
        [f"a toy dog={tmp_path}", f"b={tmp_path}", f"c={tmp_path / 'dog6'}"], [("b", "robot")]
    )
    assert (said.class_word, known.class_word, table.class_word) == ("toy dog", "robot", "dog")
    with pytest.raises(TaraError, match="'d dog="):
        read_subjects([f"d={tmp_path}"], [("b", "robot")])


def test_a_plain_prompt_names_classes_where_rare_words_stood():
    dog, cat = (Subject(rare_word="sks", class_word=class_word, photos=Path()) for class_word in ("dog", "cat"))
    for prompt, plain in (
        ("a sks dog and a sks cat", "a dog and a cat"),
        ("a sks cat beside sks", "a cat beside dog"),
    ):
        assert ImageRecord(path=Path(), series="", prompt=prompt, seed=0, subjects=(dog, cat)).plain_prompt == plain
