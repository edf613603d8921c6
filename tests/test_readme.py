"""What the README tells people to type is there to be typed."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import tara
from tara.cli import app

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "docs", ROOT / "research"]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for folder in FOLDERS for page in sorted(folder.glob("**/*.md"))),
]


def blocks(language: str) -> list[str]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [block for page in PAGES if page.exists() for block in pattern.findall(page.read_text(encoding="utf-8"))]


def shell_lines() -> list[str]:
    joined = [block.replace("\\\n", " ") for block in blocks("(?:bash|sh|console)")]
    return [line.removeprefix("$ ").strip() for block in joined for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("line", [line for line in shell_lines() if re.match(r"(\S*/)?tara\s", line)])
def test_every_tara_command_of_the_pages_is_understood(line: str):
    app.parse_args(shlex.split(line, comments=True)[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("make ")])
def test_every_make_target_of_the_pages_exists(line: str):
    target = shlex.split(line, comments=True)[1]
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in shell_lines() if re.match(r"(\S*/)?python\s+\S+\.py", line)])
def test_every_script_of_the_pages_exists(line: str):
    assert (ROOT / shlex.split(line, comments=True)[1]).is_file()


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_block_of_the_pages_uses_names_that_exist(block: str):
    used = [
        node.attr
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tara"
    ]
    assert [name for name in used if not hasattr(tara, name)] == []


def test_the_first_commands_are_demo_and_test():
    first = [line.split("#")[0].strip() for line in shell_lines() if line.startswith("make ")]
    assert first[:2] == ["make demo", "make test"]


def test_every_image_of_the_pages_is_in_the_repository():
    for page in PAGES:
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        for name in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text) + re.findall(r'<img[^>]*src="([^"]+)"', text):
            if not name.startswith(("http:", "https:")):
                assert (page.parent / name).is_file(), f"{page.name} shows {name}"


def test_the_layers_in_contributing_are_the_import_contract():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    layers = [set(re.findall(r"\w+", layer)) for layer in tools["importlinter"]["contracts"][0]["layers"]]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawing = re.search(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert drawing is not None
    # the folders of a layer come first in its line, two or more spaces before the description
    documented = [set(re.findall(r"\w+", re.split(r" {2,}", line.strip())[0])) for line in drawing[1].splitlines()]
    assert documented == layers
