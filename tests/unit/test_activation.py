"""The snapshot of activation: stored, read, and applied to somebody's variables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condainer.errors import ImageError
from condainer.running import activation, variables
from condainer.running.activation import Snapshot

if TYPE_CHECKING:
    from pathlib import Path


NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="=\0"), min_size=1)
VALUES = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def snapshot(**variables: str | None) -> Snapshot:
    return Snapshot("/p", "n", tuple(variables.items()))


@given(st.text(), st.text(), st.dictionaries(NAMES, VALUES))
def test_what_is_stored_is_read_back(prefix: str, name: str, variables: dict[str, str]) -> None:
    whole = Snapshot(prefix, name, tuple(variables.items()))
    assert activation.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"prefix": "/p", "name": "n"},
        {"prefix": 1, "name": "n", "variables": {}},
        {"prefix": "/p", "name": "n", "variables": []},
        {"prefix": "/p", "name": "n", "variables": {"A": 1}},
        {"prefix": "/p", "name": "n", "variables": {"A": "\0A\0\0"}},
        {"prefix": "/p", "name": "n", "variables": {"A": "\0not a name\0"}},
        {"prefix": "/p", "name": "n", "variables": {"\0A\0": "x"}},
    ],
)
def test_what_is_no_snapshot_is_refused(data: Any) -> None:  # noqa: ANN401
    with pytest.raises(ImageError, match="is not what it should be"):
        activation.from_json(data)


def test_bytes_that_are_not_utf8_and_places_are_read_back() -> None:
    whole = snapshot(BYTES="\udcff", PLACES="a:\0PATH\0:\0HOME\0/b")
    assert activation.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize("text", ["", "{", "\0", '"x"', "[" * 100_000])
def test_a_file_that_is_no_snapshot_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / ".condainer").mkdir()
    (tmp_path / activation.SNAPSHOT).write_text(text)
    with pytest.raises(ImageError):
        activation.load(tmp_path)


def test_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="was not built by this condainer"):
        activation.load(tmp_path)


def test_variables_are_set_and_unset_and_others_kept() -> None:
    given_variables = {"KEPT": "1", "SET": "old", "GONE": "x"}
    found = variables.apply(snapshot(SET="new", GONE=None, NEVER=None).variables, given_variables)
    assert found == {"KEPT": "1", "SET": "new", "PYTHONNOUSERSITE": "1"}
    assert given_variables == {"KEPT": "1", "SET": "old", "GONE": "x"}


@pytest.mark.parametrize("name", variables.FOREIGN)
def test_what_belongs_to_another_python_goes(name: str) -> None:
    assert name not in variables.apply(snapshot().variables, {name: "x"})
    assert variables.apply(snapshot().variables, {name: "x"}, keep_python_path=True)[name] == "x"
    assert variables.apply(snapshot(**{name: "own"}).variables, {name: "x"})[name] == "own"


def test_the_users_site_on_request() -> None:
    assert variables.apply(snapshot().variables, {}, user_site=True) == {}
    assert variables.apply(snapshot().variables, {"PYTHONNOUSERSITE": "1"}, user_site=True) == {
        "PYTHONNOUSERSITE": "1"
    }


@pytest.mark.parametrize(
    ("value", "given_variables", "expected"),
    [
        ("plain:value", {}, "plain:value"),
        ("\0HOME\0/x", {"HOME": "/h"}, "/h/x"),
        ("/e/bin:\0PATH\0", {"PATH": "/a:/b"}, "/e/bin:/a:/b"),
        ("/e/bin:\0PATH\0", {}, "/e/bin:/bin:/usr/bin"),
        ("/e/bin:\0PATH\0:/x", {"PATH": ""}, "/e/bin:/x"),
        ("/e/lib:\0LD_LIBRARY_PATH\0", {}, "/e/lib:"),
        ("\0MANPATH\0:/e/man", {}, ":/e/man"),
        ("/e/man:", {}, "/e/man:"),
        ("/a:\0X\0:/b:", {}, "/a::/b:"),
        ("\0X\0", {}, ""),
        ("\0A\0\0B\0", {"A": "1", "B": "2"}, "12"),
        ("\0HOME\0", {"HOME": "\\g<1> \\1"}, "\\g<1> \\1"),
        ("a\nb 'q' \"d\" größe", {}, "a\nb 'q' \"d\" größe"),
    ],
)
def test_places_are_filled(value: str, given_variables: dict[str, str], expected: str) -> None:
    assert variables.expand(value, given_variables) == expected


@given(st.text().filter(lambda text: "\0" not in text), st.dictionaries(NAME, st.text()))
def test_values_without_places_stay(value: str, given_variables: dict[str, str]) -> None:
    assert variables.expand(value, given_variables) == value
