"""`prereq`: it tries things out, and says how to get what is missing."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import building, support
from tests.support import CONDAINER

if TYPE_CHECKING:
    from tests.support import Workshop

pytestmark = pytest.mark.slow

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can hide programs")


def checks(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in found["checks"]}


def test_all_is_there(workshop: Workshop) -> None:
    found = json.loads(workshop.run("prereq", "--json").stdout)
    assert found["can_build"]
    assert found["can_mount"]
    assert found["processors"] >= 1
    assert [name for name, check in checks(found).items() if not check["ok"]] == []


def test_for_people(workshop: Workshop) -> None:
    told = workshop.run("prereq").stdout
    assert (
        "ok       squashfuse_ll: /usr/bin/squashfuse_ll mounts and reads, and programs run" in told
    )
    assert "build: yes\nexec: yes\nmount and activate: yes\n" in told


def test_needs_no_project(workshop: Workshop, tmp_path: Path) -> None:
    workshop.run("-d", str(tmp_path), "prereq")


def test_leaves_nothing(workshop: Workshop) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        workshop.run("prereq", variables={"TMPDIR": directory})
        assert list(Path(directory).iterdir()) == []
        assert directory not in Path("/proc/self/mountinfo").read_text()


BUSY = """\
squashfuse_ll=$(PATH=${PATH#*:} command -v squashfuse_ll)
for mountpoint; do :; done
"$squashfuse_ll" "$@" &
until exec 9<"$mountpoint/probe"; do :; done
sleep 86399
"""
_PYTHON = shlex.quote(sys.executable)  # a first line could not name one below a path with a space
SILENT = """\
import mfusepy, stat, sys, time
class Silent(mfusepy.Operations):
    use_ns = True
    def getattr(self, path, fh=None):
        if path != "/":
            time.sleep(86399)
        return {"st_mode": stat.S_IFDIR | 0o755}
mfusepy.FUSE(Silent(), sys.argv[-1], foreground=True)
"""


@pytest.mark.parametrize(
    ("interpreter", "script", "words"),
    [
        ("/bin/sh", "echo no luck; exit 3\n", "cannot mount: no luck"),
        ("/bin/sh", "exit 3\n", "cannot mount: it ended with exit status 3"),
        ("/bin/sh", "sleep 86399\n", "mounts nothing within 5 s"),
        ("/bin/sh", "trap '' TERM; sleep 86399; sleep 86399\n", "mounts nothing within 5 s"),
        ("/bin/sh", f'exec {_PYTHON} -c {shlex.quote(SILENT)} "$@"\n', "mounts but does not read"),
        ("/bin/bash", BUSY, ""),
    ],
    ids=["fails", "ends", "waits", "stubborn", "silent", "busy"],
)
def test_whatever_a_program_does_it_is_ended_and_leaves_nothing(
    workshop: Workshop, tmp_path: Path, interpreter: str, script: str, words: str
) -> None:
    program = tmp_path / "bin/squashfuse_ll"
    program.parent.mkdir()
    program.write_text(f"#!{interpreter}\n{script}")
    program.chmod(0o755)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    variables = {
        "PATH": f"{program.parent}:{workshop.variables['PATH']}",
        "TMPDIR": str(temporary),
        "MARK": workshop.uuid,
    }
    done = workshop.run("prereq", "--json", variables=variables)
    assert building.processes_of(workshop) == {}
    assert str(temporary) not in Path("/proc/self/mountinfo").read_text()
    assert list(temporary.iterdir()) == []
    found = checks(json.loads(done.stdout))
    assert found["squashfuse_ll"]["ok"] is not bool(words)
    assert words in found["squashfuse_ll"]["detail"]
    assert found["squashfuse"]["ok"]


def test_a_broken_project_is_an_error(workshop: Workshop) -> None:
    (workshop.directory / "condainer.yml").write_text("uuid: x\n")
    assert "line 1" in workshop.run("prereq", status=1).stderr


def test_a_base_directory_that_will_not_do(workshop: Workshop) -> None:
    workshop.configure(mount_base_directory="/nowhere")
    found = json.loads(workshop.run("prereq", "--json", status=1).stdout)
    assert not found["can_build"]
    assert "/nowhere" in checks(found)["mount base directory"]["detail"]


def hidden(workshop: Workshop, *programs: str) -> dict[str, Any]:
    """What `prereq` finds where some programs cannot be executed."""
    done = support.without(workshop, programs, '"$@" prereq --json')
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if found["can_build"] and found["exec"] != "no" else 1), (
        done.stderr
    )
    return found


@needs_root
def test_no_mksquashfs(workshop: Workshop) -> None:
    found = hidden(workshop, "mksquashfs")
    assert not found["can_build"]
    assert found["can_mount"]
    assert "squashfs-tools" in checks(found)["mksquashfs"]["hint"]


@needs_root
def test_no_squashfuse(workshop: Workshop) -> None:
    found = hidden(workshop, "squashfuse", "squashfuse_ll")
    assert found["can_build"]
    assert found["can_mount"]
    assert "Debian" in checks(found)["squashfuse"]["hint"]
    assert checks(found)["python"]["ok"]


@needs_root
def test_a_program_that_is_there_but_does_not_mount(workshop: Workshop) -> None:
    """The device is gone: each backend says so itself."""
    script = 'mount --bind /dev/null /dev/fuse; "$@" prereq --json'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *CONDAINER],
        cwd=workshop.directory,
        env=workshop.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert not found["can_mount"]
    assert found["exec"] == "extract"
    assert "cannot mount" in checks(found)["squashfuse_ll"]["detail"]


@needs_root
@pytest.mark.parametrize("device", ["/dev/fuse", "/dev/null"])
def test_a_base_directory_that_is_mounted_noexec(
    workshop: Workshop, built: Workshop, device: str
) -> None:
    """What is mounted there runs; what is unpacked there does not. `exec` does as was said."""
    script = (
        f"mount -t tmpfs -o noexec none {built.base}; mount --bind {device} /dev/fuse; "
        '"$@" prereq --json; "$@" exec -- hard-activated; echo $?; '
        f"umount -l {built.prefix} 2>/dev/null; sleep 1"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *CONDAINER],
        cwd=built.directory,
        env=workshop.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    found, end = json.JSONDecoder().raw_decode(done.stdout)
    rest = done.stdout[end:].split()
    assert not found["can_build"]
    assert not checks(found)["extract"]["ok"]
    if device == "/dev/fuse":
        assert (found["exec"], found["can_mount"]) == ("mount", True)
        assert rest == ["activated", "0"]
    else:
        assert (found["exec"], found["can_mount"]) == ("no", False)
        assert rest == ["125"]
