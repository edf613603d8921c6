"""`tara attention`: where each rare word of a prompt attends, and its class word beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tara.cli.generate import FLAGS, Adapters, Device, Order, loaded, order_of, remembering_png, sampling_values
from tara.cli.options import Typed, given, whole_number, with_flags
from tara.cli.progress import only_our_bars, progress
from tara.cli.terminal import say
from tara.errors import TaraError
from tara.inference.provenance import PictureSettings
from tara.report.page import PAGE
from tara.storage.files import atomic_write, check_writable
from tara.storage.lock import claimed

if TYPE_CHECKING:
    from tara.analysis.attention import Attended
    from tara.inference.pipeline import SamplingStep


def _attention(
    prompt: Annotated[str, Parameter(help="What to draw, with each adapter's rare word and class word in it")],
    /,
    *,
    adapter: Adapters = (),
    seed: Annotated[int, Parameter(help="Seed of the picture", converter=whole_number)] = 0,
    out: Annotated[Path, Parameter(help="Folder to write to")] = Path("attention"),
    device: Device = None,
    typed: Typed = "",
    **values: Any,
) -> None:
    """Show where each rare word and its class word attend: `tara attention "a xlo dog" -a rex.safetensors`.

    Adapters of the same two words, such as one trained with the alignment loss and one without, are drawn one above the
    other. The pictures are those of `tara generate` with that seed.
    """
    from tara.analysis.attention_page import AttentionRow, label_of, write_attention

    orders = _orders(prompt, adapter, seed, given(PictureSettings, values, FLAGS))
    check_writable(out)
    with claimed(out):
        rows: list[AttentionRow] = []
        for number, (order, attended) in enumerate(zip(orders, _attended(orders, device), strict=True), 1):
            rows.append(AttentionRow(label_of(attended), f"picture-{number}.png", attended))
            atomic_write(out / rows[-1].file, remembering_png(attended.picture, order))
        write_attention(out, rows, seed=seed, command=typed)
    for row in rows:
        say(row.label)
        for subject, scores in zip(row.attended.subjects, row.attended.scores, strict=True):
            words = f"{subject.active.rare_word} on {subject.active.class_word}"
            say(f"  {words}: alignment {scores.alignment:.3f}, overlap {scores.overlap:.3f}")
    say(f"Look at {out / PAGE}, or at {out / 'sheet.png'}.")


attention = with_flags(_attention, {PictureSettings: FLAGS}, ["Pictures"])


def _orders(prompt: str, adapters: Sequence[str], seed: int, changed: dict[str, Any]) -> list[Order]:
    """One order for each row of adapters; what needs no base to be seen is refused here."""
    from tara.analysis.attention import check_rare_words_are_drawn, class_spans, side_by_side
    from tara.inference.binding import check_named

    if not adapters:
        raise TaraError("There is no adapter whose words could be looked at. Give --adapter rex.safetensors.")
    active_adapters, _ = loaded(adapters)
    check_named(active_adapters)
    named = {id(active): spec for active, spec in zip(active_adapters, adapters, strict=True)}
    rows = [tuple(named[id(active)] for active in row) for row in side_by_side(active_adapters)]
    orders = [order_of(prompt, row, str(seed), None, changed) for row in rows]
    for active in active_adapters:
        class_spans(prompt, active)
    for order in orders:
        check_rare_words_are_drawn(prompt, order.active_adapters, order.settings.composer)
    return orders


def _attended(orders: Sequence[Order], device: str | None) -> list[Attended]:
    """Draw the orders behind a progress bar."""
    from tara.analysis.attention import attend
    from tara.inference.drawing import pipeline_of

    settings = sampling_values(orders[0])
    only_our_bars()
    pipeline = pipeline_of(orders[0].settings, device)
    found: list[Attended] = []
    with progress("Drawing", len(orders)) as advance:

        def on_step(step: SamplingStep) -> None:
            advance(len(found) + step.fraction, "")

        for order in orders:
            found += attend(pipeline, order.prompt, order.active_adapters, order.seeds, on_step=on_step, **settings)
    return found
