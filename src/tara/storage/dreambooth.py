"""The table of the DreamBooth data set: the class words of its folders, and the prompts for each class."""

import re
from dataclasses import dataclass
from pathlib import Path

from tara.errors import TaraError, nearest

TABLE = "prompts_and_classes.txt"
LIVE_CLASSES = ("cat", "dog")  # class words of the data set's living subjects, which have different prompts
HEADINGS = ("classes", "prompts", "object prompts", "live subject prompts")
PROMPT = re.compile(r"""(['"])(?P<template>.+)\1\.format\(unique_token, class_token\),?""")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One folder's row: its class word, and prompts with ``{rare_word}`` and ``{class_word}``."""

    class_word: str
    prompts: tuple[str, ...]


def subject_of(images: Path) -> Subject | None:
    """The subject of a photo folder, by the table beside it or one folder higher; None when there is none.

    Raises:
        TaraError: when there is a table that cannot be read, or that has no row for the folder.
    """
    folder = images.absolute()
    path, names = folder.parent / TABLE, [folder.name]
    if not path.is_file():
        path, names = folder.parent.parent / TABLE, [folder.name, folder.parent.name]
    if not path.is_file():
        return None
    table = read_table(path)
    for name in names:
        if name in table:
            return table[name]
    raise TaraError(
        f"{path} has no row for the folder '{names[0]}'.{nearest(names[0], table)} "
        "Give the class word (class_word), or add a row to the table."
    )


def read_table(path: Path) -> dict[str, Subject]:
    """Read ``prompts_and_classes.txt``: a row ``subject_name,class`` per folder, then prompts as Python code.

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
            name, _, class_word = (part.strip() for part in line.partition(","))
            if not name or not class_word:
                raise TaraError(f"{path}, line {number}, '{line}', is not 'subject_name,class'. Correct it.")
            classes[name] = class_word
        elif prompt := PROMPT.fullmatch(line):
            template = prompt["template"].replace("{0}", "{rare_word}").replace("{1}", "{class_word}")
            prompts[heading or "prompts"].append(template)
    if not classes:
        raise TaraError(f"{path} names no classes. It needs the line 'Classes' and rows 'subject_name,class' under it.")
    objects, live = (tuple(prompts["prompts"] + prompts[heading]) for heading in HEADINGS[2:])
    return {
        name: Subject(class_word=class_word, prompts=live if class_word in LIVE_CLASSES else objects)
        for name, class_word in classes.items()
    }
