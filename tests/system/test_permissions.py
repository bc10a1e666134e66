"""Whatever is unpacked or installed: no setuid or setgid bit, and nobody else writes to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests import building, support, users
from tests.localchannel.package import PLACEHOLDER, Package, put

if TYPE_CHECKING:
    from pathlib import Path

    from tests.localchannel.package import Recipe
    from tests.support import Workshop

FORBIDDEN = 0o7022
MODES = (0o4755, 0o6755, 0o2711, 0o777, 0o775, 0o1777, 0o666)


def open_package(tree: Path) -> Package:
    """A package with every permission that none should have."""
    for mode in MODES:
        put(tree, f"share/open/{mode:04o}", f"{mode:04o}\n", mode)
        put(tree, f"share/with-prefix/{mode:04o}", f"# {PLACEHOLDER}\n", mode)
    return Package(name="open", version="1.0")


def watcher(note: Path, project: Path) -> Recipe:
    """A package whose script notes the permissions of what a build has made so far."""

    def recipe(tree: Path) -> Package:
        script = (
            "#!/bin/bash\n"
            f'stat -c %a "$PREFIX" "{project}"/.*.squashfs.*.part >"{note}" 2>&1\n'
            'mkdir "$PREFIX/made"; chmod 7777 "$PREFIX/made"\n'
            'echo made >"$PREFIX/made/file"; chmod 6777 "$PREFIX/made/file"\n'
            'chmod 777 "$PREFIX" "$PREFIX/share/open/0666"\n'
        )
        put(tree, "bin/.watcher-post-link.sh", script, 0o755)
        return Package(name="watcher", version="1.0", depends=("open",))

    return recipe


def too_open(top: Path) -> list[str]:
    """What is below a directory, or is it, and has a permission that nothing should have."""
    found = [(path, path.lstat().st_mode) for path in [top, *top.rglob("*")]]
    return [
        f"{path} {mode:o}" for path, mode in found if not stat.S_ISLNK(mode) and mode & FORBIDDEN
    ]


def in_image(image: Path) -> list[str]:
    """Permissions, owner and path of all that is in an image."""
    command = ["unsquashfs", "-lln", str(image)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.split(maxsplit=5) for line in listing.splitlines()]
    return sorted(f"{mode} {owner} {path}" for mode, owner, *_, path in lines)


@pytest.fixture
def project(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A project of packages with all permissions, and with a package cache of its own."""
    recipes = (open_package, watcher(tmp_path / "note", workshop.directory))
    channel = building.make_channel(tmp_path / "channel", *recipes)
    workshop.configure(package_cache=tmp_path / "packages")
    workshop.environment("open", "watcher", channel=channel)
    return workshop


