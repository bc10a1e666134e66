"""Whose a path is: which owners, modes and links are safe."""

from __future__ import annotations

import grp
import os
import pwd
import signal
from typing import TYPE_CHECKING

import pytest

from condainer import errors
from condainer.system import impersonation, trust
from tests.users import ANN, BOB, make

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")

STRANGER = f"belongs to user {BOB} (daemon), since 2"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A directory that is safe, above which all is."""
    return tmp_path


def test_a_path_in_ones_own_hands_is_safe(top: Path) -> None:
    base = make(make(top / "shared", 0o1777) / "ann", 0o755, ANN)
    assert trust.find_stranger(str(base), {0, ANN}) == ""
    assert trust.find_stranger(str(base / "missing" / "too"), {0, ANN}) == ""
    assert trust.find_stranger(str(base), {0, BOB}) != ""


@pytest.mark.parametrize(
    ("mode", "owner", "group", "problem"),
    [
        (0o777, 0, 0, "is writable for all and has no sticky bit"),
        (0o773, ANN, 0, "is writable for all and has no sticky bit"),
        (0o775, 0, BOB, f"is writable for group {BOB} and has no sticky bit"),
        (0o755, BOB, 0, STRANGER),
        (0o1777, BOB, 0, STRANGER),
    ],
)
@pytest.mark.parametrize("below", ["", "below/it"])
def test_each_directory_on_the_way_counts(
    top: Path, mode: int, owner: int, group: int, problem: str, below: str
) -> None:
    exposed = make(top / "exposed", mode, owner, group)
    (exposed / below).mkdir(parents=True, exist_ok=True)
    found = trust.find_stranger(str(exposed / below), {0, ANN})
    assert found.startswith(f"{exposed} {problem}")


def test_the_owner_of_an_entry_counts_where_a_directory_is_sticky(top: Path) -> None:
    theirs = make(make(top / "sticky", 0o1777) / "theirs", 0o755, BOB)
    assert trust.find_stranger(str(theirs), {0, ANN}).startswith(f"{theirs} {STRANGER}")


def test_links_count_as_what_they_are_and_as_what_they_lead_to(top: Path) -> None:
    sticky = make(top / "sticky", 0o1777)
    mine = make(top / "mine", 0o755, ANN)
    theirs = make(top / "theirs", 0o755, BOB)
    (sticky / "planted").symlink_to(mine)
    os.lchown(sticky / "planted", BOB, BOB)
    (mine / "away").symlink_to("../theirs")
    (mine / "loop").symlink_to("loop")
    (mine / "fine").symlink_to("../mine/.")
    trusted = {0, ANN}
    assert f"{sticky}/planted {STRANGER}" in trust.find_stranger(str(sticky / "planted"), trusted)
    assert f"{theirs} {STRANGER}" in trust.find_stranger(str(mine / "away"), trusted)
    assert "Too many levels" in trust.find_stranger(str(mine / "loop"), trusted)
    assert trust.find_stranger(str(mine / "fine" / "new"), trusted) == ""


def test_what_is_missing_is_a_danger_where_others_can_make_it(top: Path) -> None:
    """They may have taken it away for the moment in which it was looked at."""
    sticky = make(top / "sticky", 0o1777)
    (make(top / "mine", 0o755, ANN) / "away").symlink_to(sticky / "there")
    for path in (sticky / "there" / "base", top / "mine" / "away" / "base"):
        found = trust.find_stranger(str(path), {0, ANN})
        assert found == f"{sticky}/there is missing, and others can make it"


def test_a_group_that_one_user_has_is_no_danger(top: Path) -> None:
    """As where each user has a group of their own, and a umask that lets it write."""
    name, entry = next(
        (entry.pw_name, entry)
        for entry in pwd.getpwall()
        if entry.pw_uid and grp.getgrgid(entry.pw_gid).gr_name == entry.pw_name
    )
    base = make(top / name, 0o775, entry.pw_uid, entry.pw_gid)
    assert trust.find_stranger(str(base), {0, entry.pw_uid}) == ""
    assert "is writable for group" in trust.find_stranger(str(base), {0, entry.pw_uid + 1}) or (
        "belongs to" in trust.find_stranger(str(base), {0, entry.pw_uid + 1})
    )


def test_what_a_user_says_to_root_is_one_line_each() -> None:
    said = ["a\nFORGED", "b\u2028FORGED", "c\rFORGED", "done", "\x1b[31m"]

    def work(say: Callable[[str], None]) -> None:
        for text in said:
            say(text)

    assert impersonation.run_as(ANN, work) == [
        *("a FORGED", r"b\u2028FORGED", r"c\rFORGED", "done", r"\x1b[31m")
    ]


def test_root_does_not_wait_for_a_process_that_its_user_has_stopped() -> None:
    """The user may stop what has become that user; root would hear nothing for two minutes."""

    def work(say: Callable[[str], None]) -> None:
        say("begun")
        os.kill(os.getpid(), signal.SIGSTOP)

    with pytest.raises(errors.CondainerError, match=r"process \d+ was stopped, and has been"):
        impersonation.run_as(ANN, work)
