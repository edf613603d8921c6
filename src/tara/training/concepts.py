"""Prepares concepts for training: checks photos, words and base, then encodes images and captions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tara.core.noise import concept_key
from tara.core.tokens import word_spans
from tara.errors import TaraError, warn
from tara.families.base import Base
from tara.families.text import is_common_word
from tara.training.data.crops import Framing
from tara.training.data.encoded import Caption, Latents, TextCache, cache_latents, caption_words, check_resolution
from tara.training.data.examples import Example, read_examples
from tara.training.data.folders import kohya_names
from tara.training.settings import ConceptSettings, TrainSettings

SMALL_SIDE = 0.5  # of the resolution: what is enlarged more has no detail to learn


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingInputs:
    """What `check_inputs` has found to fit together; ``settings`` hold the base's defaults, ``examples`` all photos."""

    concepts: tuple[ConceptSettings, ...]
    settings: TrainSettings
    base: Base
    examples: tuple[tuple[Example, ...], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """Encoded images that a concept is trained with: its photos, or the class images of prior preservation."""

    key: str
    """Names the random numbers of these images, see `tara.core.noise.step_randomness`."""
    latents: tuple[Latents, ...]
    captions: tuple[tuple[Caption, ...], ...]
    """For each image the captions that it is trained with."""


def check_inputs(
    concepts: Sequence[ConceptSettings], settings: TrainSettings, base: Base | Callable[[], Base]
) -> TrainingInputs:
    """Read the photos and check everything that can be wrong with a training, before anything is generated or encoded.

    Warns (TaraWarning) of settings without effect, a rare word that is a common one, and captions that are cut off.

    Args:
        concepts: what to learn; each becomes one adapter.
        settings: how; what they leave out becomes the base's default.
        base: the base, or a function that loads it, which is called once photos and words are right.

    Raises:
        TaraError: for unreadable photos, a caption without its words or too long for them, two concepts of one name or
            file, a base that cannot be trained, and a resolution that does not fit it.
    """
    _check_distinct(concepts)
    if settings.prior_preservation and not settings.uses_class_images:
        warn(
            "Prior preservation has no effect here: with cross_kv targets and the token mask an adapter acts on its "
            "rare word only, which is not in the class prompt. No class images are generated. Leave it out."
        )
    examples = tuple(tuple(_read_photos(concept, settings)) for concept in concepts)
    base = base if isinstance(base, Base) else base()
    settings = settings.with_defaults(base.defaults)
    base.family.check_trainable(base.pipe)
    resolution = settings.resolution or base.resolution
    check_resolution(base, resolution, settings.buckets)
    for concept, photos in zip(concepts, examples, strict=True):
        _advise_on_photos(concept, photos, resolution)
        _check_captions(concept, photos, settings, base)
    return TrainingInputs(concepts=tuple(concepts), settings=settings, base=base, examples=examples)


def class_phrase(concept: ConceptSettings, settings: TrainSettings) -> str:
    """The class images' prompt: the user's own, or the instance prompt without the rare word, ``a photo of a dog``."""
    if settings.class_prompt:
        return concept.fill(settings.class_prompt)
    phrase = concept.phrase
    for first, end in reversed(word_spans(phrase, concept.rare_word)):
        phrase = phrase[:first] + phrase[end:]
    return " ".join(phrase.split())


def encode(inputs: TrainingInputs, class_folders: Mapping[str, Path], texts: TextCache) -> list[list[ImageSource]]:
    """Each concept's photos and then, with prior preservation, its class images; the encoders are not needed after it.

    Raises:
        TaraError: for class images, by class word, that are missing or cannot be read.
    """
    settings = inputs.settings
    framing = Framing(
        resolution=settings.resolution or inputs.base.resolution,
        crops=settings.crops,
        flip=settings.flip,
        buckets=settings.buckets,
        own_sizes=settings.size_conditioning == "crop",
    )

    def source(key: str, concept: ConceptSettings, examples: Sequence[Example], framing: Framing) -> ImageSource:
        words = concept.rare_word, concept.class_word
        latents = [cache_latents(inputs.base, each, framing, settings.background_weight) for each in examples]
        captions = [tuple(texts.caption(text, *words) for text in each.captions) for each in examples]
        order = [number for number, each in enumerate(examples) for _ in range(each.repeats)]
        return ImageSource(
            key=key,
            latents=tuple(latents[number] for number in order),
            captions=tuple(captions[number] for number in order),
        )

    encoded: list[list[ImageSource]] = []
    for concept, photos in zip(inputs.concepts, inputs.examples, strict=True):
        key = concept_key(concept.rare_word, concept.class_word)
        sources = [source(key, concept, photos, framing)]
        if settings.uses_class_images:
            images = _class_images(concept, settings, class_folders)
            sources.append(source(f"{key}\nclass", concept, images, replace(framing, crops=1)))
        encoded.append(sources)
    return encoded


def _class_images(concept: ConceptSettings, settings: TrainSettings, folders: Mapping[str, Path]) -> list[Example]:
    if concept.class_word not in folders:
        raise TaraError(f"Prior preservation needs images of the class '{concept.class_word}'. Give their folder.")
    captions = (class_phrase(concept, settings),)
    return [replace(image, captions=captions) for image in read_examples(folders[concept.class_word], captions)]


def _check_distinct(concepts: Sequence[ConceptSettings]) -> None:
    files, labels = [concept.file.absolute() for concept in concepts], [concept.label for concept in concepts]
    for concept, file in zip(concepts, files, strict=True):
        if files.count(file) > 1:
            raise TaraError(f"Two concepts would write '{concept.file}'. Give each its own out.")
        if labels.count(concept.label) > 1:
            raise TaraError(f"Two concepts are called '{concept.label}'. Give each its own name.")


def _read_photos(concept: ConceptSettings, settings: TrainSettings) -> list[Example]:
    if word_spans(concept.class_word, concept.rare_word):
        raise TaraError(
            f"The rare word '{concept.rare_word}' is in the class word '{concept.class_word}'. Choose another one."
        )
    _check_words(concept, concept.phrase, "The instance prompt", settings)
    examples = read_examples(
        concept.images, concept.captions(settings.captions), masked=settings.masked_loss, masks=concept.masks
    )
    for example in examples:
        for caption in example.captions:
            _check_words(concept, caption, f"The caption of {concept.images / example.name}", settings)
    if settings.masked_loss and all(example.mask is None for example in examples):
        warn(
            f"The masked loss has no effect on '{concept.label}': no photo in {concept.images} has transparent parts. "
            "Give a folder of masks (masks), or leave masked_loss out."
        )
    if concept.masks is not None and not settings.masked_loss:
        warn(f"The masks of '{concept.label}' have no effect without the masked loss. Add masked_loss.")
    _advise_on_names(concept)
    if concept.is_style:
        _advise_on_style(concept, examples, settings)
    return examples


def _advise_on_names(concept: ConceptSettings) -> None:
    """Say what a folder's name in kohya's form, ``10_xlo dog``, means here."""
    names = kohya_names(concept.images)
    if not names:
        return
    words = f"{names[0].rare_word} {names[0].class_word}".strip()
    others = "" if words == concept.words else f"; the adapter acts on '{concept.words}'"
    repeats = ", ".join(str(name.repeats) for name in names)
    warn(
        f"'{concept.images}' is named as for kohya's scripts: rare and class word '{words}'{others}. Its repeats "
        f"({repeats}) only weigh folders against each other; how long training takes is set by --steps."
    )


def _advise_on_photos(concept: ConceptSettings, photos: Sequence[Example], resolution: int) -> None:
    """Say what to expect of a single photo, and of photos that have to be enlarged."""
    if len(photos) == 1:
        warn(
            f"There is one photo of '{concept.label}': images will repeat its pose and background. Give 3 to 5 photos "
            "in different places."
        )
    small = [photo for photo in photos if min(photo.image.size) < SMALL_SIDE * resolution]
    if small:
        width, height = small[0].image.size
        warn(
            f"{len(small)} of {len(photos)} photos of '{concept.label}' are enlarged more than twice to {resolution} "
            f"pixels ({small[0].name} is {width} × {height}): images will be blurred. Give larger photos."
        )


def _advise_on_style(concept: ConceptSettings, examples: Sequence[Example], settings: TrainSettings) -> None:
    # measured by benchmarks/study_toyland.py: a style applies to a subject trained independently only with both
    advice: list[str] = []
    if settings.targets == "cross_kv":
        advice.append("targets attention")
    if len({example.captions for example in examples}) == 1:
        advice.append(f"a caption for each image that describes its content ('a house in the snow in {concept.label}')")
    if advice:
        warn(f"'{concept.label}' is a style, which trains better with {' and '.join(advice)}.")


def _check_words(concept: ConceptSettings, text: str, where: str, settings: TrainSettings) -> None:
    if not word_spans(text, concept.rare_word):
        raise TaraError(f"{where}, '{text}', lacks the rare word '{concept.rare_word}'. Add it.")
    if settings.aligns and not word_spans(text, concept.class_word):
        raise TaraError(
            f"{where}, '{text}', lacks the class word '{concept.class_word}'. Add it, or train with alignment_loss = "
            "'off'."
        )


def _check_captions(concept: ConceptSettings, photos: Sequence[Example], settings: TrainSettings, base: Base) -> None:
    """Check what only the base's tokenizer can tell."""
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
