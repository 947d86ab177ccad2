"""``python -m bio_lightning.cli``."""

import sys

from bio_lightning.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
