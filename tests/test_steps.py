"""Every step of a build runs as if the environment was activated: link scripts, pip, compiling."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from condainer.pipeline import scripts
from condainer.pipeline.packages import package_from_json
from condainer.pipeline.workplace import Workplace
from tests import building
from tests.localchannel.package import Package, put
from tests.test_pip import make_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import Workshop

NAMES = ("CC", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CONDA_SHLVL", "CND_OWN", "PATH", "HOME")
BACKEND = f"""
import json, os, pathlib, shutil, subprocess
found = {{name: os.environ.get(name) for name in {NAMES}}}
found["python"] = shutil.which("python")
found["tool"] = subprocess.check_output(["cnd-tool"], text=True)
place = pathlib.Path(os.environ["CONDA_PREFIX"], "share")
place.mkdir(exist_ok=True)
(place / "of-pip.json").write_text(json.dumps(found))
"""
GIT = '#!/bin/sh\n: > "$CONDA_PREFIX/share/git"\nexec /usr/bin/git "$@"\n'
POST_LINK = (
    "#!/bin/bash\n"
    'mkdir -p "$PREFIX/share"\n'
    'printf "%s|" "$CC" "$CONDA_DEFAULT_ENV" "$CND_OWN" "$(cnd-tool)" "$CONDA_SHLVL" \\\n'
    '  "$PKG_NAME" > "$PREFIX/share/of-link"\n'
)


def _tool(tree: Path) -> Package:
    put(tree, "bin/cnd-tool", "#!/bin/sh\necho tool\n", 0o755)
    put(
        tree, "bin/git", '#!/bin/sh\n: > "$CONDA_PREFIX/share/git"\nexec /usr/bin/git "$@"\n', 0o755
    )
    put(tree, "bin/.tool-post-link.sh", POST_LINK, 0o755)
    put(tree, "etc/conda/activate.d/a.sh", "exit 1\n")
    put(tree, "etc/conda/activate.d/tool.sh", 'export CC="$CONDA_PREFIX/bin/cnd-cc"\n')
    return Package(name="tool", version="1.0")


@pytest.fixture(scope="module")
def tree(
    tmp_path_factory: pytest.TempPathFactory, home: Path, basic_channel: Path
) -> Iterator[tuple[Workshop, Path]]:
    """What was built, unpacked, of a project whose packages have things to run."""
    directory = tmp_path_factory.mktemp("steps")
    tools = building.make_channel(directory / "channel", _tool)
    with building.new_workshop(directory / "my project", home) as made:
        for name in ("cnd_tree", "cnd_repository"):
            source = make_source(made.directory / name, name)
            backend = source / "build/backend.py"
            backend.write_text(BACKEND + backend.read_text().split("\n", 1)[1])
        lines = ["./cnd_tree"]
        repository = made.directory / "cnd_repository"
        if Path("/usr/bin/git").exists():
            run = ("git", "-c", "user.name=a", "-c", "user.email=a@b")
            for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
                subprocess.run([*run, *words], cwd=repository, check=True)
            lines.append(f"git+{repository.as_uri()}")
        listed = "".join(f"    - {line}\n" for line in lines)
        made.environment(
            *("python", "pip", "tool"),
            channel=f"{basic_channel}\n  - {tools}",
            more=f"  - pip:\n{listed}variables:\n  CND_OWN: a b\n",
        )
        outer = {"CONDA_PREFIX": "/opt/conda", "CONDA_SHLVL": "1", "CONDA_PREFIX_1": "/x"}
        made.run("build", variables=outer)
        yield made, building.unpack(made.image, directory / "tree")


def test_pip_runs_as_activated(tree: tuple[Workshop, Path]) -> None:
    made, top = tree
    found = json.loads((top / "share/of-pip.json").read_text())
    assert found["CC"] == f"{made.prefix}/bin/cnd-cc"
    assert found["CONDA_PREFIX"] == str(made.prefix)
    assert found["python"] == f"{made.prefix}/bin/python"
    assert found["HOME"] == made.variables["HOME"]
    assert (found["CONDA_DEFAULT_ENV"], found["CONDA_SHLVL"]) == ("test", "1")
    assert (found["CND_OWN"], found["tool"]) == ("a b", "tool\n")


@pytest.mark.skipif(not shutil.which("/usr/bin/git"), reason="no git")
def test_pip_takes_the_git_of_the_environment(tree: tuple[Workshop, Path]) -> None:
    assert (tree[1] / "share/git").exists()


def test_link_scripts_run_as_activated(tree: tuple[Workshop, Path]) -> None:
    made, top = tree
    text = (top / "share/of-link").read_text()
    assert text == f"{made.prefix}/bin/cnd-cc|test|a b|tool|1|tool|"


# Post-link scripts of a lock file that another program has written


@pytest.mark.parametrize(
    ("listed", "needs", "expected"),
    [
        (("b", "a"), {"a": [], "b": ["a"]}, ("a", "b")),
        (("c", "a", "b"), {"a": [], "b": ["ch::a>=1"], "c": ["b[build=0]"]}, ("a", "b", "c")),
        # What needs something by way of a package without a script.
        (("c", "-b", "a"), {"a": [], "-b": ["a 1.*"], "c": ["-b"]}, ("a", "c")),
        (("a", "b", "c"), {"a": ["b"], "b": ["a", "c"], "c": []}, ("c", "b", "a")),
        (("b", "a"), {"a": ["__glibc >=2.17", "gone"], "b": ["gone", "a"]}, ("a", "b")),
        (("a", "d", "c", "b"), {"a": [], "b": ["a"], "c": ["a"], "d": []}, ("a", "d", "c", "b")),
    ],
    ids=["mixed", "mixed-chain", "no-script-between", "circle", "not-installed", "sorted"],
)
def test_post_link_scripts_run_after_those_of_what_they_need(
    tmp_path: Path, listed: tuple[str, ...], needs: dict[str, list[str]], expected: tuple[str, ...]
) -> None:
    for name, depends in needs.items():
        record = {"name": name, "version": "1", "build": "0", "depends": depends}
        put(tmp_path, f"conda-meta/{name}-1-0.json", json.dumps(record))
        if not name.startswith("-"):
            put(tmp_path, f"bin/.{name}-post-link.sh", 'echo "$PKG_NAME" >>"$PREFIX/ran"\n')
    packages = [package_from_json({"name": name, "version": "1", "build": "0"}) for name in listed]
    workplace = Workplace(
        1, on_line=lambda _: None, on_progress=lambda *_, **__: None, environment=dict(os.environ)
    )
    anyio.run(scripts.run_post_link, tmp_path, packages, workplace)
    assert (tmp_path / "ran").read_text().split() == list(expected)
