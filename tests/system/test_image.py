"""Reading the head of an image and the manifest in it: whole images, cut ones, damaged ones."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from condainer.errors import ImageError
from condainer.project import image
from condainer.system import tools
from tests import support
from tests.forgery import Forgery
from tests.images import bomb

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop

MANIFEST = {"format": 1, "name": "größe", "packages": [{"name": f"p{n}"} for n in range(3000)]}
COMPRESSORS = tools.find_mksquashfs().compressors


def make(directory: Path, *options: str, manifest: Any = MANIFEST) -> Path:  # noqa: ANN401
    """A real image with a manifest, some files and some directories."""
    tree = directory / "tree"
    (tree / ".condainer").mkdir(parents=True)
    (tree / ".condainer" / "manifest.json").write_text(
        manifest if isinstance(manifest, str) else json.dumps(manifest)
    )
    for number in range(300):
        (tree / f"directory-{number % 7}").mkdir(exist_ok=True)
        (tree / f"directory-{number % 7}" / f"file-{number}").write_text(f"{number}\n" * number)
    path = directory / "image.squashfs"
    subprocess.run(
        ["mksquashfs", tree, path, "-noappend", "-all-root", *options],
        check=True,
        capture_output=True,
    )
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("whole"), "-comp", "zstd", "-b", "8192")


@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("block_size", [4096, 131072, 1 << 20])
def test_superblock(tmp_path: Path, compression: str, block_size: int) -> None:
    path = make(tmp_path, "-comp", compression, "-b", str(block_size))
    found = image.read_superblock(path)
    assert found.compression == compression
    assert found.block_size == block_size
    assert found.inodes == 1 + 2 + 7 + 300
    assert path.stat().st_size - 4096 < found.bytes_used <= path.stat().st_size


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_manifest(tmp_path: Path, compression: str) -> None:
    path = make(tmp_path, "-comp", compression)
    assert image.read_manifest(path) == MANIFEST


@pytest.mark.parametrize(
    "options",
    [
        ("-no-fragments",),
        ("-always-use-fragments",),
        ("-noI", "-noD", "-noF"),
        ("-b", "4096", "-no-duplicates"),
        ("-no-exports",),
        ("-nopad",),
    ],
)
def test_manifest_in_images_of_other_makes(tmp_path: Path, options: tuple[str, ...]) -> None:
    assert image.read_manifest(make(tmp_path, *options)) == MANIFEST


def test_a_manifest_in_a_large_root_directory(tmp_path: Path) -> None:
    """With an index, as directories of more than 8 KiB have one."""
    for number in range(3000):
        path = tmp_path / "tree" / f"name-of-some-length-{number}"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "tree" / ".condainer").mkdir()
    (tmp_path / "tree" / ".condainer" / "manifest.json").write_text("{}")
    path = tmp_path / "image"
    subprocess.run(["mksquashfs", tmp_path / "tree", path], check=True, capture_output=True)
    assert image.read_manifest(path) == {}


def test_the_manifest_of_a_built_image(built: Workshop) -> None:
    found = image.read_manifest(built.image)
    assert found["name"] == "test"
    assert found["prefix"] == str(built.prefix)


def test_an_image_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    path = tmp_path / "image"
    subprocess.run(["mksquashfs", tmp_path / "tree", path], check=True, capture_output=True)
    with pytest.raises(ImageError, match=r"was not built by condainer: it has no \.condainer"):
        image.read_manifest(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "\0"])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ImageError):
        image.read_manifest(make(tmp_path, manifest=text))


@pytest.mark.parametrize(
    "manifest",
    [
        {"name": ["x"]},
        {"name": None},
        {"built": 2024},
        {"packages": "many"},
        {"packages": {"a": 1}},
        {"packages": 1e300},
        {"pip": None},
        {"tools": []},
        {"tools": {"a": [[[]]]}},
    ],
)
def test_a_manifest_with_other_types(tmp_path: Path, manifest: Any) -> None:  # noqa: ANN401
    with pytest.raises(ImageError, match=r"the manifest of .*image\.squashfs is not what it"):
        image.read_manifest(make(tmp_path, manifest=manifest))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"packages": ' + "9" * 100_000 + "}",
        '{"packages": ' + "[" * 200 + "]" * 200 + "}",
        '{"packages": [' + "[],{}," * 300_000 + "[]]}",
        "{" + " " * (17 << 20) + "}",
    ],
    ids=["deep", "number", "too deep to be written", "many", "large"],
)
def test_a_manifest_beyond_reason(tmp_path: Path, text: str) -> None:
    with pytest.raises(ImageError, match=r"the image .*image\.squashfs cannot be used"):
        image.read_manifest(make(tmp_path, manifest=text))


def test_a_bomb_in_the_place_of_the_manifest(tmp_path: Path) -> None:
    """40 KB of image that become 400 MB, in a process whose memory is looked at."""
    options = ("-comp", "zstd", "-noI", "-noD", "-no-fragments", "-b", "1M")
    path = make(tmp_path, *options, manifest="x" * 200_000)
    forgery = Forgery(path)
    block = bomb("zstd", 400 << 20)
    place = forgery.data.index(b"x" * 100_000)
    forgery.data[place : place + len(block)] = block
    forgery.inode(b".condainer/manifest.json", 32, "<I", len(block))
    path.write_bytes(forgery.data)
    done = subprocess.run(
        [sys.executable, "-c", ONE, path],
        cwd=support.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200_000


ONE = """
import sys
from pathlib import Path
from condainer.project import image
from condainer.errors import ImageError

