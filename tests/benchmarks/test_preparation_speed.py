"""The speed of preparing on a tiny base: its rows are there, and switching adapters neither writes nor recompiles."""

import json
import subprocess
from types import ModuleType
from typing import Any

import pytest

import tara.inference.pipeline


def test_switching_adapters_writes_no_weight_and_recompiles_nothing(benchmark: ModuleType, family: Any, shape: Any):
    rows = benchmark.measure(family.name, shape, rounds=1, adapters=8)
    assert {row["part"] for row in rows} == {"preparing", "loading", "memory", "switching"}
    (switching,) = [row for row in rows if row["part"] == "switching"]
    assert (switching["weights_changed"], switching["recompilations"]) == (0, 0)
    assert switching["graphs"] >= 1
    (memory,) = [row for row in rows if row["part"] == "memory"]
    assert memory["dense_matrices"] == 0
    assert [one["bound"] for one in benchmark.checks_of(rows)] == [
        "<= 0.01",
        "<= 2",
        *("<= 0.05", "<= 0.05", "<= 0"),
        *("<= 0", "<= 0"),
    ]


def test_commands_are_started_until_their_first_step(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []

    def run(command: list[str], **_: Any) -> None:
        """Instead of new processes: the first start of the second command, in this one."""
        started.append(command)
        if command not in started[:-1] and command[1] == "-c":
            with pytest.raises(FirstStepDone):
                run_until_first_step(command[2], command[3])

    def run_until_first_step(code: str, arguments: str) -> None:
        def end(status: int) -> None:
            raise FirstStepDone(status)

        monkeypatch.setattr("os._exit", end)
        # the code puts its own in place of it
        monkeypatch.setattr(tara.inference.pipeline, "DenoisingStep", tara.inference.pipeline.DenoisingStep)
        monkeypatch.setattr("sys.argv", ["-c", arguments])
        exec(code, {"__name__": "__main__"})

    monkeypatch.setattr(subprocess, "run", run)
    rows = benchmark.starting(rounds=1)
    assert [row["case"] for row in rows] == ["tara --help", "tara generate, first denoising step"]
    assert [one["name"] for one in benchmark.checks_of(rows)] == ["tara --help, seconds"]
    assert [command[1:3] for command in started[:2]] == [["-m", "tara"]] * 2
    assert json.loads(started[-1][3])[0] == "generate"


class FirstStepDone(BaseException):
    """In place of the end of a process."""
