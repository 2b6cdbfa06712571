"""Let `python -m qanchor` run the command line."""

import sys

from qanchor.cli import main

if __name__ == "__main__":
    sys.exit(main())