try:
    image.read_manifest(Path(sys.argv[1]))
except ImageError as error:
    if "cannot be used" not in error.message:
        sys.exit(error.message)
    # Not what rusage tells: that begins with what the process was forked from.
    (most,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    print(most)
else:
    sys.exit("it was read")
"""


def test_a_manifest_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "tree" / ".condainer" / "manifest.json").mkdir(parents=True)
    path = tmp_path / "image"
    subprocess.run(["mksquashfs", tmp_path / "tree", path], check=True, capture_output=True)
    with pytest.raises(ImageError, match="is no file"):
        image.read_manifest(path)


def test_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot read the image .*: No such file"):
        image.read_superblock(tmp_path / "none")


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="is not a regular file"):
        image.read_superblock(tmp_path / "pipe")


def test_other_versions_of_the_format(whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[28:30] = (3).to_bytes(2, "little")
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(ImageError, match=r"is squashfs 3\.0; only 4\.0 can be read"):
        image.read_superblock(tmp_path / "image")


def test_padding_may_be_missing(whole: Path, tmp_path: Path) -> None:
    used = image.read_superblock(whole).bytes_used
    (tmp_path / "image").write_bytes(whole.read_bytes()[:used])
    assert image.read_manifest(tmp_path / "image") == MANIFEST


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_cut_image_is_refused(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    used = image.read_superblock(whole).bytes_used
    length = data.draw(st.integers(0, used - 1))
    (tmp_path / "image").write_bytes(whole.read_bytes()[:length])
    with pytest.raises(ImageError):
        image.read_superblock(tmp_path / "image")


@given(data=st.data())
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)
def test_damaged_bytes_give_an_error_or_a_value(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(whole.read_bytes())
    tables = len(content) - 8192  # where nearly everything of interest is; and the superblock
    where = st.one_of(
        st.integers(0, 95), st.integers(tables, len(content) - 1), st.integers(0, len(content) - 1)
    )
    for position in data.draw(st.lists(where, min_size=1, max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "image"
    path.write_bytes(content)
    try:
        found = image.read_manifest(path)
    except ImageError as error:
        assert str(path) in error.message  # noqa: PT017  (most images are refused, not all)
    else:
        assert isinstance(found, dict)


MANY = """
import random, resource, sys
from pathlib import Path
from condainer.project import image
from condainer.errors import ImageError

resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
whole, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
source = random.Random(int(sys.argv[3]))
refused = 0
for _ in range(1500):
    content = bytearray(whole)
    for _ in range(source.choice((1, 1, 2, 5, 50))):
        tables = source.randrange(len(whole) - 8192, len(whole))
        where = source.choice((source.randrange(96), tables))
        content[where] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
    path.write_bytes(content)
    try:
        image.read_manifest(path)
    except ImageError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("options", [("-comp", "gzip"), ("-noI", "-noId", "-b", "4096")])
def test_damage_costs_neither_memory_nor_time(tmp_path: Path, options: tuple[str, ...]) -> None:
    """In a process that may take 2 GB and some seconds of processor time.

    Images whose tables are not compressed let the damage through to their structures.
    """
    path = make(tmp_path, *options)
    done = subprocess.run(
        [sys.executable, "-c", MANY, path, tmp_path / "damaged", "1"],
        cwd=support.REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (40, 40)),
    )
    assert done.returncode == 0, done.stderr
    assert 100 < int(done.stdout) <= 1500
