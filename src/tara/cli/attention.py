"""`tara attention`: attention maps of each rare word and its class word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.options import Overwrite, Typed, given, whole_number, with_flags
from tara.cli.progress import progress
from tara.cli.requests import Adapters, Asked, Device, asked_for, loaded, pipeline_for
from tara.cli.terminal import say
from tara.families.settings import BaseSettings
from tara.inference.settings import GenerationSettings
from tara.report.page import PAGE
from tara.storage.files import atomic_write
from tara.storage.outputs import SHEET, image_name, output_folder

if TYPE_CHECKING:
    from tara.analysis.attention_page import AttentionRow
    from tara.inference.pipeline import DenoisingStep

SCORES = "attention.json"


def _attention(
    prompt: Annotated[str, Parameter(help="Prompt, with each adapter's rare word and class word in it")],
    /,
    *,
    adapter: Adapters = (),
    seed: Annotated[int, Parameter(help="Seed of the image", converter=whole_number)] = 0,
    out: Annotated[Path, Parameter(help="Output folder")] = Path("attention"),
    overwrite: Overwrite = False,
    device: Device = None,
    typed: Typed = "",
    **values: Any,
) -> None:
    """Show where each rare word and its class word attend, over the image that `tara generate` makes with that seed.

    Adapters of the same two words, such as one trained with the alignment loss and one without, are shown one above the
    other.
    """
    from tara.analysis.attention import alternative_rows, check_words, record_attention
    from tara.analysis.attention_page import AttentionRow, write_attention

    base, settings = given(BaseSettings, values), given(GenerationSettings, values)
    rows: list[Asked] = []
    active, files = loaded(adapter)
    for numbers in alternative_rows(active) or [()]:
        specs = tuple(adapter[number] for number in numbers)
        rows.append(asked_for(prompt, specs, str(seed), None, base, settings))
        check_words(rows[-1].request)
    wanted = rows[0].settings(adapters=[file.model_dump() for file in files])
    with output_folder(out, wanted, SHEET, PAGE, SCORES, overwrite=overwrite) as finished:
        if not finished:
            pipeline = pipeline_for(rows[0].base, device)
            shown: list[AttentionRow] = []
            with progress("Generating", len(rows)) as advance:

                def on_step(step: DenoisingStep) -> None:
                    advance(len(shown) + step.fraction, "")

                for number, asked in enumerate(rows, 1):
                    (attention,) = record_attention(pipeline, asked.request, on_step)
                    shown.append(AttentionRow(image_name(number, seed), attention))
                    atomic_write(out / shown[-1].file, asked.png(attention.generated.image, seed))
            write_attention(out, shown, seed=seed, command=typed)
            _print(shown)
    already = "These very maps exist already. " if finished else ""
    say(f"{already}Look at {out / PAGE}, or at {out / SHEET}.")


def _print(rows: Sequence[AttentionRow]) -> None:
    for row in rows:
        say(row.label)
        for subject, scores in zip(row.attention.subjects, row.attention.scores, strict=True):
            words = f"{subject.active.rare_word} on {subject.active.class_word}"
            say(f"  {words}: alignment {scores.alignment:.3f}, overlap {scores.overlap:.3f}")


attention = with_flags(_attention, {BaseSettings: "Base", GenerationSettings: "Images"})
