"""Reads recipes: a TOML file with concepts, or the folder of an earlier run."""

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from tara.errors import TaraError
from tara.families.base_names import INDEX, SHORT_NAMES
from tara.storage.files import digest, is_there, small_text
from tara.storage.outputs import SETTINGS
from tara.storage.photo_folders import photo_folders
from tara.storage.validation import build
from tara.training.concept_settings import ConceptSettings
from tara.training.settings import BASE_DEFAULTS, Recipe, TrainSettings

RUN_SETTINGS = SETTINGS  # a recipe in a run folder
WITHOUT_EFFECT = {"device", "threads", "checkpoint_every"}  # neither on the adapter nor on the files of a run
MOST_TOML = 2**16  # bytes; the parser's time grows with the square of the number of a key's parts
PATHS = ("images", "masks", "out", "class_folder")
NAMES_OR_PATHS = ("base", "vae")


class _Tables(BaseModel, extra="forbid"):
    """A recipe as files hold it."""

    settings: dict[str, Any] = {}
    concept: list[dict[str, Any]] = Field(min_length=1, description="a [[concept]] table for each adapter to train")
    asked: dict[str, Any] = {}


def read_recipe(path: Path, **overrides: Any) -> Recipe:
    """Read a TOML file with a ``[settings]`` table and one ``[[concept]]`` table per concept, or a run folder.

    Relative paths start at the file's folder. ``overrides`` (command-line flags) take precedence over ``[settings]``.
    A run folder (``rex.run``) gives the recipe that the run was started with, to be resumed.

    Raises:
        TaraError: when the file is missing, is not TOML, or holds an unknown or impossible setting.
    """
    if path.is_dir():
        return _moved(_built(path / RUN_SETTINGS, _read_run(path), _from_here, overrides), path)
    if path.suffix != ".toml" and path.exists():
        raise TaraError(f"{path} is not a recipe. Give a .toml file with concepts, or a run folder such as rex.run.")
    return _built(path, _read_toml(path), path.parent.joinpath, overrides)


def recipe_json(recipe: Recipe, asked: Mapping[str, Any]) -> str:
    """The recipe as JSON for a run folder. Paths are absolute, because a run may be resumed from another folder.

    ``asked`` is the result of `comparable` for the recipe without the base's defaults.
    """
    concepts = [concept.model_dump(mode="json") | {"out": str(concept.file)} for concept in recipe.concepts]
    tables = {
        "settings": _relocated(recipe.settings.model_dump(mode="json"), Path.absolute),
        "concept": [_relocated(table, Path.absolute) for table in concepts],
        "asked": asked,
    }
    return json.dumps(tables, indent=2, ensure_ascii=False, default=str) + "\n"


def comparable(recipe: Recipe) -> dict[str, Any]:
    """Everything that the adapters of a recipe depend on, by name. None means that the base's default applies.

    Photos and masks count by their content, so that a folder may be moved.
    """
    settings = recipe.settings.model_dump(mode="json", exclude=WITHOUT_EFFECT)
    places = {name: Path(settings[name]) for name in NAMES_OR_PATHS if settings[name]}
    settings |= {name: str(place.absolute()) for name, place in places.items() if is_there(place)}
    settings |= {name: None for name in BASE_DEFAULTS if name not in recipe.settings.model_fields_set}
    concepts = [concept.model_dump(mode="json", exclude={"out"}) for concept in recipe.concepts]
    words: dict[str, Any] = {name: [concept[name] for concept in concepts] for name in concepts[0]}
    folders = {name: [_content(concept[name]) for concept in concepts] for name in ("images", "masks")}
    return settings | words | folders


def earlier_settings(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `comparable` form of the recipe of a run folder; None if the folder has none that can be read.

    A setting of ``asked`` that equals the base's default of that run counts as unchanged.
    """
    try:
        run = _read_run(folder)
        return {
            name: value if value is not None or run["settings"].get(name) != asked.get(name) else asked[name]
            for name, value in dict(run["asked"]).items()
        }
    except (TaraError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _content(folder: str | None) -> list[list[str]] | None:
    """The names and contents of a folder's files that a training depends on."""
    if folder is None or not Path(folder).is_dir():
        return None
    files = [path for listed in photo_folders(Path(folder)) for path in listed.used]
    return sorted([path.relative_to(folder).as_posix(), digest(path)] for path in files) or None


def _built(path: Path, values: Any, change: Callable[[Path], Path], overrides: dict[str, Any]) -> Recipe:
    tables = build(_Tables, values, f"{path}: ")
    concepts = [
        build(ConceptSettings, _relocated(table, change), f"{path} [[concept]] {number}: ")
        for number, table in enumerate(tables.concept, 1)
    ]
    settings = build(TrainSettings, _relocated(tables.settings, change) | overrides, f"{path} [settings]: ")
    return Recipe(settings=settings, concepts=tuple(concepts))


def _moved(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of a run folder that may have been moved, together with the files that the run writes beside it."""
    written, home = recipe.run_folder, folder.absolute().parent
    if written.name != folder.absolute().name:
        raise TaraError(
            f"'{folder}' holds the run of '{written.name}', which would go on in a folder of that name, not here. Call "
            f"it '{written.name}' again; a copy goes into another folder under that name."
        )
    concepts = [
        concept.model_copy(update={"out": _from_here(home / concept.file.name)})
        if concept.file.parent == written.parent
        else concept
        for concept in recipe.concepts
    ]
    return recipe.model_copy(update={"concepts": tuple(concepts)})


def _read_run(folder: Path) -> Any:
    try:
        return json.loads(small_text(folder / RUN_SETTINGS))
    except (OSError, ValueError, RecursionError, TaraError) as failure:
        raise TaraError(
            f"{folder} is not the folder of a training run (it has no readable {RUN_SETTINGS}). "
            "Give a TOML file, or a folder such as rex.run."
        ) from failure


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(small_text(path, MOST_TOML))
    except OSError as failure:
        raise TaraError(f"{path} cannot be read ({failure.strerror}). Give a TOML file with concepts.") from failure
    except UnicodeDecodeError as failure:
        raise TaraError(f"{path} is not a TOML file: it is not UTF-8 text. Save it as UTF-8.") from failure
    except ValueError as failure:
        raise TaraError(f"{path} is not a TOML file: {failure}. Correct that line.") from failure
    except RecursionError as failure:
        raise TaraError(f"{path} nests its values too deeply. Write [settings] and [[concept]] tables.") from failure


def _relocated(table: Mapping[str, Any], change: Callable[[Path], Path]) -> dict[str, Any]:
    """A table with its paths changed. A base that is no existing path, such as a hub id, is kept."""
    changed: dict[str, Any] = {name: change(Path(table[name])) for name in PATHS if isinstance(table.get(name), str)}
    for name in NAMES_OR_PATHS:
        if isinstance(given := table.get(name), str) and given:
            path = change(Path(given))
            # a folder called sdxl may as well hold what was trained on it
            if is_there(path / INDEX if given in SHORT_NAMES else path):
                changed[name] = str(path)
    return {**table, **changed}


def _from_here(path: Path) -> Path:
    """A path relative to the current folder if it is inside that folder; otherwise unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
