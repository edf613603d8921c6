"""Training and generation where tensors of the CPU and of the device do not mix: on a simulated device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("on_device.py")
ROOT = Path(__file__).parents[2]
GENERATED = ("sd tara", "sd sum", "sd regions", "sd composite", "sdxl tara")
READS_TIMESTEPS = ("regions", "composite")
"""Composers that read each step's timestep on the host, to see that a new image begins."""
READS_A_STEP = {"sd cross_kv": 1, "sd attention": 1, "sd prodigy": 5}
"""Transfers to the host in a training step; prodigy's are its own, two for each concept."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What `on_device.py` counted, in a process of its own."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_tensors_of_two_devices_do_not_mix(found: dict[str, Any]) -> None:
    assert "at least two devices" in found["mixing"]


@pytest.mark.parametrize("case", GENERATED)
def test_an_image_of_the_device_is_the_cpus_and_takes_the_transfers_of_the_stock_pipeline(
    case: str, found: dict[str, Any]
) -> None:
    build, composer = case.split()
    counted, stock = found["generated"][case], found["stock"][build]
    assert counted["difference"] <= 1
    assert counted["to_host_a_step"] == stock["to_host_a_step"] + (composer in READS_TIMESTEPS)
    assert counted["float64"] == 0
    assert counted["untouched_default_generator"]


@pytest.mark.parametrize("case", READS_A_STEP)
def test_a_training_of_the_device_has_the_cpus_losses_and_reads_from_it_once_a_step(
    case: str, found: dict[str, Any]
) -> None:
    counted = found["trained"][case]
    assert counted["difference"] < 1e-2
    assert counted["to_host_a_step"] == READS_A_STEP[case]
    assert counted["float64"] == 0
    assert counted["untouched_default_generator"]
