"""A concept made ready for training: its photos as latents, its captions as embeddings, its words checked."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tara.core.noise import concept_key
from tara.core.tokens import word_spans
from tara.errors import TaraError, TaraWarning
from tara.families.base import Base
from tara.families.text import is_common_word
from tara.training.data.crops import Framing
from tara.training.data.encoded import Caption, Latents, TextCache, cache_latents, caption_words, check_resolution
from tara.training.data.examples import Example, read_examples
from tara.training.settings import ConceptSettings, TrainSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class PriorMaterial:
    """Pictures of the class, and the training phrase without the rare word."""

    latents: tuple[Latents, ...]
    caption: Caption


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """Everything about one concept that training reads."""

    concept: ConceptSettings
    key: str
    latents: tuple[Latents, ...]
    """One for each photo."""
    captions: tuple[tuple[Caption, ...], ...]
    """For each photo the captions that it is trained with."""
    prior: PriorMaterial | None = None


def prior_acts(settings: TrainSettings) -> bool:
    """Whether class pictures can change anything: without the rare word a masked ``cross_kv`` adapter is silent."""
    masked = settings.token_mask and settings.targets == "cross_kv"
    return settings.prior_preservation and settings.prior_loss_weight > 0 and not masked


def class_phrase(concept: ConceptSettings, settings: TrainSettings) -> str:
    """The class pictures' prompt: the training phrase without the rare word, such as ``a photo of a dog``, or the
    user's own."""
    if settings.class_prompt:
        return concept.fill(settings.class_prompt)
    phrase = concept.phrase
    for first, end in reversed(word_spans(phrase, concept.rare_word)):
        phrase = phrase[:first] + phrase[end:]
    return " ".join(phrase.split())


def check_concepts(concepts: Sequence[ConceptSettings], settings: TrainSettings) -> list[list[Example]]:
    """Read the photos of all concepts and check their words and captions, before anything slow begins.

    Warns (TaraWarning) of settings that have no effect.

    Raises:
        TaraError: for unreadable photos, a caption without its words, or two concepts of one name or file.
    """
    files = [concept.file.absolute() for concept in concepts]
    for concept, file in zip(concepts, files, strict=True):
        if files.count(file) > 1:
            raise TaraError(f"Two concepts would write '{concept.file}'. Give each its own out.")
    labels = [concept.label for concept in concepts]
    for label in labels:
        if labels.count(label) > 1:
            raise TaraError(
                f"Two concepts are called '{label}'. Give each its own name, so that losses can be told apart."
            )
    if settings.prior_preservation and not prior_acts(settings):
        warnings.warn(
            "Prior preservation has no effect here: with cross_kv targets and the token focus mask an adapter acts on "
            "its rare word alone, and the class prompt has none. No class pictures are made. Leave it out.",
            TaraWarning,
            stacklevel=2,
        )
    return [_checked(concept, settings) for concept in concepts]


def check_on_base(
    concepts: Sequence[ConceptSettings],
    examples: Sequence[Sequence[Example]],
    settings: TrainSettings,
    base: Base,
) -> None:
    """Check what only the base can tell, such as the captions' length, before anything is drawn or encoded.

    Warns (TaraWarning) of a rare word that is a common one, and of captions that are cut off.

    Raises:
        TaraError: for a base that cannot be trained, a resolution that does not fit it, or a word behind what its text
            encoder reads.
    """
    base.family.check_trainable(base.pipe)
    check_resolution(base, settings.resolution or base.resolution, settings.buckets)
    for concept, read in zip(concepts, examples, strict=True):
        if is_common_word(base.pipe, concept.rare_word):
            warnings.warn(
                f"'{concept.rare_word}' is a common word: the base has a meaning for it, which the concept has to "
                "replace. A made-up word such as 'xlo' is better.",
                TaraWarning,
                stacklevel=2,
            )
        captions = [caption for example in read for caption in example.captions]
        if prior_acts(settings):
            captions.append(class_phrase(concept, settings))
        for caption in dict.fromkeys(captions):  # one that photos share is looked at once
            tokenized = base.tokenize(caption)
            caption_words(tokenized, concept.rare_word, concept.class_word)
            if tokenized.lost:
                warnings.warn(
                    f"A caption is too long for the text encoder; this end of it is lost: '{tokenized.lost}'.",
                    TaraWarning,
                    stacklevel=2,
                )


