"""`python -m condainer` is the `condainer` command."""

from condainer.start import entry

if __name__ == "__main__":
    entry()
