"""Runs the packages' activation scripts in a shell, one after the other, as conda does.

A script may do to its shell what it wants: end it, replace it, wait for ever. It counts for nothing
then, and those after it run in another shell: no script keeps an environment from its user.
"""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from condainer.errors import ToolError
from condainer.system import process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

LIMIT = 20.0
"""Seconds after which scripts that still run count for nothing; conda waits for ever."""

_MOST = 16_000_000
"""Bytes of a report: many times what the kernel lets a program have of variables."""
_SYSTEM = "/usr/local/bin:/usr/bin:/bin"
_OF_THE_SHELL = frozenset({"PWD", "OLDPWD", "_"})
"""What a shell changes by itself as it goes."""
_STATUS, _END = b"condainer ", b"condainer end"
"""Items of a report that are no variables: they have no `=`."""


@dataclass(frozen=True)
class Sourced:
    """What has come of some scripts.

    Attributes:
        variables: all variables after them.
        failed: says of each script that ended with another status than 0 what it was.
        left_out: says of each script that counts for nothing what it did.
    """

    variables: dict[str, str]
    failed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class Sourcing:
    """Scripts that are being run. As long as some are left, `argv` is to be run in `variables`.

    Args:
        scripts: their paths, in order.
        variables: those they find.

    Attributes:
        left: the scripts that have not run yet.
        variables: those after the scripts that have.
        reports: a descriptor that each shell has to inherit, closed by `end`.

    Raises:
        ToolError: where no shell can be had.
    """

    def __init__(self, scripts: Sequence[str], variables: Mapping[str, str]) -> None:
        self.left = list(scripts)
        self.variables = dict(variables)
        self._shell = _find("bash") or _find("sh")
        self._env = _find("env")
        if self._shell is None or self._env is None:
            raise ToolError("there is no shell to run the activation scripts of the packages")
        self._failed: list[str] = []
        self._left_out: list[str] = []
        self.reports = os.memfd_create("condainer")

    def end(self) -> None:
        """Close the descriptor."""
        os.close(self.reports)

    @property
    def result(self) -> Sourced:
        """What has come of the scripts so far."""
        return Sourced(self.variables, tuple(self._failed), tuple(self._left_out))

    @property
    def argv(self) -> list[str]:
        """The shell that runs what is left."""
        report = f"{shlex.quote(str(self._env))} -0 >&9; command printf 'condainer end\\0' >&9"
        lines = [f"exec 9>>/proc/self/fd/{self.reports}", report]
        for script in self.left:
            lines += [
                f". {shlex.quote(script)}",
                f"command printf 'condainer %d\\0' $? >&9; {report}",
                "set +eu",  # what one script has set is not for the next
            ]
        if str(self._shell).endswith("/sh"):
            return [str(self._shell), "-c", "\n".join(lines)]
        # With -p it takes neither functions nor options from its variables, nor reads BASH_ENV.
        return [str(self._shell), "-p", "-c", "\n".join(["set +p", *lines])]

    def take(self, verdict: str) -> None:
        """See how far a shell has come.

        Args:
            verdict: how it ended, in words.

        Raises:
            ToolError: where it has run no script at all.
        """
        reports = list(_read(os.pread(self.reports, _MOST, 0)))
        os.ftruncate(self.reports, 0)
        if not reports:
            raise ToolError(f"the shell {self._shell} cannot run activation scripts: {verdict}")
        for script, (status, _) in zip(self.left, reports[1:], strict=False):
            if status:
                self._failed.append(f"{script} ended with status {status}")
        self._apply(reports[0][1], reports[-1][1])
        done = len(reports) - 1
        if done < len(self.left):
            self._left_out.append(f"{self.left[done]} {verdict}: it counts for nothing")
        del self.left[: done + 1]

    def _apply(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """What the shell has changed by itself when it began is left out."""
        for name in before.keys() | after.keys() - _OF_THE_SHELL:
            value = after.get(name)
            if name in _OF_THE_SHELL or value == before.get(name):
                continue
            if value is None:
                self.variables.pop(name, None)
            else:
                self.variables[name] = value


def source(scripts: Sequence[str], variables: Mapping[str, str]) -> Sourced:
    """Run scripts in the working directory and wait; what they print is dropped.

    Args:
        scripts: their paths, in order.
        variables: those they find.

    Raises:
        ToolError: where no shell can be had.
    """
    sourcing = Sourcing(scripts, variables)
    try:
        while sourcing.left:
            try:
                done = process.call(
                    sourcing.argv,
                    timeout=LIMIT,
                    env=sourcing.variables,
                    pass_fds=[sourcing.reports],
                    silent=True,
                )
                verdict = ended(done.returncode)
            except ToolError as error:
                verdict = error.message
            sourcing.take(verdict)
        return sourcing.result
    finally:
        sourcing.end()


def ended(status: int) -> str:
    """What to say of a script that ended its shell."""
    return f"ended the shell with status {status}" if status >= 0 else "was killed"


def too_slow() -> str:
    """What to say of a script that did not come to its end."""
    return f"did not end within {LIMIT:.0f} s"


def _find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=_SYSTEM)


def _read(text: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """The whole reports in what shells have written: the status of a script, and all variables."""
    status = 0
    variables: dict[str, str] = {}
    for item in text.split(b"\0"):
        name, equals, value = item.partition(b"=")
        if item == _END:
            yield status, variables
            variables = {}
        elif equals:
            variables[os.fsdecode(name)] = os.fsdecode(value)
        elif item.startswith(_STATUS):
            status = int(item[len(_STATUS) :])