def prepare(
    concept: ConceptSettings,
    examples: Sequence[Example],
    settings: TrainSettings,
    base: Base,
    texts: TextCache,
    class_folder: Path | None,
) -> Material:
    """Encode a concept's photos and captions; the autoencoder and the text encoder are not needed after this.

    Raises:
        TaraError: when a caption is too long for its words, or the resolution does not fit the base.
    """
    framing = Framing(
        resolution=settings.resolution or base.resolution,
        crops=settings.crops,
        flip=settings.flip,
        buckets=settings.buckets,
    )
    return Material(
        concept=concept,
        key=concept_key(concept.rare_word, concept.class_word),
        latents=cache_latents(base, examples, framing, settings.background_weight),
        captions=tuple(
            tuple(texts.caption(text, concept.rare_word, concept.class_word) for text in example.captions)
            for example in examples
        ),
        prior=None
        if class_folder is None
        else PriorMaterial(
            latents=cache_latents(
                base,
                read_examples(class_folder, (class_phrase(concept, settings),)),
                replace(framing, crops=1),
            ),
            caption=texts.caption(class_phrase(concept, settings), concept.rare_word, concept.class_word),
        ),
    )


def _checked(concept: ConceptSettings, settings: TrainSettings) -> list[Example]:
    if word_spans(concept.class_word, concept.rare_word):
        raise TaraError(
            f"The rare word '{concept.rare_word}' is in the class word '{concept.class_word}'. Choose another one."
        )
    _check_caption(concept, concept.phrase, "The training phrase", settings)
    examples = read_examples(
        concept.images, concept.templates(settings.captions), masked=settings.masked_loss, masks=concept.masks
    )
    _warn_of_idle_masks(concept, examples, settings)
    if concept.is_style:
        _warn_of_a_style_that_is_hard_to_learn(concept, examples, settings)
    for example in examples:
        for caption in example.captions:
            _check_caption(concept, caption, f"The caption of {concept.images / example.name}", settings)
    return examples


def _warn_of_idle_masks(concept: ConceptSettings, examples: Sequence[Example], settings: TrainSettings) -> None:
    if settings.masked_loss and all(example.mask is None for example in examples):
        warnings.warn(
            f"The masked loss has no effect on '{concept.label}': no photo in {concept.images} has transparent parts. "
            "Give a folder of masks (masks), or leave masked_loss out.",
            TaraWarning,
            stacklevel=4,
        )
    if concept.masks is not None and not settings.masked_loss:
        warnings.warn(
            f"The masks of '{concept.label}' have no effect without the masked loss. Add masked_loss.",
            TaraWarning,
            stacklevel=4,
        )


def _warn_of_a_style_that_is_hard_to_learn(
    concept: ConceptSettings, examples: Sequence[Example], settings: TrainSettings
) -> None:
    # measured by benchmarks/study_toyland.py: only with both does a style meet a subject that was learned apart
    advice: list[str] = []
    if settings.targets == "cross_kv":
        advice.append("targets attention")
    if len({example.captions for example in examples}) == 1:
        advice.append(f"a text beside each picture that says what it shows ('a house in the snow in {concept.label}')")
    if advice:
        warnings.warn(
            f"'{concept.label}' is the look of a whole picture, which is learned better with {' and '.join(advice)}.",
            TaraWarning,
            stacklevel=4,
        )


def _check_caption(concept: ConceptSettings, text: str, where: str, settings: TrainSettings) -> None:
    needed = [("rare", concept.rare_word)]
    if settings.aligns:
        needed.append(("class", concept.class_word))
    for role, word in needed:
        if not word_spans(text, word):
            what_next = "Add it" if role == "rare" else "Add it, or train with alignment_loss = 'off'"
            raise TaraError(f"{where}, '{text}', lacks the {role} word '{word}'. {what_next}.")
