"""Reads and checks everything that a training is given, before anything is computed, and writes the adapters' cards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tara.adapters.card import AdapterCard
from tara.core.noise import concept_key, tag_orders
from tara.core.tokens import word_spans
from tara.errors import TaraError, warn
from tara.families.base import Base
from tara.families.base_names import public_name
from tara.families.text import is_common_word
from tara.storage.photo_folders import kohya_names
from tara.storage.photos import Photo, read_photos
from tara.training.concept_settings import ConceptSettings
from tara.training.optimizers import check_optimizer
from tara.training.prompts import class_phrase, preview_prompt
from tara.training.resolved import resolved_values
from tara.training.settings import TrainSettings
from tara.training.text_batch import caption_words

# settings that concern this machine and its user, not the adapter
PRIVATE = {"device", "threads", "class_folder", "report_to", "project", "push_to_hub", "hub_model_id"}
TAG_ORDERS = 16  # orders of each caption's tags; all are encoded before training
SMALL_SIDE = 0.5  # fraction of the resolution; a smaller photo, enlarged, has no detail to learn


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingInputs:
    """Inputs that passed `check_inputs`.

    ``settings`` include the base's defaults; ``photos`` are grouped by concept.
    """

    concepts: tuple[ConceptSettings, ...]
    settings: TrainSettings
    base: Base
    photos: tuple[tuple[Photo, ...], ...]


def check_inputs(
    concepts: Sequence[ConceptSettings], settings: TrainSettings, base: Base | Callable[[], Base]
) -> TrainingInputs:
    """Read the photos and check everything that can be wrong with a training, before anything is generated or encoded.

    Warns (TaraWarning) of settings without effect, a rare word that is a common word, and captions that are truncated.

    Args:
        concepts: what to learn; each becomes one adapter.
        settings: of the run; a value that is None becomes the base's default.
        base: the base, or a function that loads it; it is called after photos and words have been checked.

    Raises:
        TaraError: for unreadable photos, a caption without its words or too long for them, two concepts of one name or
            file, a base that cannot be trained, and a resolution that does not fit it.
    """
    check_optimizer(settings.optimizer)
    if settings.prior_preservation and not settings.uses_class_images:
        warn(
            "Prior preservation has no effect here: with cross_kv targets and the token mask an adapter acts on its "
            "rare word only, which is not in the class prompt. No class images are generated. Leave it out."
        )
    if settings.caption_dropout and settings.acts_on_its_word_only:
        warn(
            "Caption dropout only skips training images here: with cross_kv targets and the token mask an adapter acts "
            "on its rare word only, which an empty caption lacks. Leave it out, or train with targets attention."
        )
    if settings.keep_tags and not settings.shuffle_tags:
        warn("keep_tags has no effect without shuffle_tags. Add it.")
    _check_distinct(concepts)
    for concept in concepts:
        _check_words(concept, settings)
    all_photos = tuple(tuple(_read_photos(concept, settings)) for concept in concepts)
    base = base if isinstance(base, Base) else base()
    settings = settings.with_defaults(base.defaults)
    base.family.check_trainable(base.pipe)
    for concept, photos in zip(concepts, all_photos, strict=True):
        _check_photo_sizes(concept, photos, settings, base)
        _check_captions(concept, photos, settings, base)
    return TrainingInputs(concepts=tuple(concepts), settings=settings, base=base, photos=all_photos)


def trained_card(inputs: TrainingInputs, concept: ConceptSettings, step: int, processes: int) -> AdapterCard:
    """The card of a concept's adapter after ``step`` steps.

    It contains no private paths, because adapters are shared.
    """
    settings, base = inputs.settings, inputs.base
    values = resolved_values(settings, base)
    resolved: dict[str, Any] = {name: value for name, value in values.items() if name not in PRIVATE} | {
        "base": public_name(settings.base),
        "vae": None if settings.vae is None else public_name(settings.vae),
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
        alpha=values["alpha"],
        targets=settings.targets,
        text_kv=base.family.text_kv_paths,
        phrase=concept.phrase,
        is_style=concept.is_style,
        settings=resolved,
        examples=concept.card_examples,
    )


def _check_distinct(concepts: Sequence[ConceptSettings]) -> None:
    files, labels = [concept.file.absolute() for concept in concepts], [concept.label for concept in concepts]
    for concept, file in zip(concepts, files, strict=True):
        if files.count(file) > 1:
            raise TaraError(f"Two concepts would write '{concept.file}'. Give each its own out.")
        if labels.count(concept.label) > 1:
            raise TaraError(f"Two concepts are called '{concept.label}'. Give each its own name.")


def _check_words(concept: ConceptSettings, settings: TrainSettings) -> None:
    if word_spans(concept.class_word, concept.rare_word):
        raise TaraError(
            f"The rare word '{concept.rare_word}' is in the class word '{concept.class_word}'. Choose another one."
        )
    _check_text(concept, concept.phrase, "The instance prompt", settings)
    prompt = preview_prompt(concept, settings)
    if settings.preview_interval and not word_spans(prompt, concept.rare_word):
        raise TaraError(
            f"preview_prompt '{prompt}' lacks the rare word '{concept.rare_word}'. Write {{rare_word}} {{class_word}} "
            "into it."
        )


def _check_text(concept: ConceptSettings, text: str, where: str, settings: TrainSettings) -> None:
    if not word_spans(text, concept.rare_word):
        raise TaraError(f"{where}, '{text}', lacks the rare word '{concept.rare_word}'. Add it.")
    if settings.aligns and not word_spans(text, concept.class_word):
        raise TaraError(
            f"{where}, '{text}', lacks the class word '{concept.class_word}'. Add it, or train with alignment_loss = "
            "'off'."
        )


def _read_photos(concept: ConceptSettings, settings: TrainSettings) -> list[Photo]:
    photos = read_photos(
        concept.images, concept.captions(settings.captions), masked=settings.masked_loss, masks=concept.masks
    )
    if settings.shuffle_tags:
        photos = _with_shuffled_tags(photos, concept, settings)
    for photo in photos:
        for caption in photo.captions:
            _check_text(concept, caption, f"The caption of {concept.images / photo.name}", settings)
    if settings.masked_loss and all(photo.mask is None for photo in photos):
        warn(
            f"The masked loss has no effect on '{concept.label}': no photo in {concept.images} has transparent parts. "
            "Give a folder of masks (masks), or leave masked_loss out."
        )
    if concept.masks is not None and not settings.masked_loss:
        warn(f"The masks of '{concept.label}' have no effect without the masked loss. Add masked_loss.")
    _advise_on_names(concept)
    if concept.is_style:
        _advise_on_style(concept, photos, settings)
    if len(photos) == 1:
        warn(
            f"There is one photo of '{concept.label}': images will repeat its pose and background. Give 3 to 5 photos "
            "in different places."
        )
    return photos


def _with_shuffled_tags(photos: list[Photo], concept: ConceptSettings, settings: TrainSettings) -> list[Photo]:
    """The photos, each with its captions in several orders of their tags."""
    key = concept_key(concept.rare_word, concept.class_word)

    def orders(caption: str) -> tuple[str, ...]:
        return tag_orders(settings.seed, key, caption, kept=settings.keep_tags, count=TAG_ORDERS)

    shuffled = [
        replace(photo, captions=tuple(order for text in photo.captions for order in orders(text))) for photo in photos
    ]
    if all(len(new.captions) == len(photo.captions) for new, photo in zip(shuffled, photos, strict=True)):
        warn(f"shuffle_tags has no effect on '{concept.label}': no caption has two tags between commas to shuffle.")
        return photos
    return shuffled


def _advise_on_names(concept: ConceptSettings) -> None:
    """Say what a folder's name in kohya's form, ``10_xlo dog``, means here."""
    if not (names := kohya_names(concept.images)):
        return
    words = f"{names[0].rare_word} {names[0].class_word}".strip()
    others = "" if words == concept.words else f"; the adapter acts on '{concept.words}'"
    repeats = ", ".join(str(name.repeats) for name in names)
    warn(
        f"'{concept.images}' is named as for kohya's scripts: rare and class word '{words}'{others}. Its repeats "
        f"({repeats}) only weigh folders against each other; how long training takes is set by --steps."
    )


def _advise_on_style(concept: ConceptSettings, photos: Sequence[Photo], settings: TrainSettings) -> None:
    # measured by benchmarks/study_toyland.py: a style applies to a subject trained independently only with both
    advice: list[str] = []
    if settings.targets == "cross_kv":
        advice.append("targets attention")
    if len({photo.captions for photo in photos}) == 1:
        advice.append(f"a caption for each image that describes its content ('a house in the snow in {concept.label}')")
    if advice:
        warn(f"'{concept.label}' is a style, which trains better with {' and '.join(advice)}.")


def _check_photo_sizes(concept: ConceptSettings, photos: Sequence[Photo], settings: TrainSettings, base: Base) -> None:
    resolution = settings.resolution or base.resolution
    multiple = base.side_multiple if settings.buckets else base.vae_scale
    if resolution % multiple:
        what = "with buckets this base" if settings.buckets else "this base's autoencoder"
        raise TaraError(f"resolution = {resolution} is refused: {what} needs a multiple of {multiple}. Choose one.")
    small = [photo for photo in photos if min(photo.image.size) < SMALL_SIDE * resolution]
    if small:
        width, height = small[0].image.size
        warn(
            f"{len(small)} of {len(photos)} photos of '{concept.label}' are enlarged more than twice to {resolution} "
            f"pixels ({small[0].name} is {width} × {height}): images will be blurred. Give larger photos."
        )


def _check_captions(concept: ConceptSettings, photos: Sequence[Photo], settings: TrainSettings, base: Base) -> None:
    """The checks of captions that need the base's tokenizer."""
    if is_common_word(base.pipe, concept.rare_word):
        warn(
            f"'{concept.rare_word}' is a common word: the base has a meaning for it, which the concept has to replace. "
            "A meaningless word such as 'xlo' is better."
        )
    captions = [caption for photo in photos for caption in photo.captions]
    if settings.uses_class_images:
        captions.append(class_phrase(concept, settings))
    for caption in dict.fromkeys(captions):
        tokenized = base.tokenize(caption)
        caption_words(tokenized, concept.rare_word, concept.class_word)
        if tokenized.lost:
            warn(f"A caption is too long for the text encoder; its end is cut off: '{tokenized.lost}'.")
