"""``python -m tara``: the command line, for launchers that start a module, as ``accelerate launch -m tara`` does."""

import sys

from tara.cli import main

if __name__ == "__main__":
    sys.exit(main())
