"""The card as header keys of other tools: Stability's ``modelspec.*`` and kohya's ``ss_*``."""

import json
from collections.abc import Mapping

from tara.adapters.card import CARD_KEY, AdapterCard
from tara.adapters.formats.peft_config import METADATA_KEY
from tara.families.registry import family_named

_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
_SETTINGS = {
    "batch_size": "ss_batch_size_per_device",
    "gradient_accumulation_steps": "ss_gradient_accumulation_steps",
    "gradient_checkpointing": "ss_gradient_checkpointing",
    "learning_rate": "ss_unet_lr",
    "lr_scheduler": "ss_lr_scheduler",
    "lr_warmup_steps": "ss_lr_warmup_steps",
    "max_grad_norm": "ss_max_grad_norm",
    "precision": "ss_mixed_precision",
    "optimizer": "ss_optimizer",
    "resolution": "ss_resolution",
    "seed": "ss_seed",
    "snr_gamma": "ss_min_snr_gamma",
    "steps": "ss_max_train_steps",
    "trained_steps": "ss_steps",
}


def header_entries(card: AdapterCard, title: str) -> dict[str, str]:
    """The header entries, except those for which the card has no value."""
    trigger = f"{card.rare_word} {card.class_word}".strip()
    predicts = _PREDICTIONS.get(card.settings.get("predicts", ""), "")
    family = family_named(card.family)
    architecture = kohya_base = ""
    if family is not None and family.name == card.family:
        prediction = card.settings.get("predicts", "")
        architecture, kohya_base = (
            names.get(prediction, names[""]) for names in (family.files.architecture, family.files.kohya_base)
        )
    side = card.settings.get("resolution")
    entries = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.architecture": f"{architecture}/lora" if architecture else "",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": predicts,
        "modelspec.resolution": f"{side}x{side}" if side else "",
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": card.phrase,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(card.rank),
        "ss_network_alpha": str(card.alpha),
        "ss_base_model_version": kohya_base,
        "ss_v2": str(kohya_base.startswith("sd_v2")) if kohya_base else "",
        "ss_sd_model_name": card.base,
        "ss_output_name": title,
        # web interfaces offer these words for the prompt
        "ss_tag_frequency": json.dumps({"tara": {trigger: 1}}) if trigger else "",
    }
    for setting, key in _SETTINGS.items():
        if card.settings.get(setting) is not None:
            entries[key] = str(card.settings[setting])
    return {key: value for key, value in entries.items() if value}


_CHANGED = ("ss_network_", "modelspec.trigger_phrase", "modelspec.usage_hint")
_OF_ONE_FILE = ("sshs_", "modelspec.hash_", "format", CARD_KEY, METADATA_KEY)


def with_source(entries: Mapping[str, str], source: Mapping[str, str]) -> dict[str, str]:
    """The header of a converted file: the source's entries, except ranks, alphas, words and hashes, which change."""
    kept = {
        key: value
        for key, value in source.items()
        if not key.startswith(_OF_ONE_FILE) and not (key in entries and key.startswith(_CHANGED))
    }
    return {**entries, **kept}
