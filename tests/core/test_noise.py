"""Random choices of training: functions of seed, concept and network call, and of the distributions they claim."""

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tara.core.noise import StepRandomness, concept_key, generator_for, step_randomness

KEY = concept_key("xlo", "dog")
SQUARE, WIDE, DOT = (4, 6, 6), (4, 4, 9), (1, 1, 1)


def choices(call: int = 0, *, seed: int = 0, key: str = KEY, **options: Any) -> StepRandomness:
    given: dict[str, Any] = {"rows": 4, "shapes": [SQUARE] * 3, "variants": 5, "timesteps": 1000}
    return step_randomness(seed, key, call, **(given | options))


def values(chosen: StepRandomness) -> list[Any]:
    """Everything that was chosen, as plain numbers."""
    tensors = (chosen.timesteps, *chosen.posterior_noise, *chosen.noise)
    return [chosen.photos, chosen.variants, chosen.captions, *(tensor.tolist() for tensor in tensors)]


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 3))
def test_every_photo_comes_once_before_any_comes_again(photos: int, rows: int, seed: int) -> None:
    calls = range(2 * photos)  # rows * 2 epochs in all
    order = [one for call in calls for one in choices(call, seed=seed, rows=rows, shapes=[SQUARE] * photos).photos]
    for epoch in range(2 * rows):
        assert sorted(order[epoch * photos : (epoch + 1) * photos]) == list(range(photos))


def test_the_order_of_photos_is_shuffled_anew_in_each_epoch() -> None:
    epochs = {choices(call, rows=8, shapes=[SQUARE] * 8).photos for call in range(5)}
    assert len(epochs) == 5


def test_a_generator_is_seeded_by_the_hash_of_seed_and_parts() -> None:
    # the formula by hand: the numbers are then the same in another process, on another machine
    number = int(hashlib.sha256(b"7\0xlo\ndog\0call\0" + b"3").hexdigest()[:14], 16)
    expected = torch.randn(5, generator=torch.Generator().manual_seed(number))
    assert torch.equal(torch.randn(5, generator=generator_for(7, "xlo\ndog", "call", 3)), expected)


def test_the_numbers_depend_on_seed_concept_and_call_alone() -> None:
    first = values(choices(3, seed=1))
    torch.manual_seed(99)
    assert values(choices(3, seed=1)) == first
    others = [choices(4, seed=1), choices(3, seed=2), choices(3, seed=1, key=concept_key("szn", "cat"))]
    for other in map(values, others):
        assert other[2:] != first[2:]
        assert other[-1] != first[-1]


def test_a_concepts_numbers_are_those_of_its_words_in_any_case() -> None:
    assert concept_key("XLO", "Dog") == concept_key("xlo", "dog")
    assert len({concept_key("xlo", "dog"), concept_key("xlo", "cat"), concept_key("szn", "dog")}) == 3


def test_timesteps_are_uniform() -> None:
    counts = Counter(choices(rows=10_000, shapes=[DOT], timesteps=10).timesteps.tolist())
    assert sorted(counts) == list(range(10))
    np.testing.assert_allclose([counts[one] for one in range(10)], 1000, atol=5 * np.sqrt(1000 * 0.9))


def test_captions_are_chosen_by_uniform_numbers_from_0_to_below_1() -> None:
    numbers = np.sort(choices(rows=10_000, shapes=[DOT]).captions)
    assert 0 <= numbers[0] <= numbers[-1] < 1
    # Kolmogorov and Smirnov's distance to the uniform distribution: beyond 2 / sqrt(n) once in a thousand seeds
    assert np.abs(numbers - np.linspace(0, 1, len(numbers))).max() < 2 / np.sqrt(len(numbers))


def test_every_crop_and_flip_is_chosen() -> None:
    assert set(choices(rows=200).variants) == set(range(5))


def test_noise_has_the_shape_of_each_rows_photo_zero_mean_and_unit_variance() -> None:
    shapes = [(4, 60, 60), (4, 40, 90), (4, 60, 60)]
    chosen = choices(rows=3, shapes=shapes)
    for noise in (chosen.noise, chosen.posterior_noise):
        assert [tuple(row.shape) for row in noise] == [shapes[photo] for photo in chosen.photos]
        everything = torch.cat([row.flatten() for row in noise]).double()
        assert float(everything.mean()) == pytest.approx(0, abs=5 / len(everything) ** 0.5)
        assert float(everything.var()) == pytest.approx(1, abs=5 * (2 / len(everything)) ** 0.5)
    everything = torch.stack([row.flatten() for row in (*chosen.noise, *chosen.posterior_noise)])
    assert torch.corrcoef(everything).fill_diagonal_(0).abs().max() < 5 / everything.shape[1] ** 0.5


def test_what_a_row_gets_besides_noise_does_not_depend_on_the_photos_shapes() -> None:
    one, other = (values(choices(shapes=shapes)) for shapes in ([SQUARE] * 3, [SQUARE, WIDE, WIDE]))
    assert one[:4] == other[:4]
