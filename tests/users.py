"""Other users, side by side, in a mount namespace of their own.

In it anybody may open /dev/fuse and see this checkout, whatever the machine allows. Only root can
become other users.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import site
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests import support

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PYTHON = os.path.realpath(sys.executable)
"""Other users can run it; the link to it in a virtual environment may be closed to them."""

ANN, BOB = 65534, 1  # fusermount wants users to have names, and these have one everywhere

_PREPARE = """
set -e
directory=$1
shift
mount --make-rprivate /
mknod -m 666 "$directory/fuse" c 10 229
mount --bind "$directory/fuse" /dev/fuse
for file in $(which -a $HIDDEN) $CLOSED; do mount --bind /dev/null "$file"; done
while [ $# -gt 0 ]; do
  mount --bind "$1" "$directory/$2"
  shift 2
done
echo ready
exec cat
"""


@dataclass
class Place:
    """A mount namespace, and a directory in it that everybody can read.

    Attributes:
        directory: that directory.
        pid: of a process in the namespace.
    """

    directory: Path
    pid: int

    def run(
        self,
        user: int,
        *arguments: str,
        cwd: Path,
        status: int | None = 0,
        umask: int = 0o022,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run `condainer` as some user."""
        program = (PYTHON, "-m", "condainer", *arguments)
        done = self.enter(user, *program, cwd=cwd, umask=umask, **variables)
        if status is not None:
            assert done.returncode == status, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    def enter(
        self,
        user: int,
        *argv: str,
        cwd: Path = Path("/"),
        umask: int = 0o022,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as some user."""
        with self.start(
            user, *argv, cwd=cwd, umask=umask, stdin=subprocess.DEVNULL, **variables
        ) as process:
            out, errors = process.communicate(timeout=support.PATIENCE * 2)
        return subprocess.CompletedProcess(argv, process.returncode, out, errors)

    def start(
        self,
        user: int,
        *argv: str,
        cwd: Path = Path("/"),
        umask: int = 0o022,
        stdin: int = subprocess.DEVNULL,
        **variables: str,
    ) -> subprocess.Popen[str]:
        """Start a program as some user and go on."""
        given = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self.directory / f"home-{user}"),
            "PYTHONPATH": f"{self.directory}/library",
            "CONDAINER_INSTALLER": "rattler",
            **variables,
        }
        return subprocess.Popen(
            [
                *("nsenter", "-m", f"--wd={cwd}", "-t", str(self.pid), "--"),
                *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"),
                *argv,
            ],
            env=given,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            umask=umask,
            text=True,
        )

    def project(self, user: int, name: str = "project") -> Path:
        """An empty directory that belongs to a user."""
        directory = self.directory / f"home-{user}" / name
        directory.mkdir(parents=True)
        for path in (directory, directory.parent):
            os.chown(path, user, user)
        return directory

    @property
    def base(self) -> Path:
        """The mount base directory, which all users share."""
        return self.directory / "base"

    @property
    def anns(self) -> Path:
        """The project that Ann has built."""
        return self.directory / f"home-{ANN}" / "project"

    def configure(
        self, directory: Path, identity: str, *, base: Path | None = None, more: str = ""
    ) -> None:
        """Write the files of a project.

        Args:
            directory: of the project.
            identity: its UUID.
            base: the mount base directory; None for the one that all users share.
            more: further lines of condainer.yml.
        """
        (directory / "condainer.yml").write_text(
            f"uuid: {identity}\nmount_base_directory: {base or self.base}\n"
            f"unmount_after: 0.5\n{more}"
        )
        (directory / "environment.yml").write_text(
            f"name: theirs\nchannels: [{self.directory}/channel, nodefaults]\n"
            "dependencies: [python, hard-hello]\n"
        )


@contextlib.contextmanager
def namespace(
    hidden: Sequence[str] = (), closed: Sequence[str] = (), **shown: Path
) -> Iterator[Place]:
    """A place to be other users in.

    Args:
        hidden: programs that nobody can execute in that place, wherever they are on PATH.
        closed: devices that are not what they are elsewhere.
        shown: directories that they are to see in that place, by the names they are to have.
    """
    directory = Path(tempfile.mkdtemp(prefix="cndt-", dir="/tmp"))
    directory.chmod(0o755)
    (packages,) = [path for path in site.getsitepackages() if (Path(path) / "anyio").is_dir()]
    shown = {"checkout": support.REPOSITORY, "packages": Path(packages), **shown}
    for name in shown:
        (directory / name).mkdir()
    # One directory, as where all was installed together: what is started looks nowhere else.
    library = directory / "library"
    library.mkdir()
    for path in Path(packages).iterdir():
        (library / path.name).symlink_to(directory / "packages" / path.name)
    for name in ("condainer", "tests"):
        (library / name).symlink_to(directory / "checkout" / name)
    words = [word for name, path in shown.items() for word in (str(path), name)]
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", _PREPARE, "sh", str(directory), *words],
        env={**os.environ, "HIDDEN": " ".join(hidden), "CLOSED": " ".join(closed)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        try:
            yield Place(directory, holder.pid)
        finally:
            holder.communicate()
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def shared_project(channel: Path) -> Iterator[Place]:
    """A place in which Ann has built a project; afterwards its mounts must have gone."""
    with namespace(channel=channel) as place:
        place.base.mkdir()
        place.base.chmod(0o1777)
        place.configure(place.project(ANN), str(uuid.uuid4()))
        place.run(ANN, "build", "-q", cwd=place.anns)
        yield place
        left = f"left: {list(place.base.iterdir())}"
        support.wait_for(lambda: not list(place.base.iterdir()), left)


def make(path: Path, mode: int, owner: int = 0, group: int = 0) -> Path:
    """Make a directory with a mode that some user owns."""
    path.mkdir()
    path.chmod(mode)
    os.chown(path, owner, group)
    return path
