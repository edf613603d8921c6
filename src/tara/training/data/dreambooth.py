"""The table of the DreamBooth data set: what its folders show, and the prompts that it asks for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tara.errors import TaraError, nearest

TABLE = "prompts_and_classes.txt"
LIVE_CLASSES = ("cat", "dog")  # the data set's living subjects, which have prompts of their own
HEADINGS = ("classes", "prompts", "object prompts", "live subject prompts")
PROMPT = re.compile(r"""(['"])(?P<template>.+)\1\.format\(unique_token, class_token\),?""")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the table says of one folder: its class word, and prompts with ``{rare_word}`` and ``{class_word}``."""

    class_word: str
    prompts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The whole table: class words by folder, and prompts with ``{rare_word}`` and ``{class_word}``."""

    classes: dict[str, str]
    object_prompts: tuple[str, ...]
    live_prompts: tuple[str, ...]

    def subject(self, name: str) -> Subject:
        """What stands in a folder's row, and the prompts of things or of living subjects with it."""
        class_word = self.classes[name]
        return Subject(
            class_word=class_word, prompts=self.live_prompts if class_word in LIVE_CLASSES else self.object_prompts
        )


def subject_of(images: Path) -> Subject | None:
    """The subject of a photo folder, by the table beside it or one folder higher; None when there is none.

    Raises:
        TaraError: when there is a table that cannot be read, or that does not know the folder.
    """
    folder = images.absolute()
    beside, above = folder.parent / TABLE, folder.parent.parent / TABLE
    if beside.is_file():
        return _row(beside, [folder.name])
    return _row(above, [folder.name, folder.parent.name]) if above.is_file() else None


def read_table(path: Path) -> Table:
    """Read ``prompts_and_classes.txt``: rows ``subject_name,class``, then lists of prompts as Python code.

    Raises:
        TaraError: when it cannot be read, a row has no class, or there are no rows at all.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise TaraError(f"{path} cannot be read as text ({failure}). Save it as UTF-8.") from failure
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    heading = ""
    for number, line in enumerate(map(str.strip, lines), 1):
        if line.lower() in HEADINGS:
            heading = line.lower()
        elif heading == "classes" and line and line != "subject_name,class":
            name, _, kind = (part.strip() for part in line.partition(","))
            if not name or not kind:
                raise TaraError(f"{path}, line {number}, '{line}', is not 'subject_name,class'. Correct it.")
            classes[name] = kind
        elif prompt := PROMPT.fullmatch(line):
            template = prompt["template"].replace("{0}", "{rare_word}").replace("{1}", "{class_word}")
            prompts[heading or "prompts"].append(template)
    if not classes:
        raise TaraError(f"{path} names no classes. It needs the line 'Classes' and rows 'subject_name,class' under it.")
    objects, live = (tuple(prompts["prompts"] + prompts[kind]) for kind in HEADINGS[2:])
    return Table(classes=classes, object_prompts=objects, live_prompts=live)


def _row(path: Path, names: Sequence[str]) -> Subject:
    table = read_table(path)
    for name in names:
        if name in table.classes:
            return table.subject(name)
    raise TaraError(
        f"{path} has no row for the folder '{names[0]}'.{nearest(names[0], table.classes)} "
        "Give the class word yourself (class_word), or add a row to the table."
    )
