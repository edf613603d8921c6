"""Text of files and users is shown, and never obeyed: on the terminal, in pages, in the names of files."""

import ast
import os
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hostile_words
from tara.cli import app, main
from tara.cli.examples import EXAMPLES
from tara.cli.terminal import MOST_CHARACTERS, one_line, visible
from tara.report.grid import Table
from tara.report.page import page
from tara.storage.file_names import file_name
from tara.training.concept_settings import ConceptSettings

COMMANDS = Path(__file__).parents[2] / "src" / "tara" / "cli"


@given(st.text())
def test_nothing_that_is_shown_commands_a_terminal(text: str):
    shown = visible(text)
    assert not [one for one in shown if unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\t"]
    assert not set(shown) & set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069")
    assert shown.encode().decode() == shown
    assert len(one_line(text * 3).splitlines()) <= 1


def test_letters_of_every_script_and_emoji_are_shown_as_they_are():
    text = "ein Äffchen, собака, 犬, كلب, כלב, कुत्ता, 🏖️👩‍🎨"
    assert visible(text) == text
    assert visible("a\x1b[2Jb\u202ec\ud800") == "a\\u001b[2Jb\\u202ec\\ud800"
    assert len(one_line("x" * 10**6)) <= MOST_CHARACTERS


@pytest.mark.parametrize("path", sorted(COMMANDS.rglob("*.py")), ids=lambda path: path.name)
def test_commands_print_in_one_place(path: Path):
    if path.name in ("terminal.py", "published.py"):
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert "print" not in [ast.unparse(call.func) for call in calls]


def test_inspect_shows_the_words_of_a_hostile_card_and_obeys_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = hostile_words.adapter(tmp_path / "a.safetensors", "\x1b]0;owned\x07\x9b2J\u202e")
    for more in ([], ["--json"]):
        assert main(["inspect", str(path), *more]) == 0
        said = capsys.readouterr().out
        assert "owned" in said
        assert not set(said) & set("\x1b\x07\x9b\u202e")


@pytest.mark.parametrize("words", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "<svg onload=a>"])
def test_pages_show_text_and_never_markup(words: str):
    table = Table(title=words, headings=[words], rows=[[words]], note=words)
    html = page(title=words, lead=words, grids=[], tables=[table], command=words)
    assert words not in html
    assert html.count("&lt;") >= 5 or html.count("&gt;") >= 5


@given(st.text())
def test_no_name_leads_out_of_its_folder(text: str):
    name = file_name(text)
    path = Path("/some/folder") / f"{name}.safetensors"
    assert path.parent == Path("/some/folder")
    assert name
    assert not name.startswith(".")
    assert not set(name) & set('/\\\0:*?"<>|\n\r\t ')
    assert len(name.encode()) <= 120


@pytest.mark.parametrize("word", ["../../etc/xlo", "..", "/tmp/xlo", "a\\b", ".hidden", "犬", "x" * 500, "🐶"])
def test_an_adapter_is_written_into_the_current_folder_whatever_its_word(word: str):
    file = ConceptSettings(images=Path("a"), rare_word=word, class_word="dog").file
    assert file.parent == Path()
    assert file.name.endswith("dog.safetensors") or len(word) > 100
    assert not file.name.startswith(".")


def test_a_locale_without_letters_is_no_hindrance(tmp_path: Path):
    path = hostile_words.adapter(tmp_path / 'it\'s "Ünder 犬".safetensors', "größe")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tara", "inspect", str(path)], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert "größe".encode() in done.stdout


def test_every_help_opens_with_two_examples_that_are_understood(capsys: pytest.CaptureFixture[str]):
    for command, examples in EXAMPLES.items():
        for example in examples:
            app.parse_args(shlex.split(example)[1:], exit_on_error=False, print_error=False)
        main([*command.split(), "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert all(" ".join(example.split()) in shown.partition("╭")[0] for example in examples), command
