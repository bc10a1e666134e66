"""The local channel: what is built is solved for, installed and run."""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import os
import re
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler import Gateway, MatchSpec, RepoDataRecord, install, solve
from rattler.exceptions import InstallerError, SolverError

from tests.localchannel import PLACEHOLDER, ensure, package_names
from tests.localchannel.hardcases import BINARY, NAMES, RECIPES, TEXT
from tests.localchannel.package import EPOCH, SITE_PACKAGES, write
from tests.localchannel.requirements import depends, match_spec

if TYPE_CHECKING:
    from collections.abc import Iterator


def solve_for(channel: str, *specs: str) -> list[RepoDataRecord]:
    return asyncio.run(solve([channel], specs, gateway=Gateway()))


def link(records: list[RepoDataRecord], prefix: Path, cache: Path) -> None:
    asyncio.run(install(records, prefix, cache_dir=cache, show_progress=False))


def run(*command: str | Path) -> str:
    """Run a program of an environment, without what this interpreter was told by its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pkgs")


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """An environment with one of each of the hard packages that can be installed together."""
    prefix = tmp_path_factory.mktemp("hard")
    names = ("text", "binary", "links", "hello", "activate", "empty", "names", "modes", "bz2")
    specs = ["python", "clobber-a", "clobber-b", "hard-times", *(f"hard-{name}" for name in names)]
    link(solve_for(ensure("hard").as_uri(), *specs), prefix, cache)
    return prefix


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """An environment with everything that the basic channel has."""
    prefix = tmp_path_factory.mktemp("basic")
    specs = ["python", "pip", "pandas", "pygments"]
    link(solve_for(ensure("basic").as_uri(), *specs), prefix, cache)
    return prefix


def test_text_placeholders_are_replaced(hard: Path) -> None:
    assert (hard / "etc/hard-text.conf").read_text() == TEXT.replace(PLACEHOLDER, str(hard))
    assert run(hard / "bin/hard-text") == f"2.0 {hard}"


def test_binary_placeholders_are_replaced_and_padded(hard: Path) -> None:
    content = (hard / "share/hard-binary/data.bin").read_bytes()
    assert len(content) == len(BINARY)
    strings = [part.decode() for part in content.split(b"\0") if part]
    assert strings[1] == f"first={hard}/share/hard-binary"
    assert strings[2] == f"second={hard}/lib:{hard}/lib64"
    assert strings[3] == "end of the binary"


@pytest.mark.parametrize(
    ("link_name", "target"),
    [
        ("file", "target/file.txt"),
        ("directory", "target"),
        ("target/upwards", "../target/file.txt"),
        ("dangling", "nowhere"),
    ],
)
def test_soft_links_are_kept(hard: Path, link_name: str, target: str) -> None:
    assert str((hard / "share/hard-links" / link_name).readlink()) == target


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_is_possible(hard: Path, name: str) -> None:
    assert (hard / "share/hard-names" / name).read_text() == f"{name}\n"


@pytest.mark.parametrize("mode", ["0755", "0644", "0444", "0600"])
def test_modes_are_kept(hard: Path, mode: str) -> None:
    status = (hard / "share/hard-modes" / mode).stat()
    assert stat.S_IMODE(status.st_mode) == int(mode, 8)


def test_times_are_kept(hard: Path) -> None:
    assert (hard / "share/hard-times/old.txt").stat().st_mtime < EPOCH
    assert (hard / "lib/hard-times/uncompiled.py").stat().st_mtime == EPOCH


def test_older_archives_and_empty_files_are_installed(hard: Path) -> None:
    assert (hard / "share/hard-bz2.txt").read_text() == f"{hard}\n"
    assert (hard / "share/hard-empty/file").read_bytes() == b""


def test_one_of_two_packages_wins_a_path(hard: Path) -> None:
    assert (hard / "share/clobber.txt").read_text() in {"from clobber-a\n", "from clobber-b\n"}


def test_entry_point_runs_from_the_prefix(hard: Path) -> None:
    assert run(hard / "bin/hard-hello") == f"hello from {hard}"


def test_activation_scripts_do_what_they_say(hard: Path) -> None:
    script = """
    export CONDA_PREFIX="$1" HARD_UNWANTED=1
    for file in "$1"/etc/conda/activate.d/*.sh; do . "$file"; done
    hard-activated; printf '%s|%s|%s' "$HARD_VALUE" "$HARD_PREFIX" "${HARD_UNWANTED-unset}"
    """
    value = "two  words \"double\" 'single' $HOME\nsecond line, größer"
    expected = f"activated\n{value}|{hard}/share/hard-activate|unset"
    assert run("sh", "-c", script, "sh", hard) == expected


def test_conflicting_packages_have_no_solution() -> None:
    channel = ensure("hard").as_uri()
    assert [str(record.version) for record in solve_for(channel, "hard-text")] == ["2.0"]
    with pytest.raises(SolverError, match="conflict-a"):
        solve_for(channel, "conflict-a", "conflict-b")


def test_python_stands_on_its_own(hard: Path) -> None:
    program = """if True:
        import sys, sysconfig, ssl, sqlite3, ctypes, zlib, bz2, lzma, json
        paths = sysconfig.get_paths()
        print(json.dumps([sys.prefix, sys.base_prefix, ssl.__file__, sqlite3.__file__,
            paths["purelib"], paths["scripts"], *sys.path[1:]]))
        maps = [line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps")
            if "python" in line]
        print(json.dumps(maps))
    """
    paths, libraries = map(json.loads, run(hard / "bin/python", "-c", program).splitlines())
    assert [path for path in paths + libraries if not path.startswith(str(hard))] == []
    assert str(hard / SITE_PACKAGES) in paths


def test_packaged_bytecode_is_up_to_date(basic: Path) -> None:
    command = [str(basic / "bin/python"), "-v", "-c", "import asyncio, ssl, numpy, pandas"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = [line for line in done.stderr.splitlines() if line.startswith("# code object from")]
    # Only these come compiled: the library, but for the file with the prefix in it, and the
    # packages that are not noarch.
    compiled = re.compile(r"/python3\.\d+/(?!site-packages|_sysconfig)|/(numpy|pandas)/")
    packaged = [line for line in loaded if compiled.search(line)]
    assert [line for line in packaged if not line.endswith(".pyc'")] == []
    assert len(packaged) > 100


def test_pip_lists_what_conda_installed(basic: Path) -> None:
    listed = json.loads(run(basic / "bin/python", "-m", "pip", "list", "--format", "json"))
    installed = {file.name.rsplit("-", 2)[0] for file in basic.glob("conda-meta/*.json")}
    assert {canonicalize_name(entry["name"]) for entry in listed} == installed - {"python"}
    show = run(basic / "bin/python", "-m", "pip", "show", "-v", "numpy")
    assert "Installer: conda" in show


def test_pip_installs_into_the_prefix(basic: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "tinywheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "tinywheel-1.0.dist-info"
        archive.writestr("tinywheel.py", "VALUE = 42\n")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinywheel\nVersion: 1.0\n"
        )
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")
    python = basic / "bin/python"
    options = ["--no-index", "--root-user-action", "ignore", "--quiet"]
    run(python, "-m", "pip", "install", *options, wheel)
    assert (basic / SITE_PACKAGES / "tinywheel.py").exists()
    assert run(python, "-c", "import tinywheel; print(tinywheel.VALUE)") == "42"


def test_commands_of_wheels_run(basic: Path) -> None:
    assert run(basic / "bin/f2py", "-v")
    assert run(basic / "bin/pygmentize", "-V").startswith("Pygments")
    assert (
        run(basic / "bin/python", "-c", "import pandas; print(pandas.Series([1, 2]).sum())") == "3"
    )


def test_the_same_tree_gives_the_same_archive(tmp_path: Path) -> None:
    for recipe in RECIPES:
        archives = []
        for number in ("1", "2"):
            tree = tmp_path / number / f"tree-{len(list(tmp_path.rglob('tree-*')))}"
            tree.mkdir(parents=True)
            archives.append(write(recipe(tree), tree, tmp_path / number / "channel").read_bytes())
        assert archives[0] == archives[1]


@pytest.mark.parametrize(
    ("specifiers", "expected"),
    [
        ("", "six"),
        (">=1.5", "six >=1.5"),
        (">=1.5,<2,!=1.7", "six !=1.7,<2,>=1.5"),
        ("~=1.4.2", "six >=1.4.2,1.4.*"),
        ("==1.*", "six 1.*"),
        ("!=1.3.*", "six !=1.3.*"),
        ("===1.0", "six ==1.0"),
    ],
)
def test_requirements_become_specs(specifiers: str, expected: str) -> None:
    spec = match_spec("Six", SpecifierSet(specifiers))
    assert spec == expected
    assert str(MatchSpec(spec).name.normalized) == "six"


def test_markers_and_extras_are_evaluated() -> None:
    lines = [
        "numpy>=1",
        'tomli; python_version < "3"',
        'pytest; extra == "test"',
        'typing_extensions[more]; python_version > "3"',
    ]
    assert depends(lines) == ("numpy >=1", "typing-extensions")


@pytest.fixture
def other_cache(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has a cache of its own, and no index to download from."""
    own = {"CONDAINER_TEST_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"}
    return os.environ | own


def start(kind: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.localchannel", kind]
    pipe = subprocess.PIPE
    checkout = Path(__file__).parents[2]
    return subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def test_callers_at_the_same_time_share_one_channel(
    tmp_path: Path, other_cache: dict[str, str]
) -> None:
    processes = [start("badchecksum", other_cache) for _ in range(3)]
    (channel,) = {process.communicate()[0].strip() for process in processes}
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names == {"badchecksum.lock", Path(channel).name}


def test_a_channel_can_be_read_by_everybody() -> None:
    channel = ensure("hard")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (channel, *channel.rglob("*"))}
    assert modes == {0o755, 0o644}


def test_a_failure_leaves_nothing_behind(tmp_path: Path, other_cache: dict[str, str]) -> None:
    process = start("basic", other_cache)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "pip download failed" in errors
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["basic.lock"]


def test_packages_are_listed() -> None:
    names = package_names(ensure("hard"))
    assert len(names) == len(RECIPES) + 1
    assert {"hard-text-1.0-0", "hard-text-2.0-0", "hard-bz2-1.0-0"} < set(names)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def served() -> Iterator[str]:
    """The channel with the wrong checksum over HTTP: rattler trusts a local file."""
    handler = functools.partial(_Quiet, directory=str(ensure("badchecksum")))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_wrong_checksum_is_found(served: str, tmp_path: Path) -> None:
    records = solve_for(served, "hard-badchecksum")
    with pytest.raises(InstallerError, match="hash mismatch"):
        link(records, tmp_path / "env", tmp_path / "pkgs")
