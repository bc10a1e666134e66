"""The stand-in for micromamba, held against what the released version was seen to do."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rattler.index import index_fs

from tests.localchannel import PLACEHOLDER, ensure
from tests.localchannel.package import Package, put, subdir, write
from tests.standin import write_program

TRANSCRIPTS = Path(__file__).parents[1] / "standin/transcripts"
HOME = "/home/user"
"""Where the transcripts were made."""


@dataclass(frozen=True)
class Transcript:
    """One run of the released version."""

    command: str
    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Workplace:
    """Directories as they were when the transcripts were made."""

    root: Path
    micromamba: Path

    def run(self, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the stand-in with a home directory of its own."""
        return subprocess.run(
            [self.micromamba, *words],
            env=os.environ | {"HOME": str(self.root / "demo/home")} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def create(self, *specs: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Create an environment at the usual place from the hard channel."""
        words = ("create", "-y", *self.places, "--override-channels", *specs)
        return self.run(*words, **variables)

    @property
    def places(self) -> list[str]:
        """The options that say where things are."""
        channel = ensure("hard").as_uri()
        return ["-r", f"{self.root}/demo/root", "-p", str(self.prefix), "-c", channel]

    @property
    def prefix(self) -> Path:
        return self.root / "demo/env"

    def unpacked(self, name: str, channel: Path, root: str = "demo/root") -> Path:
        """Where a package of a channel is in the package cache."""
        return self.root / root / f"pkgs/file{channel}/noarch" / name


def read(name: str) -> Transcript:
    """Read a transcript."""
    head, _, rest = (TRANSCRIPTS / f"{name}.txt").read_text().partition("##### stdout")
    stdout, _, rest = rest.partition("##### stderr")
    stderr = rest.partition("##### read()")[0]
    command = re.sub(r"^\$ HOME=\S+ micromamba ", "", head.splitlines()[0])
    (status,) = re.findall(r"exit=(\d+)", head)
    return Transcript(
        command=command,
        status=int(status),
        stdout=stdout.partition("\n")[2],
        stderr=stderr.partition("\n")[2],
    )


TINY = (
    Package(name="tinypkg", version="1.0", noarch="generic", suffix=".tar.bz2"),
    Package(name="tinydep", version="1.0"),
    Package(
        name="tinydep", version="2.0", build="h0_1", build_number=1, depends=("tinypkg >=1.0",)
    ),
    Package(name="conflicta", version="1.0", depends=("tinydep ==1.0",)),
    Package(name="conflictb", version="1.0", depends=("tinydep >=2.0",)),
    Package(name="bigpkg", version="1.0", depends=("tinypkg",), suffix=".tar.bz2"),
)
"""The packages of the channel that the transcripts were made with."""


@pytest.fixture(scope="module")
def tiny_channel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    channel = tmp_path_factory.mktemp("channel")
    (channel / "noarch").mkdir()
    for package in TINY:
        tree = tmp_path_factory.mktemp("tree")
        put(tree, f"share/{package.name}.txt", f"{package.distribution}\n")
        write(package, tree, channel)
    asyncio.run(index_fs(channel, write_shards=False))
    return channel


@pytest.fixture
def workplace(tmp_path: Path, tiny_channel: Path) -> Workplace:
    shutil.copytree(tiny_channel, tmp_path / "channel")
    demo = tmp_path / "demo"
    (demo / "home").mkdir(parents=True)
    (demo / "file").touch()
    channel = tmp_path / "channel"
    urls = [f"file://{channel}/noarch/tinypkg-1.0-0.tar.bz2"]
    (demo / "explicit-badmd5.txt").write_text(f"@EXPLICIT\n{urls[0]}#{'0' * 32}\n")
    urls += [f"file://{channel}/{subdir()}/tinydep-2.0-h0_1.conda"]
    (demo / "explicit.txt").write_text("# a list\n@EXPLICIT\n" + "\n".join(urls) + "\n")
    (demo / "environment.yml").write_text(
        f"channels: [file://{channel}]\ndependencies: ['tinypkg>=1.0', tinydep]\n"
    )
    shutil.copytree(channel, demo / "badchan")
    with (demo / "badchan/noarch/tinypkg-1.0-0.tar.bz2").open("ab") as archive:
        archive.write(b"tampered")
    return Workplace(root=tmp_path, micromamba=write_program(tmp_path / "bin"))


def normal(text: str, root: Path) -> str:
    """Take out of an output what differs from machine to machine: paths, sizes, digests, times."""
    text = text.replace(str(root), HOME).replace(subdir(), "linux-64")
    text = re.sub(r"\b[0-9a-f]{32}(?:[0-9a-f]{32})?\b", "DIGEST", text)
    text = re.sub(r"\b\d+ ?[kM]?B\b", "SIZE", text)
    text = re.sub(r'("size"|"timestamp"|Expected|Actual): \d+', r"\1: NUMBER", text)
    text = re.sub(r"\d+\.\d sec", "0.0 sec", text)
    text = re.sub(r"─{2,}", "──", text)
    return re.sub(r"(?<=\S) +", " ", text)  # columns are as wide as the paths in them


@pytest.mark.parametrize(
    "name",
    [
        "a_create_normal",
        "b_create_json",
        "c_create_envyml",
        "c2_create_envyml_json",
        "d3_missing_package",
        "e_missing_channel",
        "f_dryrun_json",
        "f2_dryrun",
        "g_explicit",
        "g3_explicit_badmd5",
        "h_big_normal",
        "h2_big_json",
        "k_existing_prefix",
        "n_prefix_is_file",
        "n3_bad_spec",
        "o_bad_checksum",
    ],
)
def test_output_is_that_of_the_released_version(name: str, workplace: Workplace) -> None:
    transcript = read(name)
    words = shlex.split(transcript.command.replace(HOME, str(workplace.root)))
    if name == "k_existing_prefix":
        workplace.run(*words)
    done = workplace.run(*words)
    assert normal(done.stdout, workplace.root) == normal(transcript.stdout, workplace.root)
    assert normal(done.stderr, workplace.root) == normal(transcript.stderr, workplace.root)
    assert done.returncode == transcript.status


def test_unsatisfiable_specs_are_explained(workplace: Workplace) -> None:
    transcript = read("d_unsat")
    words = shlex.split(transcript.command.replace(HOME, str(workplace.root)))
    done = workplace.run(*words)
    assert normal(done.stdout, workplace.root) == normal(transcript.stdout, workplace.root)
    assert done.returncode == transcript.status
    # The tree in between is the solver's own.
    lines, expected = done.stderr.splitlines(), transcript.stderr.splitlines()
    assert [*lines[:2], lines[-1]] == [*expected[:2], expected[-1]]
    assert "tinydep" in done.stderr


def test_unsatisfiable_specs_are_listed_in_json(workplace: Workplace) -> None:
    transcript = read("d2_unsat_json")
    words = shlex.split(transcript.command.replace(HOME, str(workplace.root)))
    done = workplace.run(*words)
    assert (done.returncode, done.stderr) == (transcript.status, transcript.stderr)
    document, expected = json.loads(done.stdout), json.loads(transcript.stdout)
    assert document | {"solver_problems": ...} == expected | {"solver_problems": ...}
    (problem,) = document["solver_problems"]
    assert re.fullmatch(r"package \S+ requires tinydep .*, but none of the .*", problem)


def test_version(workplace: Workplace) -> None:
    assert workplace.run("--version").stdout == "2.8.1\n"


def test_an_unknown_option_is_a_wrong_command_line(workplace: Workplace) -> None:
    done = workplace.create("--no-such-option", "hard-text")
    assert done.returncode == 109
    assert "--no-such-option" in done.stderr


def test_packages_are_linked_for_real(workplace: Workplace) -> None:
    assert workplace.create("hard-text", "hard-hello").returncode == 0
    prefix = workplace.prefix
    hello = subprocess.run([prefix / "bin/hard-hello"], capture_output=True, text=True, check=True)
    assert hello.stdout == f"hello from {prefix}\n"
    assert PLACEHOLDER not in (prefix / "etc/hard-text.conf").read_text()
    unpacked = workplace.unpacked("hard-text-2.0-0", ensure("hard"))
    assert (unpacked / "info/repodata_record.json").exists()
    version = "share/hard-text/version.txt"
    assert (prefix / version).samefile(unpacked / version)
    assert {"bin", "conda-meta", "etc", "share"} < {path.name for path in prefix.iterdir()}
    assert not (prefix / "CACHEDIR.TAG").exists()


def test_modules_are_compiled(workplace: Workplace) -> None:
    assert workplace.create("hard-hello").returncode == 0
    (note,) = workplace.prefix.glob("conda-meta/hard-hello-*.json")
    document = json.loads(note.read_text())
    compiled = [path for path in document["files"] if path.endswith(".pyc")]
    assert len(compiled) == 2
    assert all((workplace.prefix / path).exists() for path in compiled)


def test_the_home_directory_is_written_to(workplace: Workplace) -> None:
    assert workplace.create("hard-text").returncode == 0
    home = workplace.root / "demo/home"
    assert (home / ".conda/environments.txt").read_text() == f"{workplace.prefix}\n"
    history = (workplace.prefix / "conda-meta/history").read_text()
    assert "::hard-text-2.0-0" in history


def test_a_post_link_script_runs(workplace: Workplace) -> None:
    assert workplace.create("hard-post-link", "hard-post-link-edits").returncode == 0
    prefix = workplace.prefix
    assert (prefix / "share/hard-post-link.txt").read_text() == "hard-post-link 1.2 3\n"
    assert (prefix / "share/hard-text/version.txt").read_text() == "2.0 (edited)\n"
    assert "has something to say" in (prefix / ".messages.txt").read_text()
    unpacked = workplace.unpacked("hard-text-2.0-0", ensure("hard"))
    assert (unpacked / "share/hard-text/version.txt").read_text() == "2.0\n"


def test_a_failing_post_link_script_is_passed_over(workplace: Workplace) -> None:
    """As in libmamba, which looks only at whether the script could be started."""
    done = workplace.create("hard-post-link-fails")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "warning  libmamba Executing post-link script for package 'hard-post-link-fails'.",
        "hard-post-link-fails: cannot go on",
    ]


def test_sigterm_ends_it_with_its_own_status(workplace: Workplace) -> None:
    words = ["create", "-y", *workplace.places, "hard-post-link-sleeps"]
    home = os.environ | {"HOME": str(workplace.root / "demo/home")}
    sleeping = workplace.prefix / "hard-sleeping.txt"
    with subprocess.Popen(
        [workplace.micromamba, *words], env=home, stdout=subprocess.DEVNULL
    ) as process:
        while not sleeping.exists() or not sleeping.read_text().endswith("\n"):
            assert process.poll() is None
            time.sleep(0.01)
        try:
            process.terminate()
            assert process.wait() == 128 + signal.SIGTERM
        finally:
            for pid in map(int, sleeping.read_text().split()):
                os.kill(pid, signal.SIGKILL)


def test_a_wrong_sha256_is_found(workplace: Workplace) -> None:
    channel = ensure("badchecksum").as_uri()
    done = workplace.run("create", "-y", "-p", workplace.prefix, "-c", channel, "hard-badchecksum")
    assert done.returncode == 1
    assert "hard-badchecksum-1.0-0.conda tarball has incorrect SHA256" in done.stdout
    assert "critical libmamba Found incorrect downloads. Aborting" in done.stderr


def test_an_environment_is_replaced_and_a_directory_is_not(workplace: Workplace) -> None:
    assert workplace.create("hard-text").returncode == 0
    (workplace.prefix / "foreign").touch()
    assert workplace.create("hard-links").returncode == 0
    assert not (workplace.prefix / "foreign").exists()
    shutil.rmtree(workplace.prefix / "conda-meta")
    done = workplace.create("hard-text")
    assert done.returncode == 1
    assert "Non-conda folder exists at prefix" in done.stderr
    assert (workplace.prefix / "share/hard-links").exists()


def test_another_package_of_the_same_name_is_not_taken_from_the_cache(
    workplace: Workplace,
) -> None:
    channel = workplace.root / "channel"
    words = ["create", "-y", *workplace.places, "-c", channel.as_uri(), "tinypkg"]
    assert workplace.run(*words).returncode == 0
    tree = workplace.root / "tree"
    put(tree, "share/tinypkg.txt", "changed\n")
    write(TINY[0], tree, channel)
    asyncio.run(index_fs(channel, write_shards=False, force=True))
    assert workplace.run(*words).returncode == 0
    assert (workplace.prefix / "share/tinypkg.txt").read_text() == "changed\n"


def test_the_environment_variables_are_honoured(workplace: Workplace, tmp_path: Path) -> None:
    words = ["create", "-y", "-p", str(workplace.prefix), "-c", ensure("hard").as_uri(), "hard-bz2"]
    assert workplace.run(*words, MAMBA_ROOT_PREFIX=str(tmp_path / "root")).returncode == 0
    below = f"pkgs/file{ensure('hard')}/{subdir()}/hard-bz2-1.0-0"
    assert (tmp_path / "root" / below).is_dir()
    assert workplace.run(*words, CONDA_PKGS_DIRS=str(tmp_path / "pkgs")).returncode == 0
    assert (tmp_path / below).is_dir()
    assert workplace.run(*words, MAMBA_ALWAYS_YES="1").returncode == 1


def test_a_channel_with_a_space_in_its_path_fails(workplace: Workplace) -> None:
    spaced = workplace.root / "my channel"
    shutil.copytree(workplace.root / "channel", spaced)
    done = workplace.run("create", "-p", workplace.prefix, "-c", f"file://{spaced}", "tinypkg")
    assert done.returncode == 1


def test_the_interpreter_may_be_anywhere(tmp_path: Path) -> None:
    interpreter = tmp_path / "it's a place" / ("far away " * 20).strip() / "python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    interpreter.chmod(stat.S_IRWXU)
    executable = write_program(tmp_path / "bin", interpreter=str(interpreter))
    done = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "2.8.1\n"


# As conda


@pytest.fixture
def conda(workplace: Workplace) -> Workplace:
    """The same, by the name of conda."""
    return dataclasses.replace(workplace, micromamba=write_program(workplace.root / "bin", "conda"))


def test_conda_says_which_version_it_is(conda: Workplace) -> None:
    assert conda.run("--version").stdout == "conda 26.7.1\n"


def test_conda_notes_when_an_environment_was_created(conda: Workplace) -> None:
    assert conda.create("hard-text", CONDA_PKGS_DIRS=f"{conda.root}/pkgs").returncode == 0
    assert float((conda.prefix / "conda-meta/created_at").read_text()) > 1e9
    assert (conda.root / "pkgs/hard-text-2.0-0/info/repodata_record.json").exists()
    assert (conda.root / "demo/home/.conda/environments.txt").exists()
    shutil.rmtree(conda.root / "demo/home/.conda")
    assert conda.create("hard-text", CONDA_REGISTER_ENVS="false").returncode == 0
    assert not (conda.root / "demo/home/.conda/environments.txt").exists()


def test_conda_takes_everything_back_where_a_script_fails(conda: Workplace) -> None:
    done = conda.create("hard-post-link-fails")
    assert done.returncode == 1
    assert "LinkError: post-link script failed for package" in done.stderr
    assert "return code: 3" in done.stderr
    assert not conda.prefix.exists()


def test_conda_takes_no_names_together_with_urls(conda: Workplace) -> None:
    archive = next(ensure("hard").glob("noarch/hard-text-1.0-*.conda"))
    done = conda.create(archive.as_uri(), "hard-links")
    assert done.returncode == 1
    assert "Cannot combine package names with explicit package lists" in done.stderr


def test_conda_compares_no_checksum_of_a_channel_in_a_directory(conda: Workplace) -> None:
    channel = ensure("badchecksum").as_uri()
    done = conda.run("create", "-y", "-p", conda.prefix, "-c", channel, "hard-badchecksum")
    assert done.returncode == 0


def test_conda_gives_up_with_0_where_another_uses_the_cache(conda: Workplace) -> None:
    (conda.root / "pkgs").mkdir()
    descriptor = os.open(conda.root / "pkgs", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    done = conda.create("hard-text", CONDA_PKGS_DIRS=f"{conda.root}/pkgs")
    os.close(descriptor)
    assert done.returncode == 0
    assert "CondaSystemExit: Exiting 1" in done.stderr
    assert not list(conda.prefix.glob("conda-meta/*.json"))
