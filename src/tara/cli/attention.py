"""`tara attention`: attention maps of each rare word and its class word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.options import CommandLine, Overwrite, whole_number, with_options
from tara.cli.requests import Adapters, Device, loaded, pipeline_for, request_from_flags
from tara.cli.terminal import progress, say
from tara.families.settings import BaseSettings
from tara.inference.provenance import png_with_provenance
from tara.inference.settings import GenerationSettings
from tara.report.page import PAGE
from tara.storage.files import atomic_write
from tara.storage.outputs import SHEET, image_name, output_folder

if TYPE_CHECKING:
    from tara.analysis.attention_page import AttentionRow
    from tara.inference.pipeline import DenoisingStep

SCORES = "attention.json"


@with_options({BaseSettings: "Base", GenerationSettings: "Images"})
def attention(
    prompt: Annotated[str, Parameter(help="Prompt, with each adapter's rare word and class word in it")],
    /,
    *,
    adapter: Adapters = (),
    seed: Annotated[int, Parameter(help="Seed of the image", converter=whole_number)] = 0,
    out: Annotated[Path, Parameter(help="Output folder")] = Path("attention"),
    overwrite: Overwrite = False,
    device: Device = None,
    command_line: CommandLine = "",
    **values: Any,
) -> None:
    """Show where each rare word and its class word attend, over the image that `tara generate` makes with that seed.

    Adapters of the same two words, such as one trained with the alignment loss and one without, are shown one above the
    other.
    """
    from tara.analysis.attention import check_words, record_attention, rows_of_alternatives
    from tara.analysis.attention_page import AttentionRow, write_attention

    active, files = loaded(adapter)
    rows = [
        request_from_flags(prompt, [adapter[number] for number in numbers], str(seed), values)
        for numbers in rows_of_alternatives(active) or [()]
    ]
    for row in rows:
        check_words(row.request)
    wanted = rows[0].by_name() | {"adapters": [file.model_dump() for file in files]}
    with output_folder(out, wanted, SHEET, PAGE, SCORES, overwrite=overwrite) as finished:
        if not finished:
            pipeline = pipeline_for(rows[0].base, device)
            shown: list[AttentionRow] = []
            with progress("Generating", len(rows)) as advance:

                def on_step(step: DenoisingStep) -> None:
                    advance(len(shown) + step.fraction, "")

                for number, row in enumerate(rows, 1):
                    (recorded,) = record_attention(pipeline, row.request, on_step)
                    shown.append(AttentionRow(image_name(number, seed), recorded))
                    png = png_with_provenance(recorded.generated.image, row.of_image(seed))
                    atomic_write(out / shown[-1].file, png)
            write_attention(out, shown, seed=seed, command=command_line)
            _print(shown)
    already = "These maps exist already. " if finished else ""
    say(f"{already}Look at {out / PAGE}, or at {out / SHEET}.")


def _print(rows: Sequence[AttentionRow]) -> None:
    for row in rows:
        say(row.label)
        for subject, scores in zip(row.attention.subjects, row.attention.scores, strict=True):
            words = f"{subject.active.rare_word} and {subject.active.class_word}"
            say(f"  {words}: map correlation {scores.map_correlation:.3f}, overlap {scores.overlap:.3f}")
