"""Turns conda environments into single compressed files, and runs programs from them.

    import condainer

    project = condainer.open("myproject")
    project.build()
    project.run(["python", "script.py"])
    with project.mounted() as prefix:
        print(prefix / "bin")
    print(project.status()["mount"]["state"])

Every failure raises `CondainerError`. Nothing here writes to standard output or standard error,
except the programs that `run` starts.

Every `exec` imports this module, so it imports the rest only on demand.
"""

TYPE_CHECKING = False  # to import `typing` takes as long as all that `exec` does
if TYPE_CHECKING:
    from condainer.commands.api import Completed, Project, open  # noqa: A004
    from condainer.errors import CondainerError

__all__ = ["Completed", "CondainerError", "Project", "__version__", "open"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name in __all__:
        from condainer.commands import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
