"""What the study tries: ways to train, and ways to draw with what was trained, one change away from the default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import study_ideas as ideas
from study_ideas import Diptychs, Edit, TiedTraining
from toyland_cast import Member

from tara.demo import SAMPLING_STEPS, SETTINGS
from tara.families.base import Base
from tara.inference.composers import COMPOSERS, Composer
from tara.training.loop import Training
from tara.training.settings import ConceptSettings, TrainSettings

Part = Literal["masks and alignment", "one at a time", "composers", "ideas"]
Material = Callable[[Sequence[Member], Base, Path], list[ConceptSettings]]
"""Makes what the members are learned from, in a folder."""


def own_photos(members: Sequence[Member], backbone: Base, folder: Path) -> list[ConceptSettings]:
    """The members' photos as they are."""
    return [member.concept() for member in members]


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to train all members' adapters; ``changes`` are settings other than the demo's."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    material: Material = own_photos
    training: type[Training] = Training

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that differs from the package's defaults."""
        return {**SETTINGS, **self.changes}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to train with a way to draw.

    ``edit`` gives other keys and values, ``places`` binds subjects to where the default's pictures have them, with that
    strength, ``weight`` is every adapter's, ``described`` subjects are told by their looks in words, without adapters.
    """

    part: Part
    name: str
    way: Way
    composer: str | Composer = "tara"
    edit: Edit | None = None
    places: float | None = None
    weight: float = 1.0
    described: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the adapters of its way are drawn by a composer of the product, and nothing else is changed."""
        changed = self.edit is not None or self.places is not None or self.weight != 1 or self.described
        return isinstance(self.composer, str) and not changed


def _masks_and_alignment() -> list[Variant]:
    """TFM on/off x TAL on/off x targets. Without the mask in training there is none in drawing: adapters are summed."""
    found: list[Variant] = []
    for targets in ("cross_kv", "attention"):
        for token_mask in (True, False):
            for alignment_loss in ("l1", "off"):
                name = f"{targets}, {'masked' if token_mask else 'unmasked'}, alignment {alignment_loss}"
                way = DEFAULT_WAY
                if name != DEFAULT:
                    way = Way(
                        name=name,
                        changes={"targets": targets, "token_mask": token_mask, "alignment_loss": alignment_loss},
                    )
                composer = "tara" if token_mask else "sum"
                found.append(Variant(part="masks and alignment", name=name, way=way, composer=composer))
    return found


def _one_at_a_time() -> list[Variant]:
    changes: dict[str, dict[str, Any]] = {
        "alignment squared": {"alignment_loss": "squared"},
        "alignment weight 0.1": {"alignment_weight": 0.1},
        "alignment weight 10": {"alignment_weight": 10.0},
        "rank 1": {"rank": 1},
        "rank 4": {"rank": 4},
        "rank 16": {"rank": 16},
    }
    return [
        Variant(part="one at a time", name=name, way=Way(name=name, changes=change)) for name, change in changes.items()
    ]


def _composers() -> list[Variant]:
    """TARA's adapters, and plain LoRAs, which the other composers were made for, through every composer."""
    found: list[Variant] = []
    for way in (DEFAULT_WAY, PLAIN_WAY):
        of = "TARA's adapters" if way is DEFAULT_WAY else "plain LoRAs"
        for composer in COMPOSERS:
            if composer == "none" and way is PLAIN_WAY:
                continue  # draws no adapters at all
            found.append(Variant(part="composers", name=f"{of}, {composer}", way=way, composer=composer))
    # what the base can draw of these subjects at best
    return [*found, Variant(part="composers", name="no adapters, described in full", way=DEFAULT_WAY, described=True)]


def _ideas() -> list[Variant]:
    found = [
        *(_idea(f"keys of one class {factor:g} times apart", edit=edit) for factor, edit in ideas.SET_APART.items()),
        *(_idea(f"adapters after {n} of {SAMPLING_STEPS} steps", composer=ideas.delayed(n)) for n in (2, 5)),
        *(_idea(f"bound to true places, strength {strength:g}", places=strength) for strength in (2.0, 6.0)),
        *(_idea(f"adapters at weight {weight:g}", weight=weight) for weight in (0.8, 1.2)),
        _idea("keys tied when drawn", edit=ideas.tie_keys),
        _idea(
            "keys tied",
            way=Way(name="keys tied", changes={"alignment_loss": "off"}, training=TiedTraining),
            edit=ideas.tie_keys,
        ),
    ]
    for diptychs in (
        Diptychs(same_class=False, partner_counts=True),
        Diptychs(same_class=True, partner_counts=True),
        Diptychs(same_class=False, partner_counts=False),
    ):
        partner = "its own class" if diptychs.same_class else "other classes"
        name = f"beside {partner}, {'both halves' if diptychs.partner_counts else 'own half'} counted"
        found.append(_idea(name, way=Way(name=name, changes=diptychs.settings, material=diptychs)))
    return found


def _idea(name: str, **how: Any) -> Variant:
    return Variant(part="ideas", name=name, way=how.pop("way", DEFAULT_WAY), **how)


DEFAULT = "cross_kv, masked, alignment l1"
DEFAULT_WAY = Way(name=DEFAULT)
PLAIN = "cross_kv, unmasked, alignment off"
PLAIN_WAY = Way(name=PLAIN, changes={"targets": "cross_kv", "token_mask": False, "alignment_loss": "off"})
_STANDARD = TrainSettings().model_dump(include={"targets", "token_mask", "alignment_loss", "alignment_weight", "rank"})
assert _STANDARD == {
    "targets": "cross_kv",
    "token_mask": True,
    "alignment_loss": "l1",
    "alignment_weight": 1,
    "rank": 8,
}, "not the default"

STYLE_RATE = 1e-3  # on all attention projections the demo's rate, chosen for `cross_kv`, breaks pictures
STYLE_WAYS: tuple[tuple[Way, bool], ...] = tuple(
    (
        Way(
            name=f"style, {targets}{', captions tell what is shown' if captions else ''}",
            changes={"targets": targets, "learning_rate": STYLE_RATE},
        ),
        captions,
    )
    for targets in ("cross_kv", "attention")
    for captions in (False, True)
)
"""Ways to train a style, with and without captions of what each of its pictures shows."""
VARIANTS: tuple[Variant, ...] = (*_masks_and_alignment(), *_one_at_a_time(), *_composers(), *_ideas())
QUICK: tuple[str, ...] = (
    DEFAULT,
    "cross_kv, masked, alignment off",
    PLAIN,
    "TARA's adapters, sum",
    "plain LoRAs, composite",
    "adapters after 5 of 25 steps",
)
"""Names of the variants of a quick run: three trainings."""
