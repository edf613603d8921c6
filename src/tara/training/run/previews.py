"""Images of the concepts on the way, and the checks of their prompt."""

from tara.core.tokens import word_spans
from tara.errors import TaraError
from tara.inference.pipeline import Pipeline
from tara.storage.files import atomic_write
from tara.training.loop import Training
from tara.training.run.folder import RunFolder
from tara.training.run.interrupts import StopRequest
from tara.training.settings import Recipe, distinct_names

STEPS = 25


def check_previews(recipe: Recipe) -> None:
    """Refuse (TaraError) a preview prompt without a concept's rare word."""
    prompt = recipe.settings.preview_prompt
    if not recipe.settings.preview_every or prompt is None:
        return
    for concept in recipe.concepts:
        if not word_spans(concept.fill(prompt), concept.rare_word):
            raise TaraError(
                f"preview_prompt '{prompt}' lacks the rare word '{concept.rare_word}'. Write {{rare_word}} "
                "{class_word} into it."
            )


def write_previews(training: Training, folder: RunFolder, stop: StopRequest) -> None:
    """Generate each concept's previews with its adapter as it is now; a stop is carried out between denoising steps."""
    settings, pipeline = training.settings, Pipeline(training.base)
    names = distinct_names(training.concepts)
    for name, concept, adapter in zip(names, training.concepts, training.adapters(), strict=True):
        made = pipeline.stream(
            concept.fill(settings.preview_prompt or concept.phrase),
            [adapter],
            range(settings.seed, settings.seed + settings.preview_images),
            steps=STEPS,
            composer="tara" if settings.token_mask else "sum",
            on_step=lambda _: stop.carry_out(),
        )
        for one in made:
            target = folder.preview(training.step, name, one.index)
            atomic_write(target, lambda path, image=one.image: image.save(path))
