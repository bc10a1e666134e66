"""The file system through fusepy and mfusepy, for where the kernel's protocol cannot be spoken."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from condainer.system import mounttable
from tests import images, support
from tests.images import daemons, is_mounted, served

if TYPE_CHECKING:
    from pathlib import Path

MODULES = {"fusepy": "fuse", "mfusepy": "mfusepy"}


@pytest.fixture(params=MODULES)
def binding(request: pytest.FixtureRequest) -> str:
    """The name of a binding whose libfuse is there."""
    name: str = request.param
    look = [sys.executable, "-c", f"import {MODULES[name]}"]
    done = subprocess.run(look, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{name}: {done.stderr.splitlines()[-1]}")
    return name


@pytest.mark.skipif(os.getuid() != 0, reason="only root can have the kernel judge")
@pytest.mark.parametrize("options", [("-comp", "zstd"), ("-comp", "lz4", "-no-xattrs")])
def test_everything_is_as_the_kernel_shows_it(
    collection: images.Collection, tmp_path: Path, binding: str, options: tuple[str, ...]
) -> None:
    image = collection.image("every_kind", *options)
    with (
        images.loop_mounted(image, tmp_path / "kernel") as kernel,
        served(image, tmp_path / "fuse", CONDAINER_FUSE_BINDING=binding) as fuse,
    ):
        assert images.differences(kernel, fuse) == []
        assert images.totals(kernel) == images.totals(fuse)


def test_what_is_not_there(collection: images.Collection, tmp_path: Path, binding: str) -> None:
    image = collection.image("small")
    with served(image, tmp_path / "mnt", CONDAINER_FUSE_BINDING=binding) as place:
        for path in ("nosuch", "directory/nosuch", "large/000"):
            with pytest.raises(FileNotFoundError):
                (place / path).lstat()
        with pytest.raises(NotADirectoryError):
            (place / "text" / "x").lstat()
        with pytest.raises(OSError, match="Read-only file system"):
            (place / "new").touch()


def test_options(collection: images.Collection, tmp_path: Path, binding: str) -> None:
    image = collection.image("small")
    options = "uid=12,gid=34,subdir=directory,fsname=größe\\,a\\\\b"
    where = tmp_path / "größe ☃"
    with served(image, where, "-o", options, CONDAINER_FUSE_BINDING=binding) as place:
        assert [path.name for path in place.iterdir()] == ["inner"]
        status = (place / "inner" / "file").stat()
        assert (status.st_uid, status.st_gid, status.st_size) == (12, 34, 2)
        mount = mounttable.mount_at(place)
        assert mount is not None
        assert (mount.kind, mount.source) == ("fuse.condainer", "größe,a\\b")


def test_damage_is_an_error(collection: images.Collection, tmp_path: Path, binding: str) -> None:
    image = tmp_path / "image.squashfs"
    image.write_bytes(collection.image("small", "-b", "4096").read_bytes())
    with served(image, tmp_path / "mnt", CONDAINER_FUSE_BINDING=binding) as place:
        (place / "text").read_bytes()
        os.truncate(image, 200)
        with pytest.raises(OSError, match="Input/output error"):
            (place / "noise").read_bytes()


def test_it_cannot_be_mounted(collection: images.Collection, tmp_path: Path, binding: str) -> None:
    (tmp_path / "file").touch()
    done = images.serve(
        collection.image("small"), tmp_path / "file", CONDAINER_FUSE_BINDING=binding
    )
    assert done.returncode == 1
    assert f"condainer.fuse: cannot mount at {tmp_path / 'file'}: Not a directory\n" in done.stderr


def test_a_signal_unmounts(collection: images.Collection, tmp_path: Path, binding: str) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    done = images.serve(collection.image("small"), place, CONDAINER_FUSE_BINDING=binding)
    assert (done.returncode, done.stderr) == (0, "")
    (daemon,) = daemons(place)
    os.kill(daemon, 15)
    support.wait_for(lambda: not daemons(place))
    assert not is_mounted(place)


def test_a_binding_that_is_not_there(collection: images.Collection, tmp_path: Path) -> None:
    """As where no libfuse can be found, which the bindings look for when they are imported."""
    for name, module in MODULES.items():
        (tmp_path / f"{module}.py").write_text("raise OSError('Unable to find libfuse')")
        path = f"{tmp_path}:{support.REPOSITORY}"
        done = images.serve(
            collection.image("small"), tmp_path, CONDAINER_FUSE_BINDING=name, PYTHONPATH=path
        )
        assert done.returncode == 1
        version = {"fusepy": 2, "mfusepy": 3}[name]
        assert done.stderr.startswith(f"condainer.fuse: {name} needs libfuse {version} (libfuse")
        assert done.stderr.endswith("): Unable to find libfuse\n")


_HIDE = """
for library in $(ldconfig -p | sed -n 's/.*libfuse.*=> //p'); do
  mount --bind /dev/null "$(realpath "$library")"
done
image=$1 place=$2; shift 2
for binding in fusepy mfusepy; do
  CONDAINER_FUSE_BINDING=$binding "$@" "$image" "$place"
  echo "$?"
done
"$@" "$image" "$place" && head -c 5 "$place/text" && umount "$place"
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can hide libraries")
def test_no_library_is_needed(collection: images.Collection, tmp_path: Path) -> None:
    """And what is missing is named to who asks for a binding."""
    argv = [str(collection.image("small")), str(tmp_path), *images.FUSE]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"PATH=$PATH:/sbin; {_HIDE}", "sh", *argv],
        env={**os.environ, "PYTHONPATH": str(support.REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "1\n1\ntext "
    for number, (line, name) in enumerate(zip(done.stderr.splitlines(), MODULES, strict=True)):
        assert line.startswith(f"condainer.fuse: {name} needs libfuse {number + 2} (libfuse")
