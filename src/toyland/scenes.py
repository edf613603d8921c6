"""A store of rendered scenes: rendered once, in parallel, kept as one array on disk."""

from __future__ import annotations

import hashlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from toyland.render import SIZE, render
from toyland.world import TRAINING_SCENES, Scene, SceneDistribution, random_scene


def scene_number(seed: int, index: int, distribution: SceneDistribution = TRAINING_SCENES) -> Scene:
    """Scene `index` of the endless series that `seed` and `distribution` name."""
    return random_scene(np.random.default_rng([seed, index]), distribution.counts, small_share=distribution.small_share)


def _render(job: tuple[int, int, int, SceneDistribution]) -> np.ndarray:
    seed, start, stop, distribution = job
    return np.stack([np.asarray(render(scene_number(seed, index, distribution))) for index in range(start, stop)])


def _file_name(seed: int, count: int, distribution: SceneDistribution) -> str:
    """Names of the series; another distribution than the default has its digest in it."""
    digest = hashlib.sha256(repr(distribution).encode()).hexdigest()[:8]
    return f"scenes-{seed}-{count}{'' if distribution == TRAINING_SCENES else '-' + digest}.npy"


def rendered(
    folder: Path, seed: int, count: int, distribution: SceneDistribution = TRAINING_SCENES, workers: int = 2
) -> np.ndarray:
    """Images of the first `count` scenes of a series, uint8 (count, 64, 64, 3), kept in `folder` once rendered."""
    path = folder / _file_name(seed, count, distribution)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(seed, start, min(start + 500, count), distribution) for start in range(0, count, 500)]
        pictures = np.empty((count, SIZE, SIZE, 3), np.uint8)
        with ProcessPoolExecutor(workers) as pool:
            for (_, start, stop, _), chunk in zip(jobs, pool.map(_render, jobs), strict=True):
                pictures[start:stop] = chunk
        partial = path.with_suffix(".partial.npy")
        np.save(partial, pictures)
        partial.replace(path)
    return np.load(path, mmap_mode="r")
