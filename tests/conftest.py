"""Fixtures of all layers: channels, images, and workshops that check what is left behind."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests import images, localchannel, standin, support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEEDS = {
    "channel": {"hard_channel", "basic_channel"},
    "image": {"built", "collection"},
    "mount": {"ready", "mounted"},
}
"""Markers, and the fixtures from which they follow."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with what it needs, and have slow files begin first.

    A file runs in one worker from its first test to its last. A slow one that began late would
    keep one worker busy while all others have nothing left to do.

    Raises:
        pytest.UsageError: If a test in `tests/unit` needs more than this process.
    """
    for item in items:
        used = set(getattr(item, "fixturenames", ()))
        needed = [name for name, fixtures in NEEDS.items() if fixtures & used]
        if needed and item.nodeid.startswith("tests/unit/"):
            words = f"{item.nodeid} needs {needed[0]}: it belongs in another layer than unit"
            raise pytest.UsageError(words)
        for name in needed:
            item.add_marker(name)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_the_foreground() -> None:
    """What is started heeds all signals, also where these tests run under nohup or behind `&`."""
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, lambda *_: None)  # which, unlike SIG_IGN, nobody inherits


@pytest.fixture(scope="session")
def hard_channel() -> Path:
    """The channel of the hand-made hard cases, and a real Python."""
    return localchannel.ensure("hard")


@pytest.fixture(scope="session")
def basic_channel() -> Path:
    """The channel with Python, pip, numpy and pandas."""
    return localchannel.ensure("basic")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for the user's home directory; its caches are shared by all tests."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def micromamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for micromamba, in a directory of its own."""
    return standin.write_program(tmp_path_factory.mktemp("micromamba"))


@pytest.fixture(scope="session")
def conda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for conda, in a directory of its own."""
    return standin.write_program(tmp_path_factory.mktemp("conda"), "conda")


@pytest.fixture
def workshop(tmp_path: Path, home: Path) -> Iterator[support.Workshop]:
    """An empty project; afterwards nothing may be left in its mount base directory."""
    made = support.make_workshop(tmp_path / "my project", home)
    try:
        yield made
        made.wait_until_clean()
    finally:
        support.clear(made)


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory, home: Path, hard_channel: Path
) -> Iterator[support.Workshop]:
    """A project that is built already, for tests that only use its image."""
    made = support.make_workshop(tmp_path_factory.mktemp("built") / "my project", home)
    made.environment(
        *("python", "hard-hello", "hard-activate", "hard-text=1"),
        channel=hard_channel,
        more="variables:\n  CONDAINER_TEST: a b\n",
    )
    made.run("build", "-q")
    try:
        yield made
        made.wait_until_clean()
    finally:
        support.clear(made)


@pytest.fixture
def ready(built: support.Workshop) -> Iterator[support.Workshop]:
    """The built project, not mounted; afterwards its mount must go by itself."""
    built.wait_until_clean()
    try:
        yield built
        built.wait_until_clean()
    finally:
        if built.is_mounted():
            built.run("umount", status=None)


@pytest.fixture
def mounted(built: support.Workshop) -> Iterator[support.Workshop]:
    """The built project, mounted by name for the time of a test."""
    built.run("-q", "mount")
    yield built
    built.run("-q", "umount", status=None)


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> images.Collection:
    """Trees, and images of them, for the tests of the file system."""
    return images.Collection(tmp_path_factory.mktemp("images"))
