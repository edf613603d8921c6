"""Images that a run generates: previews of its adapters, and missing class images for prior preservation."""

from collections.abc import Callable
from pathlib import Path

from tara.families.base import Base
from tara.inference.pipeline import Pipeline
from tara.storage.file_names import file_name
from tara.storage.files import atomic_write, check_writable
from tara.storage.photo_folders import photo_folders
from tara.training.loop import Training
from tara.training.prompts import class_phrase, preview_prompt
from tara.training.run.folder import RunFolder
from tara.training.settings import Recipe, distinct_names

PREVIEW_STEPS, CLASS_STEPS = 25, 30
OnClassImage = Callable[[int, int], object]
"""Called with the number of class images so far, and the number wanted."""


def lacks_previews(training: Training, folder: RunFolder) -> bool:
    """Whether previews of the step at which a run resumes are missing."""
    present = (folder.previews_of(name).get(training.step, []) for name in distinct_names(training.concepts))
    return training.step > 0 and any(len(images) < training.settings.preview_images for images in present)


def write_previews(training: Training, folder: RunFolder, carry_out_stop: Callable[[], None]) -> None:
    """Generate each concept's previews with its adapter as it is now; a stop is carried out between denoising steps."""
    settings, pipeline = training.settings, Pipeline(training.base)
    names = distinct_names(training.concepts)
    for name, concept, adapter in zip(names, training.concepts, training.adapters(), strict=True):
        generated = pipeline.stream(
            preview_prompt(concept, settings),
            [adapter],
            range(settings.seed, settings.seed + settings.preview_images),
            steps=PREVIEW_STEPS,
            composer="tara" if settings.token_mask else "sum",
            on_step=lambda _: carry_out_stop(),
        )
        for preview in generated:
            target = folder.preview(training.step, name, preview.index)
            atomic_write(target, lambda path, image=preview.image: image.save(path))


def class_folders(recipe: Recipe) -> dict[str, Path]:
    """Each class word's folder of class images; empty when prior preservation changes nothing."""
    if not recipe.settings.uses_class_images:
        return {}
    root = recipe.settings.class_folder or recipe.run_folder / "class"
    class_words = {concept.class_word for concept in recipe.concepts}
    if len(class_words) == 1 and _images(root):
        return dict.fromkeys(class_words, root)
    return {class_word: root / file_name(class_word) for class_word in class_words}


def generate_class_images(recipe: Recipe, base: Base, on_image: OnClassImage | None) -> None:
    """Generate class images until each folder of `class_folders` holds enough. The seed of an image is its number.

    Images that the user has put there count too.

    Raises:
        TaraError: when a folder cannot be written to or the disk is full.
    """
    folders, count = class_folders(recipe), recipe.settings.num_class_images
    for concept in recipe.concepts if folders else ():
        folder = folders[concept.class_word]
        check_writable(folder)
        files = {number: folder / f"class-{number:04d}.png" for number in range(count)}
        present = len(_images(folder))
        missing = [number for number, file in files.items() if not file.exists()][: max(0, count - present)]
        prompt = class_phrase(concept, recipe.settings)
        for generated in Pipeline(base).stream(prompt, seeds=missing, steps=CLASS_STEPS) if missing else ():
            atomic_write(files[generated.seed], lambda path, image=generated.image: image.save(path))
            present += 1
            if on_image is not None:
                on_image(present, count)


def _images(folder: Path) -> list[Path]:
    # a hidden file is no photo: a killed run may have left it half-written
    return [path for listed in photo_folders(folder) for path in listed.photos] if folder.is_dir() else []
