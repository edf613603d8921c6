"""Two calls side by side: they take turns at every block, and an exception in one is raised."""

from types import ModuleType

import pytest
import torch


class Blocks(torch.nn.Module):
    """Writes down whose turn it is, block after block."""

    def __init__(self, benchmark: ModuleType, count: int) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(benchmark.FeedForward(4) for _ in range(count))
        self.journal: list[str] = []

    def work(self, name: str) -> None:
        self.journal.append(name)
        for part in self.parts:
            part(torch.zeros(1, 4))
            self.journal.append(name)


@pytest.mark.parametrize(("leader", "turns"), [(0, "abababbb"), (1, "babababb")])
def test_two_calls_take_turns_at_every_block(benchmark: ModuleType, leader: int, turns: str):
    short, long = Blocks(benchmark, 2), Blocks(benchmark, 4)
    long.journal = short.journal
    seconds = benchmark.side_by_side(lambda: short.work("a"), lambda: long.work("b"), [short, long], leader=leader)
    assert "".join(short.journal) == turns
    assert min(seconds) > 0
    for model in (short, long):
        model.work("c")  # the hooks are gone: they work in the two threads only


@pytest.mark.parametrize("leader", [0, 1])
def test_a_call_that_fails_lets_the_other_one_end(benchmark: ModuleType, leader: int):
    model = Blocks(benchmark, 3)
    with pytest.raises(ZeroDivisionError):
        benchmark.side_by_side(lambda: model.work("a"), lambda: 1 / 0, [model], leader=leader)
    assert model.journal == ["a"] * 4
