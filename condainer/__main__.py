"""`python -m condainer` is the `condainer` command."""

from condainer.cli import entry

if __name__ == "__main__":
    entry()
