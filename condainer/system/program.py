"""`python -E FILE MODULE [ARGUMENT ...]`: runs a module of this condainer as a program.

With `-m`, Python would search the working directory and PYTHONPATH first, where others may have put
a module of the same name. `process.own_program` gives the command.
"""

import sys

_PACKAGE = __file__.rpartition("/")[0].rpartition("/")[0]


def _run(module: str) -> None:
    """Run a module that lies beside this file, with the rest of the command line."""
    # Python has put the directory of this file first, all links followed: its `fuse` would hide
    # fusepy's.
    paths = sys.path[1:]
    # Nothing that is installed beside condainer may take the place of the standard library.
    packages = (place for place, path in enumerate(paths) if path.endswith("-packages"))
    paths.insert(next(packages, len(paths)), _PACKAGE.rpartition("/")[0])
    sys.path[:] = paths
    sys.argv = sys.argv[1:]
    import runpy

    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(sys.argv[1])
