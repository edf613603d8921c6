"""The published inference script's flags to pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tara.cli.terminal import say
from tara.errors import TaraError
from tara.inference.provenance import Origin, PictureSettings, png_with_origin
from tara.storage.validation import build

if TYPE_CHECKING:
    from tara.cli.generate import Order
    from tara.cli.published.script import Given
    from tara.inference.binding import ActiveAdapter

CONTEXT = "prompt"  # the published method takes a rare word's embedding from the prompt itself
BATCH_SIZE = 4


def draw(given: Given) -> None:
    """Draw ``output_image_0.png``, ``output_image_1.png``, ... for the seeds 0, 1, ..."""
    from tara.cli.generate import drawn
    from tara.storage.files import atomic_write
    from tara.storage.lock import claimed

    order, folder = order_of(given), Path(given.text("output_folder"))
    with claimed(folder):
        for picture in drawn(order, BATCH_SIZE, given.text("device") or None):
            origin = Origin(prompt=order.prompt, seed=picture.seed, adapters=order.used, settings=order.settings)
            atomic_write(folder / f"output_image_{picture.seed}.png", png_with_origin(picture.image, origin))
    say(f"{len(order.seeds)} picture{'s' if len(order.seeds) > 1 else ''} in {folder}")


def order_of(given: Given) -> Order:
    """What a command line asks to be drawn, its adapters loaded.

    Raises:
        TaraError: for a list that is none, an adapter that cannot be found or read, and rare words that do not agree.
    """
    from tara.cli.generate import MOST_SEEDS, Order, loaded
    from tara.inference.binding import check_named

    settings = build(PictureSettings, given.settings(PictureSettings) | {"context": CONTEXT}, "inference_tara.py: ")
    number = given.value("number")
    if not 1 <= number <= MOST_SEEDS:
        raise TaraError(f"--number is {number}. Give 1 to {MOST_SEEDS}.")
    entries, words = _names(given, "lora_list"), _names(given, "rare_token_list")
    if words and len(words) != len(entries):
        raise TaraError(
            f"--rare_token_list has {len(words)} words for {len(entries)} adapters. Give one for each, or leave it out."
        )
    prompt = given.text("prompt")
    specs = entries
    if words:
        specs = [_with_word(entry, word, prompt) for entry, word in zip(entries, words, strict=True)]
    active_adapters, used = loaded(specs)
    for active, word in zip(active_adapters, words, strict=False):
        _check_word(active, word)
    check_named(active_adapters)
    return Order(
        prompt=prompt,
        active_adapters=active_adapters,
        used=used,
        inputs=(),
        seeds=tuple(range(number)),
        settings=settings,
    )


def _with_word(spec: str, word: str, prompt: str) -> str:
    """A file that does not say its words gets them from the list and from the prompt."""
    from tara.adapters.formats.reading import lora_file
    from tara.inference.binding import split_options

    name, options = split_options(spec)
    if "rare_word=" in options or _has_card(lora_file(Path(name))):
        return spec
    following = re.search(rf"(?<!\w){re.escape(word)}\s+([^\W\d_]+)", prompt, flags=re.IGNORECASE)
    words = [f"rare_word={rare_word}", *([f"class_word={following[1]}"] if following else [])]
    return f"{spec}{',' if options else ':'}{','.join(words)}"


def _has_card(path: Path) -> bool:
    from tara.adapters.adapter import CARD_KEY
    from tara.storage.safetensors_file import opened

    try:
        with opened(path) as file:
            return CARD_KEY in (file.metadata() or {})
    except (OSError, TaraError):
        return True  # whatever is wrong with the file, its loader tells it better


def _check_word(active: ActiveAdapter, word: str) -> None:
    if active.rare_word.casefold().split() != word.casefold().split():
        raise TaraError(
            f"--rare_token_list says '{rare_word}', but {active.name} listens to '{active.rare_word}'. Correct the list, or leave "
            "it out: the file knows its word."
        )


def _names(given: Given, flag: str) -> list[str]:
    """A list in JSON; one plain name counts as a list of one."""
    text = given.text(flag).strip()
    if not text.startswith("["):
        return [text] if text else []
    try:
        names: object = json.loads(text)
    except json.JSONDecodeError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast(list[object], names)):
        raise TaraError(f'--{flag} {text} is not a list of names. Write it like --{flag}=\'["one", "two"]\'.')
    return cast(list[str], names)
