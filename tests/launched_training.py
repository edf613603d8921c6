"""What tests launch in several processes: ``python launched_training.py RUN_OR_RECIPE [STEP]`` trains in float64.

With a step, every process hears Ctrl-C after it, as all processes of a terminal do.
"""

import signal
import sys
from pathlib import Path

from tara.cli.exit_codes import run_command


def train() -> None:
    """Train, and say each step."""
    # libraries have much to say when they are imported; in a command that is heard as little as here
    import torch

    import tiny_bases
    from tara.training.loop import StepRecord
    from tara.training.run.recipe_files import read_recipe
    from tara.training.run.run import train_recipe
    from training_fixtures import in_float64

    path, stop = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
    torch.set_num_threads(1)  # as the tests do

    def on_step(record: StepRecord) -> None:
        print(record.index, flush=True)
        if record.index == stop:
            signal.raise_signal(signal.SIGINT)

    train_recipe(read_recipe(path), in_float64(tiny_bases.sd_pipeline()), resume=path.is_dir(), on_step=on_step)


if __name__ == "__main__":
    sys.exit(run_command(train, distributed=True))
