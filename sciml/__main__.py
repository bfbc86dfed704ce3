"""`python -m sciml`, and the console script `sciml`."""

import sys

from sciml.cli import main

if __name__ == "__main__":
    sys.exit(main())
