"""Recipes from files: a TOML file with concepts, or the folder of an earlier run."""

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from tara.errors import TaraError, nearest
from tara.storage.files import is_there, small_text
from tara.storage.hub import base_here
from tara.storage.validation import build
from tara.training.settings import RUN_SETTINGS, ConceptSettings, Recipe, TrainSettings

MOST_TOML = 2**16  # bytes; the parser takes a time that grows with the square of a key's parts


def read_recipe(path: Path, **overrides: Any) -> Recipe:
    """Read a TOML file with a ``[settings]`` table and one ``[[concept]]`` table per concept, or a run folder.

    Relative paths are taken from the file's folder. ``overrides`` (the command line's flags) win over ``[settings]``.
    A run folder (``rex.run``) gives the recipe that the run was started with, to be resumed.

    Raises:
        TaraError: when the file is missing, is not TOML, or holds an unknown or impossible setting.
    """
    if path.is_dir():
        return _read_run(path, overrides)
    if path.suffix != ".toml" and path.exists():
        raise TaraError(f"{path} is no recipe. Give a .toml file with concepts, or a run folder such as rex.run.")
    try:
        tables = tomllib.loads(small_text(path, MOST_TOML))
    except OSError as failure:
        raise TaraError(f"{path} cannot be read ({failure.strerror}). Give a TOML file with concepts.") from failure
    except UnicodeDecodeError as failure:
        raise TaraError(f"{path} is not a TOML file: it holds no text. Give one that is saved as UTF-8.") from failure
    except ValueError as failure:
        raise TaraError(f"{path} is not a TOML file: {failure}. Correct that line.") from failure
    except RecursionError as failure:
        raise TaraError(f"{path} nests its values too deeply. Write [settings] and [[concept]] tables.") from failure
    for table in tables.keys() - {"settings", "concept"}:
        known = nearest(table, ["settings", "concept"])
        raise TaraError(f"{path} has an unknown table '{table}'.{known} Use [settings] and [[concept]].")
    concepts = tables.get("concept", [])
    if not _is_list_of_tables(concepts) or not concepts:
        raise TaraError(f"{path} names no concept. Add a [[concept]] table with images, word and kind.")
    if not isinstance(tables.get("settings", {}), dict):
        raise TaraError(f"{path}: settings is no table. Write [settings] on its own line, and the settings under it.")
    settings = build(TrainSettings, _from_folder(tables.get("settings", {}), path) | overrides, f"{path} [settings]: ")
    built = [
        build(ConceptSettings, _from_folder(table, path), f"{path} [[concept]] {number}: ")
        for number, table in enumerate(concepts, 1)
    ]
    return Recipe(settings=settings, concepts=tuple(built))


def _read_run(folder: Path, overrides: Mapping[str, Any]) -> Recipe:
    path = folder / RUN_SETTINGS
    try:
        values: dict[str, Any] = json.loads(small_text(path))
        values["settings"] |= overrides
    except (OSError, ValueError, KeyError, TypeError, RecursionError, TaraError) as failure:
        raise TaraError(
            f"{folder} is not the folder of a training run (it has no readable {RUN_SETTINGS}). "
            "Give a TOML file, or a folder such as rex.run."
        ) from failure
    recipe = build(Recipe, values, f"{path}: ")
    # the run may have been moved, together with the files that it writes beside itself
    concepts = [
        concept.model_copy(update={"out": folder.absolute().parent / concept.file.name})
        if concept.file.with_name(folder.name) == recipe.run_folder
        else concept
        for concept in recipe.concepts
    ]
    written = recipe.run_folder.name
    if written != folder.absolute().name:
        raise TaraError(
            f"'{folder}' holds the run of '{written}', which would go on in a folder of that name, not here. Call it "
            f"'{written}' again; a copy goes into another folder under that name."
        )
    return with_paths(recipe.model_copy(update={"concepts": tuple(concepts)}), _seen_from_here)


def with_paths(recipe: Recipe, change: Callable[[Path], Path]) -> Recipe:
    """The recipe with every path in it changed; a base's name that is none stays as it is."""

    def changed(owner: BaseModel, *names: str) -> dict[str, Path]:
        return {name: change(path) for name in names if (path := getattr(owner, name)) is not None}

    settings = recipe.settings
    bases = {name: base_here(value) for name in ("base", "vae") if (value := getattr(settings, name)) is not None}
    places = changed(settings, "class_folder") | {name: str(change(path)) for name, path in bases.items() if path}
    concepts = [
        concept.model_copy(update=changed(concept, "images", "masks") | {"out": change(concept.file)})
        for concept in recipe.concepts
    ]
    return Recipe(settings=settings.model_copy(update=places), concepts=tuple(concepts))


def _seen_from_here(path: Path) -> Path:
    """A path as a person would type it: what lies below the current folder, without that folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _from_folder(table: Mapping[str, Any], recipe: Path) -> dict[str, Any]:
    names = [name for name in ("images", "masks", "out", "class_folder") if isinstance(table.get(name), str)]
    paths: dict[str, Any] = {name: recipe.parent / table[name] for name in names}
    for name in ("base", "vae"):
        given = table.get(name)
        if isinstance(given, str) and given and is_there(recipe.parent / given):  # otherwise a name or a hub id
            paths[name] = str(recipe.parent / given)
    return {**table, **paths}


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in cast(list[object], value))
