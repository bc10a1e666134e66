"""Defines the events of a build: frozen objects that the stages emit and `progress` shows.

Events come from any thread, so whatever takes them must allow for that.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


class Stage(enum.Enum):
    """The stages of a build in their order; the values are what people read."""

    CHECK = "check"
    SOLVE = "solve"
    INSTALL = "fetch and link"
    PIP = "pip"
    COMPILE = "compile"
    SNAPSHOT = "snapshot"
    UNPACK = "unpack"
    SQUASH = "squash"
    VERIFY = "verify"
    PUBLISH = "publish"


class Unit(enum.Enum):
    """What a stage counts."""

    PACKAGES = "packages"
    FILES = "files"
    BLOCKS = "blocks"


@dataclass(frozen=True)
class StageStarted:
    """A stage has begun."""

    project: str
    stage: Stage


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes:
        project: label of the project.
        stage: which stage.
        done: how many of `unit` are done.
        total: how many there are; None if not known.
        unit: what is counted.
        detail: what is being done right now, a few words.
        bytes_done: bytes that have been fetched.
        bytes_total: bytes to fetch, as far as known; 0 if there are none.
    """

    project: str
    stage: Stage
    done: int
    total: int | None
    unit: Unit
    detail: str = ""
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True)
class StageFinished:
    """A stage has ended without an error.

    Attributes:
        project: label of the project.
        stage: which stage.
        seconds: wall time it took.
        detail: its result, a few words.
    """

    project: str
    stage: Stage
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Note:
    """One line that the user sees, except with --quiet."""

    project: str
    text: str


@dataclass(frozen=True)
class Output:
    """One line of a program's output, for the log."""

    project: str
    line: str


@dataclass(frozen=True)
class Failed:
    """A build has failed; the error is printed when all builds have ended."""

    project: str


@dataclass(frozen=True)
class Built:
    """A build is complete, and its image is in place.

    Attributes:
        project: label of the project.
        image: path of the image.
        image_bytes: its size.
        files: files, directories and links in it.
        tree_bytes: the size of the same files before compression.
        packages: number of conda packages.
        stages: seconds of each stage; some stages overlap.
        seconds: wall time of the whole build.
    """

    project: str
    image: str
    image_bytes: int
    files: int
    tree_bytes: int
    packages: int
    stages: tuple[tuple[Stage, float], ...]
    seconds: float


Event: TypeAlias = StageStarted | Progress | StageFinished | Note | Output | Failed | Built
Emit: TypeAlias = Callable[[Event], None]
