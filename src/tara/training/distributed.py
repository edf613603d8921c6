"""The processes that a launcher (``accelerate launch``, ``torchrun``) has started for one run, and how they agree.

Every process takes its share of each step's U-Net calls; the first one, the main process, alone writes and speaks. They
wait for one another at fixed places (`Processes.meet`), and what has ended one ends all of them there.
"""

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from tara.errors import TaraError, TaraWarning

if TYPE_CHECKING:  # `tara --help` does without torch
    from torch import Tensor

# what torchrun and the kinds of MPI tell a process; accelerate reads the same names
NUMBERS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
COUNTS_HERE = ("LOCAL_WORLD_SIZE",)
PATIENCE = timedelta(days=1)  # the main process draws class pictures and previews while the others wait


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What a process has ended with: the sentence for its user, and its exit code."""

    sentence: str
    code: int


class OtherProcessEnded(Exception):
    """Another process of the run has ended, so this one cannot go on either."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending
        super().__init__(ending.sentence)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How many processes share a run, and the number of this one, from 0."""

    count: int = 1
    number: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.number == 0

    def shard(self, step: int, calls: int) -> range:
        """The U-Net calls of this process in a step of ``calls`` each.

        All processes together make the calls that one process with ``count`` times as many would make.
        """
        first = (step * self.count + self.number) * calls
        return range(first, first + calls)

    def barrier(self) -> None:
        """Wait until every process is here.

        Raises:
            AnotherProcessEnded: when one of them has ended, see `end`, or has died.
        """
        if self.count > 1 and (ending := self._first(None)):
            raise OtherProcessEnded(ending)

    def end(self, ending: Ending) -> Ending:
        """Tell the others, where they next meet, that this process has ended; give what all of them end with."""
        if self.count == 1:
            return ending
        return self._first(ending) or ending

    def mean(self, tensor: "Tensor") -> "Tensor":
        """The mean of a tensor over all processes; they have met before."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        return cast("Tensor", reduce(tensor, reduction="mean"))

    def leave(self) -> None:
        """Close the connections, whatever the run has ended with: an interpreter that ends with them open may abort."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    def _first(self, own: Ending | None) -> Ending | None:
        """Tell all processes the own ending; give the first one that any of them tells."""
        from accelerate.utils import gather_object

        try:
            told = cast("list[Ending | None]", gather_object([own]))
        except RuntimeError as failure:  # as torch.distributed says that a connection is gone
            return _lost(failure)
        return next((ending for ending in told if ending is not None), None)


ALONE = Processes()


def launched() -> int:
    """How many processes a launcher has started together with this one, itself among them."""
    return _told(COUNTS, 1)


def join(device: str) -> Processes:
    """Join the processes that were launched together with this one; a process that was started alone stays alone.

    Args:
        device: where the run computes: cuda (each process then has a device of its own) or cpu.

    Raises:
        TaraError: when there is not one device for each process.
    """
    count = launched()
    if count == 1:
        _note_a_lone_start()
        return ALONE
    if device not in ("cuda", "cpu"):
        _refuse(count, f"they cannot share the device '{device}'", "Give cpu, or leave the device out.")
    from accelerate import PartialState

    devices = _cuda_devices() if device == "cuda" else count
    if _told(COUNTS_HERE, 1) > devices:
        _refuse(count, f"there are {devices} CUDA devices here", "Launch one for each device, or give the device cpu.")
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    if state.num_processes != count:
        _refuse(count, "they have not found one another", "Launch them with accelerate launch or torchrun.")
    return Processes(count=state.num_processes, number=state.process_index)


def joined() -> Processes:
    """The processes that `join` has found; before that, this one alone."""
    if launched() == 1:
        return ALONE
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Processes(count=distributed.get_world_size(), number=distributed.get_rank())


def alone() -> bool:
    """Whether this process is to do what processes do not share, the main one with a note; it then stays alone."""
    count = launched()
    if count == 1:
        return True
    if _told(NUMBERS, 0) != 0:
        return False
    for name in (*NUMBERS, *COUNTS, *COUNTS_HERE):
        os.environ.pop(name, None)
    warnings.warn(
        f"{count} processes were launched, but they share a training alone: the first one does this by itself.",
        TaraWarning,
        stacklevel=2,
    )
    return True


@contextmanager
def main_process_only() -> Generator[None]:
    """Only the main process speaks: what the others print goes nowhere, except the traceback of a bug."""
    if launched() == 1 or _told(NUMBERS, 0) == 0:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _told(names: tuple[str, ...], otherwise: int) -> int:
    """The number that the launcher has put into the environment."""
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), otherwise)


def _cuda_devices() -> int:
    from torch import cuda

    return cuda.device_count()


def _note_a_lone_start() -> None:
    """``accelerate launch --num_processes 2`` without several GPUs starts one process and says nothing of it.

    It names the place where several would meet, which it does for no other lone process, but not how many were wanted.
    """
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
        warnings.warn(
            "accelerate has started one process only: where it sees no GPU for each, it starts several through MPI "
            "alone. On CPUs give it --multi_gpu in place of --cpu or of a MULTI_CPU configuration, or use torchrun.",
            TaraWarning,
            stacklevel=3,
        )


def _lost(failure: RuntimeError) -> Ending:
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    return Ending(sentence=f"Error: Another process of this run is gone ({reason}). It may have said why.", code=2)


def _refuse(count: int, why: str, what_next: str) -> NoReturn:
    raise TaraError(f"{count} processes were launched, but {why}. {what_next}")
