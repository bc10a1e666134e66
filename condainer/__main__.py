"""`python -m condainer` is the `condainer` command."""

import sys

from condainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
