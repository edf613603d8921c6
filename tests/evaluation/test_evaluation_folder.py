"""`tara evaluate folder` on rendered scenes, whose truth is known."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tara.cli import main
from tara.errors import TaraError
from tara.evaluation.subjects import Picture, Subject, asked_for, read_subjects
from tara.inference.provenance import Origin, png_with_origin
from toyland import world
from toyland.render import render
from toyland.subjects import draw_subjects, reference_pictures

CAT, OTHER_CAT, CAR = draw_subjects(1, ["cat", "cat", "car"])
WORDS = {"xlo": CAT, "szn": OTHER_CAT, "qev": CAR}
PROMPT = "a xlo cat and a qev car on the beach"


def scene(*things: world.Subject, seed: int = 0, background: str = "beach") -> Any:
    return render(world.place(np.random.default_rng(seed), list(things), background=background, seed=seed))


def save(path: Path, image: Any, prompt: str, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_with_origin(image, Origin(prompt=prompt, seed=seed)))
    return path


@pytest.fixture
def photos(here: Path) -> list[str]:
    """The flags that name the subjects' photos."""
    flags: list[str] = []
    for number, (word, subject) in enumerate(WORDS.items()):
        folder = here / "photos" / word
        folder.mkdir(parents=True)
        for index, picture in enumerate(reference_pictures(subject, number, 3)):
            picture.save(folder / f"{index}.png")
        flags += ["-r", f"{rare_word} {subject.class_word}=photos/{rare_word}"]
    return flags


def results(folder: str = "evaluation") -> dict[str, Any]:
    return json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))


def test_right_pictures_succeed_and_swapped_ones_do_not(photos: list[str], here: Path, capsys: Any):
    swapped = world.Subject(class_word="cat", look=CAR.look), world.Subject(class_word="car", look=CAT.look)
    for seed in range(3):
        save(here / "right" / f"{seed}.png", scene(CAT, CAR, seed=seed), PROMPT, seed)
        save(here / "wrong" / f"{seed}.png", scene(*swapped, seed=seed, background="snow"), PROMPT, seed)
    (here / "right" / "sheet.png").write_bytes(b"a sheet has no seed")
    assert main(["evaluate", "folder", "right", "wrong", *photos]) == 0
    found = results()
    right, wrong = found["series"]
    assert (right["name"], right["images"]) == ("right", 3)
    assert right["figures"]["success"] == [1.0, 1.0, 1.0]
    assert right["figures"]["background"][0] == 1.0
    assert right["figures"]["identity"][0] > 0.8
    assert right["figures"]["leakage"][0] == 0.0
    assert right["confusion"] == {"xlo cat": {"xlo cat": 3}, "qev car": {"qev car": 3}}
    assert wrong["figures"]["presence"][0] == 1.0
    assert wrong["figures"]["success"][0] == wrong["figures"]["background"][0] == 0.0
    assert wrong["figures"]["leakage"][0] > 0.3
    assert wrong["confusion"] == {"xlo cat": {"qev car": 3}, "qev car": {"xlo cat": 3}}
    (difference,) = found["differences"]
    assert (difference["first"], difference["second"]) == ("right", "wrong")
    assert difference["figures"]["success"] == [1.0, 1.0, 1.0]
    assert "right, 3 pictures: success 1.00" in capsys.readouterr().out


def test_the_table_has_a_row_for_each_subject_of_each_picture(photos: list[str], here: Path):
    save(here / "out" / "0.png", scene(CAT, seed=1), PROMPT, 0)
    assert main(["evaluate", "folder", "out", *photos, "--out", "scores"]) == 0
    with (here / "scores" / "results.csv").open(newline="", encoding="utf-8") as file:
        there, absent = csv.DictReader(file)
    assert (there["subject"], there["presence"], there["looks_like"]) == ("xlo cat", "1.0", "xlo cat")
    assert (absent["subject"], absent["presence"], absent["identity"]) == ("qev car", "0.0", "")
    assert (absent["identity_absent_zero"], absent["success"], absent["file"]) == ("0.0", "0", "out/0.png")


def test_the_page_shows_pictures_then_figures_then_the_command(photos: list[str], here: Path):
    save(here / "out" / "0.png", scene(CAT, CAR), PROMPT, 0)
    assert main(["evaluate", "folder", "out", *photos]) == 0
    html = (here / "evaluation" / "index.html").read_text(encoding="utf-8")
    assert html.index("<img") < html.index("identity_absent_zero") < html.index("tara evaluate folder out -r")
    assert "://" not in html


def test_pairs_of_one_class_are_told_apart_and_marked(photos: list[str], here: Path):
    save(here / "out" / "0.png", scene(OTHER_CAT, CAT), "a xlo cat and a szn cat on the beach", 0)
    save(here / "out" / "1.png", scene(CAT, CAR), PROMPT, 0)
    assert main(["evaluate", "folder", "out", *photos]) == 0
    (series,) = results()["series"]
    assert series["figures"]["success"][0] == 1.0
    assert [part["name"] for part in series["parts"]] == ["same class", "different classes"]


