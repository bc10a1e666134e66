"""The lines of a lock file: how they are read, and how they are written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from condainer.errors import BuildError
from condainer.pipeline import credentials as credentials_module
from condainer.pipeline import lockfile
from condainer.pipeline.lockfile import Lock, PipPackage
from condainer.pipeline.packages import Package

if TYPE_CHECKING:
    from pathlib import Path


URL = "https://conda.anaconda.org/conda-forge/noarch/some-thing-1.0-h1_3.conda"


MD5 = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("https://user:pa%2Fss@host/channel", "https://host/channel"),
        ("https://token@host:8080/channel", "https://host:8080/channel"),
        ("https://host/t/ab-12/channel", "https://host/channel"),
        ("https://u:p@host/conda/t/********/channel/label/x", "https://host/conda/channel/label/x"),
        ("https://host/channel/noarch/a-1-0.conda#0123", None),
        ("- git+ssh://git@host/x.git", None),
        ("file:///t/ab-12/channel", None),
        ('{"a":"https://host","b":"user@host"}', None),
        ("cp /a/t/b/c from user@host", None),
    ],
)
def test_text_without_credentials(text: str, bare: str | None) -> None:
    assert credentials_module.without(text) == (text if bare is None else bare)
    assert credentials_module.without(f"'{text}', {text}") == f"'{bare or text}', {bare or text}"


def test_credentials_are_those_of_the_channel() -> None:
    channels = ["https://u:p@host/a", "https://host/t/token/ab", "conda-forge"]
    restored = credentials_module.restored
    assert restored("https://host/a/noarch/x.conda", channels) == f"{channels[0]}/noarch/x.conda"
    assert restored("https://host/ab", channels) == channels[1]
    assert restored("https://host/abc", channels) == "https://host/abc"
    assert restored("https://other/a", channels) == "https://other/a"


@pytest.mark.parametrize(
    ("checksum", "md5", "sha256"),
    [("", "", ""), (f"#{MD5}", MD5, ""), (f"#sha256:{MD5}{MD5}", "", MD5 * 2)],
)
def test_line_names_a_package(checksum: str, md5: str, sha256: str) -> None:
    assert lockfile.package_from_line(URL + checksum) == Package(
        name="some-thing",
        version="1.0",
        build="h1_3",
        build_number=3,
        channel="https://conda.anaconda.org/conda-forge",
        subdir="noarch",
        url=URL,
        md5=md5,
        sha256=sha256,
        size=0,
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    package = replace(lockfile.package_from_line(f"{URL}#{MD5}"), size=4711, sha256=MD5 * 2)
    added = [
        PipPackage("plain", "1.0", "", ""),
        PipPackage("from-a-file", "2.0", "file:///a%20b/from_a_file-2.0.whl", MD5 * 2),
        PipPackage("from-git", "3", "git+https://example.org/x.git@0123abc", ""),
    ]
    path = tmp_path / "lock.txt"
    path.write_text(lockfile.render([package], added, 1_700_000_000))
    assert lockfile.read(path) == Lock((package,), tuple(added), 1_700_000_000)
    path.write_text(path.read_text().replace("# size 4711", "# size unknown"))
    assert lockfile.read(path).packages == (replace(package, size=0),)
    path.write_text(path.read_text().replace("@EXPLICIT", ""))
    with pytest.raises(BuildError, match="no line @EXPLICIT"):
        lockfile.read(path)
