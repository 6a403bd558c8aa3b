"""``python -m aida_lightning``, the command line."""

import sys

from aida_lightning.commands import main

if __name__ == "__main__":
    sys.exit(main())
