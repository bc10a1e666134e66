"""The Python interface: `import condainer` gives `open`, `Project` and `Completed` from here.

Building, mounting and running are done by the command `condainer` in a process of its own. So this
process keeps its signal handlers, its threads and its event loop, whatever they are.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condainer.errors import CondainerError, ImageError
from condainer.project import project as project_module
from condainer.running.shell import TRY_AGAIN
from condainer.system import files, locks, process, runtime
from condainer.system.process import Completed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Completed", "CondainerError", "Project", "open"]

_EXEC_FAILED = 125
_ATTEMPTS = 5


def open(directory: str | os.PathLike[str] = ".") -> Project:  # noqa: A001  (as `condainer.open`)
    """Open a project.

    Args:
        directory: the project directory, which holds `condainer.yml`.

    Raises:
        CondainerError: If there is no project, or if its `condainer.yml` is wrong.

    Example:
        >>> import condainer
        >>> project = condainer.open("myproject")  # doctest: +SKIP
    """
    return Project(project_module.open_project(Path(directory)))


@dataclass(frozen=True)
class Project:
    """A project: one environment, and the image that is made of it. `condainer.open` gives it.

    Example:
        >>> project = condainer.open("myproject")  # doctest: +SKIP
        >>> project.build(force=True)  # doctest: +SKIP
        >>> project.run(["python", "-c", "import numpy"]).returncode  # doctest: +SKIP
        0
        >>> with project.mounted() as prefix:  # doctest: +SKIP
        ...     print((prefix / "bin" / "python").exists())
        True
    """

    _project: project_module.Project

    @property
    def directory(self) -> Path:
        """The absolute path of the project directory."""
        return self._project.directory

    @property
    def image(self) -> Path:
        """The path of the image. The file exists once the project has been built."""
        return self._project.image

    @property
    def prefix(self) -> Path:
        """The directory that the environment is built for, where the image is mounted."""
        return self._project.prefix

    def build(
        self,
        *,
        force: bool = False,
        locked: bool = False,
        offline: bool = False,
        repack: bool = False,
        installer: str = "",
        jobs: int | None = None,
    ) -> None:
        """Install the packages of `environment.yml`, and compress them into the image.

        `UUID.build.log` in the project directory holds what happened.

        Args:
            force: replace an image that is already there.
            locked: install exactly the packages that the lock file lists.
            offline: use no network.
            repack: install nothing; compress the existing image again.
            installer: name or path; empty for the first that is found.
            jobs: processors to use at most; None for all that this process may use, up to 8.

        Raises:
            CondainerError: If the build fails. What was there before is still there.
        """
        flags = {"force": force, "locked": locked, "offline": offline, "repack": repack}
        options = [f"--{name}" for name, is_on in flags.items() if is_on]
        options += [f"--installer={installer}"] if installer else []
        options += [f"--jobs={jobs}"] if jobs is not None else []
        _check(self._call("build", *options))

    def run(
        self, command: Sequence[str], *, capture: bool = False, timeout: float | None = None
    ) -> Completed:
        """Run a program from the image, and wait for it. Mounting happens automatically.

        Args:
            command: the program and its arguments.
            capture: keep its standard output and error. Otherwise it writes to those of this
                process. It reads nothing in either case.
            timeout: seconds that it may take; None for any number.

        Returns:
            Its exit status: -N if signal N ended it, 126 if it cannot be executed, 127 if there is
            no such program. With `capture`, also what it wrote.

        Raises:
            CondainerError: If the image cannot be used, or if the program takes too long.
        """
        if files.is_absent(self.image):
            raise ImageError(f"there is no image {self.image}", "make one with build()")
        done = self._call("exec", "--", *command, timeout=timeout, inherit=not capture)
        if done.returncode == _EXEC_FAILED:
            _check(done)
        return done

    @contextlib.contextmanager
    def mounted(self, *, backend: str = "auto") -> Iterator[Path]:
        """Mount the image, and keep it mounted for a `with` block.

        Args:
            backend: what mounts it: a name that `condainer mount --help` lists.

        Yields:
            The prefix: the directory where the environment is.

        Raises:
            CondainerError: If the image cannot be mounted for all processes of this node.
        """
        descriptor = self._held(backend)
        try:
            yield self.prefix
        finally:
            os.close(descriptor)  # drops the lock; the keeper of the mount unmounts it later

    def status(self) -> dict[str, Any]:
        """Look at the project, its image, its mount and who uses it.

        Returns:
            What `condainer status --json` prints.
        """
        from condainer.commands import status

        return status.gather(self._project)

    def _held(self, backend: str) -> int:
        """A descriptor whose lock keeps the image mounted until it is closed.

        The command locks the file that this process has opened, so both hold the lock.
        """
        for _ in range(_ATTEMPTS):
            lock = runtime.open_file(self._project.use_lock, os.O_RDWR | os.O_CREAT)
            try:
                words = ("mount", f"--backend={backend}", f"--for-shell={lock}")
                done = self._call(*words, descriptor=lock)
                if done.returncode != TRY_AGAIN:  # else the file was removed meanwhile
                    _check(done)
                    return lock
            except BaseException:
                locks.release(self._project.use_lock, lock)
                raise
            os.close(lock)
        raise CondainerError(f"{self.prefix} is unmounted again and again", "try again")

    def _call(
        self,
        *words: str,
        timeout: float | None = None,
        inherit: bool = False,
        descriptor: int | None = None,
    ) -> Completed:
        """Run `condainer` for this project."""
        command = process.own_program("condainer", "-q", "-d", str(self.directory), *words)
        passed = () if descriptor is None else (descriptor,)
        return process.call(
            command, timeout=timeout, env=os.environ, pass_fds=passed, inherit=inherit
        )


def _check(done: Completed) -> None:
    """Raise the error that a command has reported.

    Raises:
        CondainerError: If the command failed.
    """
    if done.returncode == 0:
        return
    words = done.stderr.rpartition("condainer: error: ")[2].strip()
    message, _, hint = words.partition("\ncondainer: ")
    message = message or f"condainer failed with status {done.returncode}, see standard error"
    raise CondainerError(message, hint)
