"""Mistakes of a first hour: each gets the sentence and the exit code that research/newcomer.md lists."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

import tiny_bases
from tara.cli import main
from training_fixtures import photo_folder

PAGE = Path(__file__).parents[1] / "research" / "newcomer.md"
ROW = re.compile(r"\| (\d+) \| (.+?) \| `(.+)` \| (\d+) \| (.+) \|")
ROWS = [match.groups() for line in PAGE.read_text(encoding="utf-8").splitlines() if (match := ROW.fullmatch(line))]
TINY = "--device cpu --steps 2 --base"


@pytest.fixture
def newcomer(trained: Path, base: Path, here: Path) -> Path:
    """A folder as a newcomer has it: photos, two adapters, a base, some generated images."""
    shutil.copytree(base, "tiny")
    for part in ("tokenizer", "vae"):
        shutil.copytree(base, f"no-{part}")
        shutil.rmtree(f"no-{part}/{part}")
    shutil.copytree(trained / "dog", "photos/rex")
    photo_folder(here / "one", photos=1)
    photo_folder(here / "kohya" / "10_xlo dog")
    windows = photo_folder(here / "windows")
    for name in ("Thumbs.db", "desktop.ini", "walk.mp4"):
        (windows / name).touch()
    for name in ("rex", "tom"):
        shutil.copy(trained / f"{name}.safetensors", f"{name}.safetensors")
        shutil.copytree(trained / f"{name}.run", f"{name}.run")
    Path("empty").mkdir()
    Path("notes.txt").write_text("buy milk", encoding="utf-8")
    Path("text.safetensors").write_text("no adapter", encoding="utf-8")
    tiny_bases.sd_pipeline("v_prediction").save_pretrained("other")
    return here


def said_by(typed: str, base: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of a command, and what it says on the error stream, or else the first line that it prints."""
    capsys.readouterr()
    previews = "--preview-every 0 " if typed.startswith("tara train") else ""
    code = main(shlex.split(typed.replace("TINY", f"{previews}{TINY} {base}"))[1:])
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith(("Error: ", "Note: "))]
    return code, lines[-1] if lines else next(iter(shown.out.splitlines()), "")


@pytest.mark.parametrize(("typed", "code", "said"), [row[2:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_mistake_gets_its_sentence(
    typed: str, code: str, said: str, newcomer: Path, base: Path, capsys: pytest.CaptureFixture[str]
):
    assert said_by(typed.replace(r"\|", "|"), base, capsys) == (int(code), said.replace(r"\|", "|"))


def test_forty_mistakes_are_listed_and_numbered():
    assert [int(row[0]) for row in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 40
