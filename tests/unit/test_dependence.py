"""What activation scripts can depend on, and scripts that do not end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from condainer.pipeline import dependence
from condainer.running import sourcing

if TYPE_CHECKING:
    from pathlib import Path


def test_scripts_that_do_not_end_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sourcing, "LIMIT", 1.0)
    scripts = []
    for name, text in {
        "a": "export A=1",
        "b": "export B=1; sleep 1000",
        "c": "export C=$A",
    }.items():
        (tmp_path / name).write_text(text)
        scripts.append(str(tmp_path / name))
    done = sourcing.source(scripts, dict(os.environ))
    assert (done.variables["A"], done.variables["C"], "B" in done.variables) == ("1", "1", False)
    assert len(done.left_out) == 1
    assert done.left_out[0].startswith(f"{tmp_path}/b ")


@pytest.mark.parametrize(
    "text",
    [
        *("eval x", "export A=$(x)", "export A=`x`", "export $A=1", "foo", "export A=${!B}"),
        *("[ -v $A ]", "[ -t 0 ]", "a#b; evil", "echo a#b; evil", "export -p", "export A=$1"),
        *("for a in b; do foo; done", "X=1 foo", "export A=$'x'", ". x", "echo x | foo"),
        *("[[ $A -eq 1 ]]", "export A=$((B))", "f() { x; }", "echo x > file", "cat <<E\nE"),
        *("export A=1 &", "export A=1 \\\n $B=2", "export A=~-", "if", 'export A="$(x)"'),
        *('export A="${B:-$(x)}"', "export A=${B/x/y}", "export A=$@", "export 'A=1", "set -e"),
    ],
)
def test_scripts_that_may_look_at_everything(text: str) -> None:
    found = dependence.of([text])
    assert not found.is_straight
    assert not found.is_plain or text == "if"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((f"export A={value}\n", True) for value in ("$RANDOM", "/tmp/$$", "${$}", "$(date +%s)")),
        *(
            ("export A=x$SECONDS", True),
            ('A="$(mktemp -d)"', True),
            ("export B=$EPOCHREALTIME", True),
        ),
        ("# up to date\nexport A=1\n", False),
        ('eval oldval="\\$${from}$thing"\nenv > /tmp/old-env-$$.txt\n', False),
    ],
)
def test_what_is_another_thing_each_time(text: str, expected: bool) -> None:  # noqa: FBT001
    assert dependence.of([text]).is_volatile is expected
