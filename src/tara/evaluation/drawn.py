"""Drawing what is to be scored: finished pictures are kept, and a second start draws only the rest."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tara.adapters.formats.peft_config import config_beside
from tara.errors import TaraError
from tara.evaluation.protocols import Scene
from tara.evaluation.subjects import Picture
from tara.inference.binding import find_words
from tara.inference.composers import composer_named
from tara.inference.drawing import drawing_settings, pipeline_of
from tara.inference.provenance import Origin, PictureSettings, png_with_origin, read_origin, used_file
from tara.inference.stock_pipelines import sampling_settings
from tara.storage.file_names import file_name
from tara.storage.files import atomic_write

FOLDER = "pictures"


@dataclass(frozen=True, kw_only=True, eq=False)
class Shot:
    """One picture to be drawn, and where it will lie."""

    scene: Scene
    origin: Origin
    path: Path


def plan(scenes: Sequence[Scene], composers: Sequence[PictureSettings], seeds: Sequence[int], out: Path) -> list[Shot]:
    """Every scene with every seed by every composer, in ``out/pictures/COMPOSER/SUBJECTS``.

    Args:
        scenes: prompts and adapters.
        composers: the settings of drawing, once with each composer.
        seeds: of each prompt.
        out: the evaluation's folder.

    Raises:
        TaraError: when settings do not go together, or a prompt lacks an adapter's word.
    """
    for settings in composers:
        sampling_settings(drawing_settings(settings))  # before the base is loaded, which takes long
        for scene in scenes:
            if not composer_named(settings.composer).everywhere:
                find_words(scene.prompt, [role.active for role in scene.roles])
    return [
        Shot(
            scene=scene,
            origin=_origin(scene, settings, seed),
            path=out / FOLDER / settings.composer / _file_name(scene) / f"{scene.number:02d}-seed-{seed:04d}.png",
        )
        for settings in composers
        for seed in seeds
        for scene in scenes
    ]


def unfinished(shots: Sequence[Shot]) -> list[Shot]:
    """The shots that have no whole picture yet.

    Raises:
        TaraError: when there is a picture that was drawn in another way.
    """
    return [shot for shot in shots if not _is_finished(shot)]


def draw(shots: Sequence[Shot], device: str | None, batch_size: int, tell: Callable[[float, str], object]) -> None:
    """Draw pictures, each written whole when its batch is done; all shots are of one base.

    Args:
        shots: what to draw.
        device: the best one found when None.
        batch_size: pictures drawn together; it does not change them.
        tell: how many are done, for progress bars.

    Raises:
        TaraError: when the base cannot be loaded, or an adapter does not fit it.
    """
    pipeline = pipeline_of(shots[0].origin.settings, device)
    done = 0
    for settings, seed, some in _calls(shots, batch_size):
        stream = pipeline.stream(
            [shot.origin.prompt for shot in some],
            [[role.active for role in shot.scene.roles] for shot in some],
            [seed],
            on_step=lambda step, done=done: tell(done + step.fraction * step.images, ""),
            batch_size=batch_size,
            **drawing_settings(settings),
        )
        for picture in stream:
            shot = some[picture.index]  # prompts come first, and there is one seed
            atomic_write(shot.path, png_with_origin(picture.image, shot.origin))
        done += len(some)


def pictures_of(shots: Sequence[Shot]) -> list[Picture]:
    """The shots as pictures to be scored."""
    return [
        Picture(
            path=shot.path,
            series=shot.origin.settings.composer,
            prompt=shot.origin.prompt,
            seed=shot.origin.seed,
            subjects=shot.scene.subjects,
            part=shot.scene.part,
        )
        for shot in shots
    ]


def _calls(shots: Sequence[Shot], size: int) -> Iterator[tuple[PictureSettings, int, list[Shot]]]:
    """Shots of the same settings and seed, which one call of a studio draws.

    A call makes ready what all its shots need before it draws the first: a merge for each group of subjects, as large
    as the layers that it changes. So it takes no more shots than are drawn together.
    """
    found: dict[tuple[str, int], list[Shot]] = {}
    for shot in shots:
        found.setdefault((shot.origin.settings.composer, shot.origin.seed), []).append(shot)
    for (_, seed), some in found.items():
        for start in range(0, len(some), size):
            yield some[0].origin.settings, seed, some[start : start + size]


def _origin(scene: Scene, settings: PictureSettings, seed: int) -> Origin:
    files = tuple(role.file for role in scene.roles)
    scales = [path for file in files if (path := config_beside(Path(file.path)))]
    inputs = tuple(used_file(path) for path in scales)
    return Origin(prompt=scene.prompt, seed=seed, adapters=files, inputs=inputs, settings=settings)


def _is_finished(shot: Shot) -> bool:
    if not shot.path.exists():
        return False
    try:
        there = read_origin(shot.path)
    except TaraError:
        return False  # damaged since: drawn anew
    if there.model_copy(update={"tara_version": shot.origin.tara_version}) != shot.origin:
        raise TaraError(
            f"'{shot.path}' was drawn with another prompt, adapter or setting. Choose another --out, or delete the "
            "pictures there."
        )
    return True


def _file_name(scene: Scene) -> str:
    return file_name("+".join(subject.name for subject in scene.subjects))
