"""``python -m headwise`` is the command ``headwise``."""

import sys

from headwise._cli import main

if __name__ == "__main__":
    sys.exit(main())
