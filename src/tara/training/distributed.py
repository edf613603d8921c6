"""Training in several processes, started by `accelerate launch` or `torchrun`.

Each process runs its share of every step's network calls. Only the main process writes files and prints. The processes
wait for each other at `Processes.barrier`; a failure in one process ends all of them there.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from tara.errors import TaraError, first_line, warn

# environment variables of torchrun and the kinds of MPI, as accelerate reads them
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
TIMEOUT = timedelta(days=1)  # the main process generates class images and previews while the others wait


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A process's failure: the sentence for its user, and its exit code."""

    sentence: str
    code: int


class OtherProcessEnded(Exception):
    """Raised when another process of the run has ended, so this one has to end too; ``args`` holds its `Ending`."""

    @property
    def ending(self) -> Ending:
        return self.args[0]


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How many processes share a run, and the number of this one, from 0."""

    count: int = 1
    number: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.number == 0

    def shard(self, step: int, calls: int) -> range:
        """Indices of the network calls that this process makes in a step.

        Together, the processes make ``count * calls`` consecutive calls.
        """
        first = (step * self.count + self.number) * calls
        return range(first, first + calls)

    def barrier(self) -> None:
        """Wait for all processes; raises OtherProcessEnded if one of them has ended or died."""
        if ending := self.end(None):
            raise OtherProcessEnded(ending)

    def end(self, own: Ending | None) -> Ending | None:
        """A barrier at which every process reports its ending, or None if it goes on.

        Returns the first ending that was reported, else None.
        """
        if self.count == 1:
            return own
        from accelerate.utils import gather_object

        try:
            endings = cast("list[Ending | None]", gather_object([own]))
        except RuntimeError as failure:  # torch.distributed has lost a connection
            lost = f"Error: Another process of this run is gone ({first_line(failure)}). Its output may say why."
            return own or Ending(sentence=lost, code=2)
        return next((ending for ending in endings if ending is not None), None)

    def mean(self, tensor: Any) -> Any:
        """The mean of a tensor over all processes; a barrier comes before it."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        return reduce(tensor, reduction="mean")

    def leave(self) -> None:
        """Close the connections. An interpreter that exits with open connections may abort."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()


ALONE = Processes()


def launched() -> int:
    """Number of processes that the launcher has started, including this one."""
    return _from_environment(COUNTS, 1)


def join(device: str) -> Processes:
    """Connect the processes that were launched together with this one, if any.

    Raises:
        TaraError: when ``device`` is not cuda or cpu, or there is not one CUDA device for each process.
    """
    if (count := launched()) == 1:
        _warn_if_others_are_missing()
        return ALONE
    refused = f"{count} processes were launched, but"
    if device not in ("cuda", "cpu"):
        raise TaraError(f"{refused} the device '{device}' cannot be shared. Give cpu, or leave the device out.")
    from accelerate import PartialState
    from torch import cuda

    if device == "cuda" and _from_environment(("LOCAL_WORLD_SIZE",), 1) > cuda.device_count():
        raise TaraError(
            f"{refused} there are {cuda.device_count()} CUDA devices here. Launch one for each device, or give the "
            "device cpu."
        )
    state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    if state.num_processes != count:
        raise TaraError(f"{refused} they cannot connect to each other. Launch them with accelerate launch or torchrun.")
    return Processes(count=state.num_processes, number=state.process_index)


def joined() -> Processes:
    """The processes that `join` has connected; before `join`, only this process."""
    if launched() == 1:
        return ALONE
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Processes(count=distributed.get_world_size(), number=distributed.get_rank())


@contextmanager
def main_process_only() -> Generator[None]:
    """Only the main process prints: the others' output is discarded, except the traceback of a bug."""
    if launched() == 1 or _from_environment(RANKS, 0) == 0:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _from_environment(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)


def _warn_if_others_are_missing() -> None:
    # `accelerate launch --num_processes 2` without GPUs starts one process, with the address for several
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
        warn(
            "accelerate has started one process only: where it sees no GPU for each, it starts several through MPI "
            "alone. On CPUs give it --multi_gpu in place of --cpu or of a MULTI_CPU configuration, or use torchrun."
        )
