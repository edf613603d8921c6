#!/usr/bin/env python3
"""Generate images with one adapter or several with the published script's flags (docs/seed-commands.md)."""

import sys

from tara.cli.published import INFERENCE, run

if __name__ == "__main__":
    sys.exit(run(INFERENCE))