def test_a_list_names_pictures_that_tell_nothing_themselves(photos: list[str], here: Path, refused: Any):
    scene(CAT, CAR).save(here / "a.png")
    entry = {"file": "a.png", "prompt": "whatever", "subjects": ["xlo cat", "qev car"], "seed": 3}
    (here / "list.json").write_text(json.dumps([entry]), encoding="utf-8")
    assert main(["evaluate", "folder", "list.json", *photos, "--detector", "toyland"]) == 0
    (series,) = results()["series"]
    assert (series["name"], series["figures"]["success"][0]) == ("list", 1.0)
    for wrong, said in (
        ({**entry, "file": "b.png"}, "entry 1: there is no picture b.png"),
        ({**entry, "subjects": ["xlo cot"]}, "Did you mean 'xlo cat'?"),
        ({"file": "a.png"}, "entry 1: 'prompt' is missing"),
        ({**entry, "promt": ""}, "there is no setting 'promt'"),
    ):
        (here / "list.json").write_text(json.dumps([wrong]), encoding="utf-8")
        assert said in refused("evaluate", "folder", "list.json", *photos)
    for text, said in (
        ("[", "is no JSON file"),
        ("{}", "is no list"),
        ("[]", "is no list of pictures"),
    ):
        (here / "list.json").write_text(text, encoding="utf-8")
        assert said in refused("evaluate", "folder", "list.json", *photos)


def test_what_cannot_be_scored_is_refused_with_what_to_do(photos: list[str], here: Path, refused: Any):
    picture = save(here / "out" / "0.png", scene(CAT), "a kib house", 0)
    assert "nothing to score" in refused("evaluate", "folder", *photos)
    assert "no folder 'nowhere'" in refused("evaluate", "folder", "nowhere", *photos)
    assert "should show none of the subjects (xlo cat" in refused("evaluate", "folder", "out", *photos)
    save(picture, scene(CAT), "a xlo cat", 0)
    assert "'xlo' is not WORD=FOLDER" in refused("evaluate", "folder", "out", "-r", "xlo")
    assert "does not say what xlo is" in refused("evaluate", "folder", "out", "-r", "xlo=photos/xlo")
    assert "Two --references are of 'xlo cat'" in refused("evaluate", "folder", "out", *photos[:2], *photos[:2])
    assert "There is no folder nowhere" in refused("evaluate", "folder", "out", "-r", "xlo cat=nowhere")
    assert "The judge sees no duck in photos/xlo" in refused("evaluate", "folder", "out", "-r", "xlo duck=photos/xlo")
    assert "knows no boar. Did you mean 'boat'" in refused("evaluate", "folder", "out", "-r", "xlo boar=photos/xlo")
    assert "--clip has no effect" in refused("evaluate", "folder", "out", *photos, "--clip", "none")
    (here / "photographs").mkdir()
    scene(CAT).save(here / "photographs" / "0.jpg")
    assert "holds no pictures that `tara generate` wrote" in refused("evaluate", "folder", "photographs", *photos)
    scene(CAT).save(picture)
    said = refused("evaluate", "folder", "out", *photos)
    assert "does not tell how it was made" in said
    assert "Pictures from elsewhere need a JSON list" in said
    assert not Path("evaluation").exists()


def test_a_prompt_asks_for_whom_it_names():
    rex, tom, max_ = (
        Subject(rare_word=word, class_word=kind, photos=Path())
        for word, kind in (("sks", "dog"), ("sks", "cat"), ("xlo", "dog"))
    )
    everybody = (rex, tom, max_)
    assert asked_for("a sks dog on a beach", everybody) == (rex,)
    assert asked_for("a sks brown dog and a xlo dog", everybody) == (rex, max_)
    assert asked_for("a cat", everybody) == (tom,)
    assert asked_for("a house", everybody) == ()


def test_a_class_word_comes_from_the_text_the_adapter_or_the_data_sets_table(tmp_path: Path):
    (tmp_path / "prompts_and_classes.txt").write_text("Classes\nsubject_name,class\ndog6,dog\n", encoding="utf-8")
    said, known, table = read_subjects(
        [f"a toy dog={tmp_path}", f"b={tmp_path}", f"c={tmp_path / 'dog6'}"], [("b", "robot")]
    )
    assert (said.class_word, known.class_word, table.class_word) == ("toy dog", "robot", "dog")
    with pytest.raises(TaraError, match="does not say what d is"):
        read_subjects([f"d={tmp_path}"], [("b", "robot")])


def test_a_plain_prompt_names_classes_where_rare_words_stood():
    dog, cat = (Subject(rare_word="sks", class_word=kind, photos=Path()) for kind in ("dog", "cat"))
    for prompt, plain in (
        ("a sks dog and a sks cat", "a dog and a cat"),
        ("a sks cat beside sks", "a cat beside dog"),
    ):
        assert Picture(path=Path(), series="", prompt=prompt, seed=0, subjects=(dog, cat)).plain_prompt == plain
