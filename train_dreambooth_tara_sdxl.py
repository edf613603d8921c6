#!/usr/bin/env python3
"""Train one adapter on SDXL with the published script's flags (docs/seed-commands.md)."""

import sys

from tara.cli.published import SDXL_TRAINING, run

if __name__ == "__main__":
    sys.exit(run(SDXL_TRAINING))
