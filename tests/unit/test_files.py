"""Reading small files: what is read, and what is refused without waiting for it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from condainer.system import files


def test_a_file_of_the_size_it_may_have(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert files.read(tmp_path / "file", most=5) == b"12345"
    with pytest.raises(OSError, match="it is larger than 4 bytes"):
        files.read(tmp_path / "file", most=4)


def test_a_file_that_does_not_tell_its_size() -> None:
    maps = Path("/proc/self/maps")
    assert maps.stat().st_size == 0
    assert b"[stack]" in files.read(maps)
    with pytest.raises(OSError, match="it is larger than 10 bytes"):
        files.read(maps, most=10)


def test_links_are_followed_unless_a_file_has_to_lie_within(tmp_path: Path) -> None:
    (tmp_path / "top" / "real").mkdir(parents=True)
    (tmp_path / "top" / "real" / "file").write_bytes(b"x")
    (tmp_path / "top" / "directory").symlink_to("real")
    (tmp_path / "top" / "real" / "link").symlink_to("file")
    (tmp_path / "way").symlink_to("top")
    for top, path in ((tmp_path / "top", "directory/file"), (tmp_path / "top", "real/link")):
        assert files.read(top / path) == b"x"
        with pytest.raises(OSError, match="is a symbolic link"):
            files.read(top / path, within=top)
    assert files.read(tmp_path / "way" / "real" / "file", within=tmp_path / "way") == b"x"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200 + "]" * 200, "nested too deeply"),
        ("[" * 999 + "]" * 999, "nested too deeply"),
        ("[" + "9" * 500 + "]", "a number in it is too long"),
        ("[" + "[]," * 1000 + "[]]", "more than 1,000 values"),
        ('{"a": 1', "Expecting"),
        (b"\xff", "decode"),
    ],
)
def test_json_beyond_reason(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        files.parse_json(text, most_values=1000)


def test_json(tmp_path: Path) -> None:
    document = {"a": [1, 2.5, None, {"\ud800": "[[[["}], "b": "x" * 1000}
    (tmp_path / "file").write_text(json.dumps(document))
    assert files.read_json(tmp_path / "file", within=tmp_path) == document
    with pytest.raises(OSError, match="larger"):
        files.read_json(tmp_path / "file", most=100)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    for path in (tmp_path / "pipe", tmp_path / "socket", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"not a regular file|No such device|Is a directory"):
            files.read(path)
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "none")
