"""What the stages of one build share: events, the log, processors, and words for a full disk."""

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
"""What another environment that is active has set."""
_UNITS = {Stage.SQUASH: Unit.BLOCKS, Stage.COMPILE: Unit.FILES}


@dataclass
class StageDetail:
    """What a stage has to say when it ends."""

    detail: str = ""


class BuildContext:
    """Where one build works.

    Args:
        project: what is built.
        label: how messages name it.
        budget: the processors of the whole command.
        emit: takes the events.

    Attributes:
        epoch: which times the image is to tell.
        hold: the build's lock, which programs inherit, and its directory for temporary files.
        seconds: how long each stage took.
    """

    def __init__(self, project: Project, label: str, budget: Budget, emit: Emit) -> None:
        self.project = project
        self.label = label
        self.budget = budget
        self.emit = emit
        self.hold: Claim | None = None
        self.seconds: list[tuple[Stage, float]] = []
        self._begin = time.monotonic()
        self.epoch = Epoch()
        self._log_file: IO[str] | None = None

    def elapsed(self) -> float:
        """Seconds since the build began; some stages go on at the same time."""
        return time.monotonic() - self._begin

    @contextlib.asynccontextmanager
    async def stage(self, stage: Stage) -> AsyncIterator[StageDetail]:
        """Say that a stage begins, and when it has ended well how long it took."""
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
            at_most: how many processors it can use; this build's fair share by default.
        """
        async with self.budget.take(at_most) as processors:
            yield self._workplace(stage, processors)

    def beside(self, stage: Stage) -> Workplace:
        """What a stage works with that goes on beside others, on the same processors as they."""
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
            temporary=self.hold.temporary if self.hold else None,
            pass_fds=[self.hold.descriptor] if self.hold else [],
            check=self.hold.check if self.hold else lambda: None,
        )

    def _output(self, line: str) -> None:
        line = credentials.without(line)
        log = self._log_file
        if log is not None:  # an installer's thread may outlive a build that was cancelled
            log.write(printable(line) + "\n")
        self.emit(Output(self.label, line))

    def _variables(self) -> dict[str, str]:
        """What programs run with: nothing of another environment's reaches into this one."""
        variables = {
            name: value
            for name, value in process.without_python(os.environ).items()
            if name not in FOREIGN and not _OF_ACTIVATION.fullmatch(name)
        }
        if self.hold:
            variables["TMPDIR"] = str(self.hold.temporary)
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
    def watching(self, place: space.Destination, cache: Path | None = None) -> Iterator[None]:
        """Turn an error that means a full file system into one that says which.

        Args:
            place: what is being filled.
            cache: where packages are put meanwhile.
        """
        others = [space.Destination(cache, "the package cache", 0)] if cache is not None else []
        try:
            yield
        except (OSError, CondainerError) as error:
            full = space.explain(error, [place, *others, *self._other_places()])
            if full is None:
                raise
            raise full from error

    def _other_places(self) -> list[space.Destination]:
        """What a build fills besides the place of its stage."""
        places = [
            space.Destination(Path(tempfile.gettempdir()), "temporary files", 0),
            space.Destination(self.project.directory, "the project", 0),
        ]
        cache = self.project.config.package_cache
        if cache:
            places.append(space.Destination(Path(cache), "the package cache", 0))
        return places

    @contextlib.contextmanager
    def log(self, mode: int) -> Iterator[None]:
        """The build log: takes the place of the last one when the build has ended or failed.

        Where a signal ended the build nothing of it stays.

        Args:
            mode: its permissions.
        """
        final = self.project.build_log
        with parts.writing(final) as part:
            with open(
                *(part.descriptor, "w"),
                encoding="utf-8",
                errors="replace",
                buffering=1,
                closefd=False,
            ) as log:
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
        """Turn an error of the operating system that nobody else has explained into words.

        No error that leaves a build tells credentials.
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
