"""A store of rendered scenes: drawn once, in parallel, kept as one array on disk."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from toyland.render import SIZE, render
from toyland.world import Scene, random_scene


def scene_number(seed: int, index: int) -> Scene:
    """Scene `index` of the endless series that `seed` names."""
    return random_scene(np.random.default_rng([seed, index]))


def _draw(job: tuple[int, int, int]) -> np.ndarray:
    seed, start, stop = job
    return np.stack([np.asarray(render(scene_number(seed, index))) for index in range(start, stop)])


def rendered(folder: Path, seed: int, count: int, workers: int = 2) -> np.ndarray:
    """Pictures of the first `count` scenes of a series, uint8 (count, 64, 64, 3), kept in `folder` once drawn."""
    path = folder / f"scenes-{seed}-{count}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(seed, start, min(start + 500, count)) for start in range(0, count, 500)]
        pictures = np.empty((count, SIZE, SIZE, 3), np.uint8)
        with ProcessPoolExecutor(workers) as pool:
            for (_, start, stop), chunk in zip(jobs, pool.map(_draw, jobs), strict=True):
                pictures[start:stop] = chunk
        partial = path.with_suffix(".partial.npy")
        np.save(partial, pictures)
        partial.replace(path)
    return np.load(path, mmap_mode="r")