def build(workshop: Workshop, umask: int, *options: str) -> None:
    """Build with the umask of some user."""
    command = ["bash", "-c", f'umask {umask:o}; exec "$@"', "bash", *support.CONDAINER, "build"]
    subprocess.run(
        [*command, "--force", *options],
        cwd=workshop.directory,
        env=workshop.variables,
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
@pytest.mark.parametrize("installer", ["rattler", "micromamba"])
def test_a_build_leaves_nothing_open(
    project: Workshop, tmp_path: Path, micromamba: Path, installer: str, umask: int
) -> None:
    name = "rattler" if installer == "rattler" else str(micromamba)
    build(project, umask, "--installer", name)
    assert "compressing all again" not in project.build_log.read_text()
    prefix, *part = (tmp_path / "note").read_text().split()
    assert (prefix, part) == ("700", ["600"])
    streamed = in_image(project.image)
    assert "drwxr-xr-x 0/0 squashfs-root" in streamed
    build(project, umask, "--installer", name, "--no-overlap")
    assert in_image(project.image) == streamed
    assert too_open(building.unpack(project.image, tmp_path / "unpacked")) == []
    assert too_open(tmp_path / "packages") == []
    beside = [path for path in project.directory.iterdir() if project.uuid in path.name]
    assert {path.stat().st_mode & 0o777 for path in beside} == {0o644 & ~umask}


def test_what_is_in_the_package_cache_already_is_closed(project: Workshop, tmp_path: Path) -> None:
    """Other programs, and older condainers, have unpacked it as it was."""
    build(project, 0o022)
    for name in ("share/open/0666", "share/open", "share/with-prefix/0666", "info"):
        (tmp_path / "packages/open-1.0-0" / name).chmod(0o777)
    build(project, 0o022)
    assert "compressing all again" not in project.build_log.read_text()
    assert too_open(tmp_path / "packages") == []
    assert too_open(building.unpack(project.image, tmp_path / "unpacked")) == []


def test_a_failed_build_leaves_nothing_open(
    workshop: Workshop, tmp_path: Path, hard_channel: Path
) -> None:
    script = 'chmod 6777 "$PREFIX/share/hard-text/version.txt"; exit 1'
    odd = building.make_channel(tmp_path / "channel", building.odd_package(script))
    workshop.configure(package_cache=tmp_path / "packages")
    workshop.environment("odd", "hard-text=1", channel=f"{odd}\n  - {hard_channel}")
    workshop.run("build", status=1)
    assert too_open(tmp_path / "packages") == []


def test_a_link_in_place_of_a_package_is_not_followed(project: Workshop, tmp_path: Path) -> None:
    put(tmp_path, "outside/file", "", 0o666)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/open-1.0-0").symlink_to(tmp_path / "outside")
    project.run("build", status=None)
    assert (tmp_path / "outside/file").stat().st_mode & 0o777 == 0o666


def test_an_application_of_somebody_else_is_left_as_it_is(
    workshop: Workshop, tmp_path: Path
) -> None:
    workshop.configure(non_conda_application="true")
    for mode in MODES:
        put(workshop.prefix, f"bin/{mode:04o}", "", mode)
    workshop.prefix.chmod(0o700)
    before = building.picture(workshop.prefix / "bin")
    workshop.run("build")
    assert building.picture(workshop.prefix / "bin") == before
    shutil.rmtree(workshop.prefix)
    unpacked = building.unpack(workshop.image, tmp_path / "unpacked")
    assert too_open(unpacked) == []
    assert stat.S_IMODE(unpacked.stat().st_mode) == 0o755


@pytest.fixture
def hostile(project: Workshop, tmp_path: Path) -> Workshop:
    """A project with an image that mksquashfs was given everything for."""
    build(project, 0o022)
    tree = building.unpack(project.image, tmp_path / "hostile")
    for mode in MODES:
        for name in ("0666", "0777"):
            put(tree, f"directory-{mode:04o}/{name}", f"{mode:04o}\n")
        (tree / f"directory-{mode:04o}/0666").chmod(mode)
        (tree / f"directory-{mode:04o}").chmod(mode | 0o700)
        if os.geteuid() == 0:
            os.chown(tree / f"directory-{mode:04o}", users.BOB, users.BOB)
            os.chown(tree / f"directory-{mode:04o}/0777", users.BOB, users.BOB)
    (tree / "link").symlink_to("/etc/passwd")
    tree.chmod(0o4777)
    command = ["mksquashfs", str(tree), str(project.image), "-noappend", "-quiet"]
    subprocess.run(command, check=True, capture_output=True)
    return project


@pytest.mark.parametrize("hidden", [[], pytest.param(["unsquashfs"], marks=building.needs_root)])
@pytest.mark.parametrize("umask", [0, 0o077])
def test_unpacking_leaves_nothing_open(hostile: Workshop, hidden: list[str], umask: int) -> None:
    hostile.base.chmod(0o2755)
    done = support.without(hostile, hidden, f'umask {umask:o}; "$@" mount --backend extract')
    try:
        assert done.returncode == 0, done.stderr
        assert not hostile.is_mounted()
        assert stat.S_IMODE(hostile.prefix.stat().st_mode) == 0o500
        assert too_open(hostile.prefix) == []
        owners = {path.lstat().st_uid for path in hostile.prefix.rglob("*")}
        assert owners == {os.geteuid()}
        assert (hostile.prefix / "directory-0777/0666").read_text() == "0777\n"
    finally:
        hostile.run("umount")


def test_repacking_leaves_nothing_open(hostile: Workshop, tmp_path: Path) -> None:
    hostile.run("build", "--repack")
    assert {line.split()[1] for line in in_image(hostile.image)} == {"0/0"}
    assert too_open(building.unpack(hostile.image, tmp_path / "unpacked")) == []


@building.needs_root
@pytest.mark.parametrize("umask", [0, 0o002])
def test_what_one_user_has_unpacked_another_cannot_read(hostile: Workshop, umask: int) -> None:
    """Also where a directory hands down permissions for another user, as with `setfacl -d`."""
    with users.namespace() as place:
        directory = place.project(users.ANN)
        base = place.directory / "base"
        base.mkdir()
        base.chmod(0o1777)
        # What `setfacl -d -m user:BOB:rwx` writes: acl(5); version, then tag, permissions and id.
        entries = ((1, 7, -1), (2, 7, users.BOB), (4, 7, -1), (16, 7, -1), (32, 7, -1))
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        with contextlib.suppress(OSError):  # of file systems that have none
            os.setxattr(base, "system.posix_acl_default", acl)
        text = (hostile.directory / "condainer.yml").read_text()
        (directory / "condainer.yml").write_text(text.replace(str(hostile.base), str(base)))
        shutil.copy(hostile.image, directory)
        place.run(users.ANN, "mount", "--backend", "extract", cwd=directory, umask=umask)
        prefix = base / hostile.prefix.name
        assert (prefix / "directory-0777/0666").read_text() == "0777\n"
        file = f"{prefix}/directory-0777/0666"
        for command in (f"cat {file}", f"echo >{file}", f"ls {prefix}", f"touch {prefix}/new"):
            done = place.enter(users.BOB, "sh", "-c", command)
            assert done.returncode != 0
            assert "Permission denied" in done.stderr
        place.run(users.ANN, "umount", cwd=directory)
