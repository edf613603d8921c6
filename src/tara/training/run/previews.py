"""Preview images during training, and the check of their prompt."""

from tara.core.tokens import word_spans
from tara.errors import TaraError
from tara.inference.pipeline import Pipeline
from tara.storage.files import atomic_write
from tara.training.loop import Training
from tara.training.run.folder import RunFolder
from tara.training.run.interrupts import StopRequest
from tara.training.settings import ConceptSettings, Recipe, TrainSettings, distinct_names

STEPS = 25


def check_previews(recipe: Recipe) -> None:
    """Refuse (TaraError) a preview prompt without a concept's rare word."""
    for concept in recipe.concepts if recipe.settings.preview_every else ():
        prompt = preview_prompt(concept, recipe.settings)
        if not word_spans(prompt, concept.rare_word):
            raise TaraError(
                f"preview_prompt '{prompt}' lacks the rare word '{concept.rare_word}'. Write {{rare_word}} "
                "{class_word} into it."
            )


def preview_prompt(concept: ConceptSettings, settings: TrainSettings) -> str:
    """The prompt of a concept's previews."""
    return concept.fill(settings.preview_prompt) if settings.preview_prompt else concept.phrase


def lacks_previews(training: Training, folder: RunFolder) -> bool:
    """Whether a run that goes on has fewer previews of its last step than it should."""
    wanted = training.settings.preview_images
    there = (folder.previews_of(name).get(training.step, []) for name in distinct_names(training.concepts))
    return training.step > 0 and any(len(images) < wanted for images in there)


def write_previews(training: Training, folder: RunFolder, stop: StopRequest) -> None:
    """Generate each concept's previews with its adapter as it is now; a stop is carried out between denoising steps."""
    settings, pipeline = training.settings, Pipeline(training.base)
    names = distinct_names(training.concepts)
    for name, concept, adapter in zip(names, training.concepts, training.adapters(), strict=True):
        generated = pipeline.stream(
            preview_prompt(concept, settings),
            [adapter],
            range(settings.seed, settings.seed + settings.preview_images),
            steps=STEPS,
            composer="tara" if settings.token_mask else "sum",
            on_step=lambda _: stop.carry_out(),
        )
        for one in generated:
            target = folder.preview(training.step, name, one.index)
            atomic_write(target, lambda path, image=one.image: image.save(path))
