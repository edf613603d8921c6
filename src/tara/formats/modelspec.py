"""A card in the header keys that other tools show: Stability's ``modelspec.*`` and kohya's ``ss_*``."""

import json

from tara.card import AdapterCard

# what the two vocabularies call a family of bases
_ARCHITECTURES = {
    "sd1": ("stable-diffusion-v1", "sd_v1"),
    "sd2": ("stable-diffusion-v2-512", "sd_v2"),
    "sdxl": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
}
_SETTINGS = {
    "learning_rate": "ss_unet_lr",
    "steps": "ss_max_train_steps",
    "resolution": "ss_resolution",
    "seed": "ss_seed",
}


def described(card: AdapterCard, title: str) -> dict[str, str]:
    """The header entries, without those that the card has nothing to say for."""
    trigger = f"{card.rare_word} {card.class_word}".strip()
    architecture, kohya_base = _ARCHITECTURES.get(card.family, ("", ""))
    entries = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.architecture": f"{architecture}/lora" if architecture else "",
        "modelspec.implementation": "diffusers",
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": card.phrase,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(card.rank),
        "ss_network_alpha": str(card.alpha),
        "ss_base_model_version": kohya_base,
        "ss_sd_model_name": card.base,
        "ss_output_name": title,
        # web interfaces offer these words for the prompt
        "ss_tag_frequency": json.dumps({"tara": {trigger: 1}}) if trigger else "",
    }
    for setting, key in _SETTINGS.items():
        if card.settings.get(setting) is not None:
            entries[key] = str(card.settings[setting])
    return {key: value for key, value in entries.items() if value}
