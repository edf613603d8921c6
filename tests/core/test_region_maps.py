"""Regions: which cells belong to which concept, at any resolution."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tara.core.regions import labels_at, region_labels, region_scores


def _blob(row: float, column: float, side: int = 16, width: float = 3.0) -> torch.Tensor:
    at = torch.arange(side) + 0.5
    return torch.exp(-((at[:, None] - row) ** 2 + (at[None] - column) ** 2) / (2 * width**2))


@given(st.floats(2, 6), st.floats(10, 14), st.floats(0.1, 10))
def test_two_blobs_are_two_regions_whatever_their_strength(first: float, second: float, strength: float) -> None:
    maps = torch.stack([_blob(8, first), strength * _blob(8, second)])
    labels = region_labels(region_scores([maps]))
    assert labels[8, int(first)] == 1
    assert labels[8, int(second)] == 2


def test_every_cell_belongs_to_the_concept_that_attends_to_it_most() -> None:
    maps = torch.stack([_blob(8, 4), _blob(8, 12)])
    labels = region_labels(maps)
    assert torch.equal(labels, torch.tensor([1] * 8 + [2] * 8).expand(16, 16))


def test_maps_of_several_resolutions_count_alike() -> None:
    coarse, fine = torch.rand(2, 4, 4), torch.rand(2, 8, 8)
    torch.testing.assert_close(region_scores([coarse, fine]), region_scores([100 * coarse, 0.01 * fine]))


@given(st.integers(0, 3), st.sampled_from([(4, 4), (8, 8), (16, 16), (32, 32), (5, 9)]))
def test_a_region_of_everything_is_everything_at_any_resolution(label: int, size: tuple[int, int]) -> None:
    assert torch.equal(labels_at(torch.full((16, 16), label), size), torch.full(size, label))


def test_halves_stay_halves_at_any_resolution() -> None:
    for side in (2, 4, 8, 32, 64):
        halves = torch.tensor([1] * 8 + [2] * 8).expand(16, 16)
        expected = torch.tensor([1] * (side // 2) + [2] * (side // 2)).expand(side, side)
        assert torch.equal(labels_at(halves, (side, side)), expected)
