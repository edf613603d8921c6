#!/usr/bin/env python3
"""Train one adapter on Stable Diffusion 1.x or 2.x with the published script's flags (docs/seed-commands.md)."""

import sys

from tara.cli.published import SD_TRAINING, run

if __name__ == "__main__":
    sys.exit(run(SD_TRAINING))
