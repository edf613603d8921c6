"""The card of a trained adapter."""

from typing import Any

from tara.adapters.card import AdapterCard
from tara.families.base import Base
from tara.families.base_names import public_name
from tara.families.loading import PRECISIONS
from tara.training.settings import ConceptSettings, TrainSettings

# of this machine and its user, not of the adapter
PRIVATE = {"device", "threads", "class_folder", "report_to", "project", "push_to_hub", "hub_model_id"}


def trained_card(
    concept: ConceptSettings, settings: TrainSettings, base: Base, step: int, processes: int = 1
) -> AdapterCard:
    """What the adapter of a concept says about itself after some steps; an adapter is given away: no private paths."""
    resolved: dict[str, Any] = settings.model_dump(mode="json", exclude=PRIVATE) | {
        "base": public_name(settings.base),
        "vae": None if settings.vae is None else public_name(settings.vae),
        "learning_rate": settings.peak_learning_rate,
        "resolution": settings.resolution or base.resolution,
        "precision": next((name for name, dtype in PRECISIONS.items() if dtype == base.dtype), "auto"),
        "trained_steps": step,
        "predicts": base.noise_schedule.prediction_type,
    }
    if processes > 1:
        resolved["processes"] = processes
    return AdapterCard(
        rare_word=concept.rare_word,
        class_word=concept.class_word,
        family=base.family.name,
        base=resolved["base"],
        rank=settings.rank,
        alpha=settings.rank if settings.alpha is None else settings.alpha,
        targets=settings.targets,
        text_kv=base.family.text_kv,
        phrase=concept.phrase,
        is_style=concept.is_style,
        settings=resolved,
        examples=concept.card_examples,
    )
