"""The command line of the local channel: build one and print where it is."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from tests.localchannel import Kind, ensure, package_names


def main() -> None:
    """Build a channel and print its path or its packages."""
    parser = argparse.ArgumentParser(prog="python -m tests.localchannel", description=__doc__)
    parser.add_argument("kind", choices=get_args(Kind))
    parser.add_argument("--print-packages", action="store_true", help="list the packages instead")
    arguments = parser.parse_args()
    channel = ensure(arguments.kind)
    lines = package_names(channel) if arguments.print_packages else [str(channel)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
