"""What all stages of one build share: its events, log, processors and variables."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from condainer.errors import BuildError, CondainerError
from condainer.pipeline import credentials, epoch, parts, space
from condainer.pipeline.epoch import Epoch
from condainer.pipeline.events import (
    Emit,
    Note,
    Output,
    Progress,
    Stage,
    StageFinished,
    StageStarted,
    Unit,
)
from condainer.pipeline.workplace import Workplace
from condainer.running.variables import FOREIGN
from condainer.system import process
from condainer.units import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from condainer.pipeline.schedule import Budget
    from condainer.pipeline.staging import Claim
    from condainer.project.project import Project

_OF_ACTIVATION = re.compile(
    r"CONDA_(?:PREFIX(?:_\d+)?|DEFAULT_ENV|SHLVL|PROMPT_MODIFIER|STACKED_\d+)"
)
"""Variables that the activation of another environment has set."""
_UNITS = {Stage.SQUASH: Unit.BLOCKS, Stage.COMPILE: Unit.FILES}


@dataclass
class StageDetail:
    """A few words about the result of a stage, which it may set before it ends."""

    detail: str = ""


class BuildContext:
    """What all stages of one build share: its events, log, processors and variables.

    Args:
        project: what is built.
        label: how messages name the project.
        budget: the processors of the whole command.
        emit: takes the events.

    Attributes:
        epoch: the times that the image records.
        claim: on the prefix; None until the build has one.
        seconds: how long each stage took.
    """

    def __init__(self, project: Project, label: str, budget: Budget, emit: Emit) -> None:
        self.project = project
        self.label = label
        self.budget = budget
        self.emit = emit
        self.claim: Claim | None = None
        self.seconds: list[tuple[Stage, float]] = []
        self._begin = time.monotonic()
        self.epoch = Epoch()
        self._log_file: IO[str] | None = None

    def elapsed(self) -> float:
        """Seconds since the build began. Some stages overlap, so this is less than their sum."""
        return time.monotonic() - self._begin

    def note(self, text: str) -> None:
        """Tell the user something.

        Args:
            text: one line.
        """
        self.emit(Note(self.label, text))

    @contextlib.asynccontextmanager
    async def stage(self, stage: Stage) -> AsyncIterator[StageDetail]:
        """Report that a stage begins, and how long it took if it ends without an error.

        Args:
            stage: which stage.
        """
        self.emit(StageStarted(self.label, stage))
        self._output(f"== {stage.value}")
        detail = StageDetail()
        start = time.monotonic()
        yield detail
        seconds = time.monotonic() - start
        self.seconds.append((stage, seconds))
        self.emit(StageFinished(self.label, stage, seconds, detail.detail))

    @contextlib.asynccontextmanager
    async def workplace(self, stage: Stage, at_most: int | None = None) -> AsyncIterator[Workplace]:
        """Wait for processors, and give a stage what it works with.

        Args:
            stage: which stage.
            at_most: how many processors it can use; None means this build's fair share.
        """
        async with self.budget.take(at_most) as processors:
            yield self._workplace(stage, processors)

    @contextlib.asynccontextmanager
    async def working(
        self, stage: Stage, at_most: int | None = None
    ) -> AsyncIterator[tuple[StageDetail, Workplace]]:
        """Report a stage, and give it what it works with: `stage` and `workplace` together.

        Args:
            stage: which stage.
            at_most: how many processors it can use; None means this build's fair share.
        """
        async with self.stage(stage) as detail, self.workplace(stage, at_most) as workplace:
            yield detail, workplace

    def beside(self, stage: Stage) -> Workplace:
        """What a stage works with if it runs beside others and shares their processors.

        Args:
            stage: which stage.
        """
        return self._workplace(stage, self.budget.share)

    def _workplace(self, stage: Stage, processors: int) -> Workplace:
        label = self.label
        unit = _UNITS.get(stage, Unit.PACKAGES)

        def tell(
            done: int, total: int | None, text: str, *, bytes_done: int = 0, bytes_total: int = 0
        ) -> None:
            self.emit(Progress(label, stage, done, total, unit, text, bytes_done, bytes_total))

        return Workplace(
            processors=processors,
            on_line=self._output,
            on_progress=tell,
            environment=self._variables(),
            temporary=self.claim.temporary if self.claim else None,
            pass_fds=[self.claim.descriptor] if self.claim else [],
            check=self.claim.check if self.claim else lambda: None,
        )

    def _output(self, line: str) -> None:
        line = credentials.without(line)
        log = self._log_file
        if log is not None:  # a thread of an installer may still run after a build was cancelled
            log.write(printable(line) + "\n")
        self.emit(Output(self.label, line))

    def _variables(self) -> dict[str, str]:
        """The variables of programs: those of other environments and Pythons are left out."""
        variables = {
            name: value
            for name, value in process.without_python(os.environ).items()
            if name not in FOREIGN and not _OF_ACTIVATION.fullmatch(name)
        }
        if self.claim:
            variables["TMPDIR"] = str(self.claim.temporary)
        if self.epoch.stamp is not None:
            variables[epoch.VARIABLE] = str(self.epoch.stamp)
        variables["PYTHONNOUSERSITE"] = "1"
        for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"):
            variables.pop(name, None)
        variables.update(PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")  # whatever pip.conf says
        if self.project.config.package_cache:
            variables["CONDA_PKGS_DIRS"] = self.project.config.package_cache
        priority = self.project.config.channel_priority
        if priority:
            variables.update(CONDA_CHANNEL_PRIORITY=priority, MAMBA_CHANNEL_PRIORITY=priority)
        return variables

    @contextlib.contextmanager
    def watching(self, destination: space.Destination, cache: Path | None = None) -> Iterator[None]:
        """Replace an error of a full file system by one that says which file system it is.

        Args:
            destination: what is being filled.
            cache: where packages are unpacked meanwhile; None if nowhere.

        Raises:
            NoSpaceError: If a file system is full.
        """
        others = [space.Destination(cache, "the package cache", 0)] if cache is not None else []
        try:
            yield
        except (OSError, CondainerError) as error:
            full = space.explain(error, [destination, *others, *self._other_destinations()])
            if full is None:
                raise
            raise full from error

    def _other_destinations(self) -> list[space.Destination]:
        """What a build fills besides the destination of its stage."""
        found = [
            space.Destination(Path(tempfile.gettempdir()), "temporary files", 0),
            space.Destination(self.project.directory, "the project", 0),
        ]
        cache = self.project.config.package_cache
        if cache:
            found.append(space.Destination(Path(cache), "the package cache", 0))
        return found

    @contextlib.contextmanager
    def log(self, mode: int) -> Iterator[None]:
        """Write the build log; it replaces the last one when the build has ended or failed.

        If a signal ends the build, the last log stays.

        Args:
            mode: the permissions of the log.

        Raises:
            CondainerError: If the build fails; its hint names the log if it has no other.
        """
        final = self.project.build_log
        with parts.writing(final) as part, _opened(part) as log:
            self._log_file = log
            try:
                yield
            except CondainerError as error:
                log.write(printable(f"error: {error.message}\n"))
                part.publish(final, mode)
                hint = error.hint or f"the log is {final}"
                raise type(error)(error.message, hint) from error
            except Exception:
                part.publish(final, mode)
                raise
            finally:
                self._log_file = None
            part.publish(final, mode)

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn errors of the operating system into words, and keep credentials out of all errors.

        Raises:
            CondainerError: If the build fails.
        """
        try:
            with self.watching(space.Destination(self.project.directory, "the project", 0)):
                yield
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise BuildError(f"{error.strerror or error}{where}") from error
        except CondainerError as error:
            error.message = credentials.without(error.message)
            error.args = (error.message,)
            raise


def _opened(part: parts.Part) -> IO[str]:
    """A file for lines of text; each is written at once."""
    return open(
        *(part.descriptor, "w"), encoding="utf-8", errors="replace", buffering=1, closefd=False
    )
