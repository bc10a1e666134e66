"""Installers that are programs: what they do not do themselves, and what they leave behind."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from condainer.pipeline.installers import ready
from condainer.pipeline.packages import Package as Solved
from condainer.pipeline.packages import package_from_json
from condainer.project import image
from tests import building, localchannel
from tests.localchannel.package import Package, put

if TYPE_CHECKING:
    from collections.abc import Iterable

    from condainer.pipeline.workplace import Final, Listing
    from tests.localchannel.package import Recipe
    from tests.support import Workshop

INSTALLERS = ("rattler", "micromamba", "conda")


@pytest.fixture(params=INSTALLERS)
def installer(request: pytest.FixtureRequest, micromamba: Path, conda: Path) -> str:
    """What installs."""
    programs = {"micromamba": micromamba, "conda": conda}
    return str(programs.get(request.param, request.param))


@pytest.fixture
def caching(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A project with a package cache of its own."""
    workshop.configure(package_cache=tmp_path / "packages")
    return workshop


def versions(workshop: Workshop) -> dict[str, str]:
    return {p["name"]: p["version"] for p in image.read_manifest(workshop.image)["packages"]}


def fail(workshop: Workshop, *how: str) -> str:
    """Build, in vain, and give what is said."""
    words = workshop.run("build", "--force", *how, status=1).stderr
    assert not workshop.image.exists()
    return words


# Scripts


def script(kind: str, text: str, name: str = "scripted") -> Recipe:
    """A package with a script."""

    def recipe(tree: Path) -> Package:
        put(tree, f"bin/.{name}-{kind}.sh", f"#!/bin/bash\n{text}\n", 0o755)
        return Package(name=name, version="1.0")

    return recipe


@pytest.mark.parametrize("text", ["exit 3", "return 3", "kill -9 $$", "set -e; false", "(exit 3)"])
def test_a_script_that_fails_is_the_end(
    workshop: Workshop, tmp_path: Path, micromamba: Path, text: str
) -> None:
    channel = building.make_channel(tmp_path / "channel", script("post-link", text))
    workshop.environment("scripted", channel=channel)
    said = fail(workshop, "--installer", str(micromamba))
    assert "the post-link script of scripted-1.0-0 failed" in said


def test_a_script_runs_once(workshop: Workshop, tmp_path: Path, installer: str) -> None:
    recipe = script("post-link", 'bash -c false; echo "$PKG_NAME" >>"$PREFIX/ran.txt"')
    workshop.environment("scripted", channel=building.make_channel(tmp_path / "channel", recipe))
    workshop.run("build", "-q", "--installer", installer)
    assert (building.unpack(workshop.image, tmp_path / "image") / "ran.txt").read_text() == (
        "scripted\n"
    )


def test_a_script_that_the_programs_run_in_another_way_is_seen(
    workshop: Workshop, tmp_path: Path, micromamba: Path
) -> None:
    """As it is where temporary files cannot be executed, and another bash is found."""
    wrapper = wrap(micromamba, tmp_path, 'PATH="/usr/bin:/bin"')
    recipe = script("post-link", "exit 4")
    workshop.environment("scripted", channel=building.make_channel(tmp_path / "channel", recipe))
    assert "the post-link script of scripted-1.0-0 failed" in fail(
        workshop, "--installer", str(wrapper)
    )


def test_a_wrapper_that_bash_runs_is_run(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, micromamba: Path
) -> None:
    wrapper = wrap(micromamba, tmp_path, "true", "/usr/bin/env bash")
    workshop.environment("hard-post-link", channel=hard_channel)
    workshop.run("build", "-q", "--installer", str(wrapper))


def wrap(program: Path, directory: Path, line: str, shell: str = "/bin/sh") -> Path:
    """A program of the same name that does something else before."""
    (directory / "wrapped").mkdir()
    wrapper = directory / "wrapped" / program.name
    wrapper.write_text(f'#!{shell}\n{line}\nexec {shlex.quote(str(program))} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


# Package caches


def solution(program: Path, *words: str) -> list[Solved]:
    """What a program would install."""
    command = [str(program), "create", "-y", "--dry-run", "--json", *words]
    done = subprocess.run(command, capture_output=True, check=True)
    return [package_from_json(entry) for entry in json.loads(done.stdout)["actions"]["LINK"]]


@pytest.mark.parametrize("layout", ["flat", "hierarchical", "digest"])
def test_packages_are_found_wherever_the_cache_has_them(
    tmp_path: Path, hard_channel: Path, micromamba: Path, layout: str
) -> None:
    prefix, names = tmp_path / "env", {"hard-text", "hard-links", "hard-bz2"}
    words = ("-p", str(prefix), "-c", str(hard_channel), *sorted(names))
    packages = solution(micromamba, *words)
    told: dict[str, list[Final]] = {}

    def take(name: str, listing: Listing) -> None:
        told[name] = list(listing())

    variables = {"MAMBA_ROOT_PREFIX": str(tmp_path / "root"), "HOME": str(tmp_path)}
    everything = frozenset(package.stem for package in packages)
    nothing: frozenset[str] = frozenset()
    for to_fetch in (everything, nothing):
        told.clear()
        caches = ready.caches(variables, micromamba)
        watch = ready.CacheWatch(caches, prefix, packages, to_fetch, take)
        watch.look()
        assert told.keys() == (names if to_fetch == nothing else set())
        subprocess.run(
            [str(micromamba), "create", "-y", *words],
            env={**os.environ, **variables, "STANDIN_LAYOUT": layout},
            check=True,
            capture_output=True,
        )
        watch.look()
        assert told.keys() == names
        for final in (final for finals in told.values() for final in finals):
            assert (prefix / final.name).samefile(final.path), final


def test_a_package_that_a_cache_has_twice_is_taken_from_where_it_is_linked(
    caching: Workshop, hard_channel: Path, micromamba: Path
) -> None:
    caching.environment("hard-text", "hard-links", channel=hard_channel)
    for layout in ("flat", "hierarchical", "flat"):
        caching.variables["STANDIN_LAYOUT"] = layout
        answer = caching.run("build", "--force", "--installer", str(micromamba))
        assert "compressing all again" not in answer.stderr


def test_two_condas_at_once_do_not_get_in_each_others_way(
    workshop: Workshop, hard_channel: Path, conda: Path, tmp_path: Path, home: Path
) -> None:
    with building.new_workshop(tmp_path / "other project", home) as other:
        builds = []
        for each in (workshop, other):
            each.configure(package_cache=tmp_path / "packages")
            each.variables["STANDIN_PAUSE"] = "1"
            each.environment("hard-text", "hard-links", channel=hard_channel)
            builds.append(each.start("build", "--installer", str(conda)))
        for build in builds:
            _, words = build.communicate()
            assert build.returncode == 0, words
        assert versions(workshop) == versions(other) == {"hard-text": "2.0", "hard-links": "1.0"}


def test_success_is_believed_where_all_is_there(
    caching: Workshop, hard_channel: Path, conda: Path, tmp_path: Path
) -> None:
    caching.environment("hard-text", "hard-links", channel=hard_channel)
    (tmp_path / "packages").mkdir()
    descriptor = os.open(tmp_path / "packages", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        said = fail(caching, "--installer", str(conda))
    finally:
        os.close(descriptor)
    assert "conda reported no error, but has not installed hard-" in said
    assert "CondaSystemExit: Exiting 1" in said


# Checksums


def test_what_a_channel_in_a_directory_holds_is_compared(caching: Workshop, installer: str) -> None:
    caching.environment("hard-badchecksum", channel=localchannel.ensure("badchecksum"))
    words = fail(caching, "--installer", installer)
    assert "SHA256" in words
    assert "hard-badchecksum-1.0-0" in words
    # Also where the installer has it in its cache by now, and trusts that.
    assert "SHA256" in fail(caching, "--installer", installer)


@pytest.mark.parametrize("how", [[], ["--locked"]])
@pytest.mark.parametrize("lists", ["right", "wrong"])
def test_what_a_cache_holds_is_compared_and_fetched_again(
    caching: Workshop,
    hard_channel: Path,
    installer: str,
    tmp_path: Path,
    how: list[str],
    lists: str,
) -> None:
    caching.environment("hard-text", channel=hard_channel)
    caching.run("build", "-q", "--installer", installer)
    (file,) = (tmp_path / "packages").rglob("share/hard-text/version.txt")
    file.write_text("6.6\n")
    damaged = file
    if lists == "wrong":
        damaged = file.parents[2] / "info/paths.json"
        document = json.loads(damaged.read_text())
        for entry in document["paths"]:
            entry.pop("sha256", None)
        damaged.write_text(json.dumps(document))
    caching.run("build", "-q", "--force", *how, "--installer", installer)
    words = f"the package cache is damaged: {damaged} is not the file that its package lists"
    assert words in caching.build_log.read_text()
    assert file.read_text() == "2.0\n"
    unpacked = building.unpack(caching.image, tmp_path / "image")
    assert (unpacked / "share/hard-text/version.txt").read_text() == "2.0\n"


# What a project names


@pytest.fixture
def brought(workshop: Workshop, hard_channel: Path, tmp_path: Path) -> Path:
    """A file that is there when a project's own installer has been run."""
    ran = tmp_path / "ran"
    program = workshop.directory / "micromamba"
    program.write_text(f"#!/bin/sh\ntouch '{ran}'\nexit 1\n")
    program.chmod(0o755)
    workshop.configure(conda_exe=program)
    workshop.environment("hard-text", channel=hard_channel)
    workshop.variables["CONDAINER_INSTALLER"] = ""
    return ran


@pytest.mark.parametrize("command", [("prereq",), ("status",), ("build", "-n"), ("-n", "build")])
def test_what_only_looks_runs_nothing_that_a_project_names(
    workshop: Workshop, brought: Path, command: tuple[str, ...]
) -> None:
    answer = workshop.run(*command)
    assert not brought.exists()
    if command != ("status",):
        assert "only a build runs '" in answer.stdout + answer.stderr
    workshop.run("build", status=1)
    assert brought.exists()


@building.needs_root
@pytest.mark.parametrize("name", [".", "condainer.yml", "environment.yml"])
def test_a_build_in_a_project_of_another_user_says_so_first(
    workshop: Workshop, hard_channel: Path, name: str
) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    assert "belongs to" not in workshop.run("build").stderr
    os.chown(workshop.directory / name, building.NOBODY, building.NOBODY)
    said = workshop.run("build", "--force").stderr
    assert said.startswith(
        f"{workshop.directory / name} belongs to user 65534 (nobody): this build"
    )
    assert said.count("belongs to") == 1


# What conda notes, and takes


def test_locked_builds_with_conda_are_the_same(
    caching: Workshop, hard_channel: Path, conda: Path
) -> None:
    caching.environment("hard-text", "hard-post-link", channel=hard_channel)
    caching.run("build", "-q", "--installer", str(conda))
    made = set()
    for _ in range(2):
        caching.run("build", "-q", "--force", "--locked", "--installer", str(conda))
        made.add(caching.image.read_bytes())
    assert len(made) == 1


@pytest.mark.parametrize("others", [(), ("hard-links",)])
def test_conda_takes_the_url_of_a_package(
    workshop: Workshop, hard_channel: Path, conda: Path, others: tuple[str, ...]
) -> None:
    archive = next(hard_channel.glob("noarch/hard-text-1.0-*.conda"))
    workshop.environment(archive.as_uri(), *others, channel=hard_channel)
    workshop.run("build", "-q", "--installer", str(conda))
    assert versions(workshop) == {"hard-text": "1.0", **dict.fromkeys(others, "1.0")}
    workshop.run("build", "-q", "--force", "--locked", "--installer", str(conda))


def test_conda_takes_a_channel_with_a_space(
    workshop: Workshop, hard_channel: Path, conda: Path, tmp_path: Path
) -> None:
    (tmp_path / "my channel").symlink_to(hard_channel)
    spaced = shutil.copytree(hard_channel, tmp_path / "our channel")
    workshop.environment("hard-text", channel=f"'{spaced}'")
    workshop.run("build", "-q", "--installer", str(conda))
    workshop.run("build", "-q", "--force", "--locked", "--installer", str(conda))
    assert versions(workshop) == {"hard-text": "2.0"}


# What stays in HOME


@pytest.mark.parametrize("before", [None, "", "/opt/env\n", "/a b\n/tmp/x"])
@pytest.mark.parametrize("packages", ["hard-text", "hard-post-link-fails"])
def test_the_staging_directory_is_no_environment_of_the_users(
    workshop: Workshop,
    hard_channel: Path,
    micromamba: Path,
    tmp_path: Path,
    before: str | None,
    packages: str,
) -> None:
    workshop.variables["HOME"] = str(tmp_path / "home")
    listed = tmp_path / "home/.conda/environments.txt"
    listed.parent.mkdir(parents=True)
    if before is not None:
        (tmp_path / "elsewhere").write_text(before)
        (tmp_path / "elsewhere").chmod(0o640)
        listed.symlink_to(tmp_path / "elsewhere")
    workshop.environment(packages, channel=hard_channel)
    workshop.run("build", "-q", "--installer", str(micromamba), status=None)
    if before is None:
        assert not listed.exists()
    else:
        assert listed.is_symlink()
        assert listed.read_text().splitlines() == before.splitlines()
        assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o640


# Passwords and tokens


def closed(paths: Iterable[Path], top: Path) -> bool:
    """Whether nobody else can read any of some files."""
    return all(
        any(
            not each.stat().st_mode & 0o077
            for each in (path, *path.parents)
            if each != top and each.is_relative_to(top)
        )
        for path in paths
    )


@pytest.mark.parametrize("credentials", ["someone:s3cret@", "/t/s3cret-1"])
@pytest.mark.parametrize("place", ["named", "default"])
def test_credentials_are_for_nobody_else(
    workshop: Workshop,
    hard_channel: Path,
    installer: str,
    credentials: str,
    tmp_path: Path,
    place: str,
) -> None:
    """Neither in command lines nor in a file that others can read."""
    if place == "named":
        workshop.configure(package_cache=tmp_path / "packages")
    home = tmp_path / "home"
    home.mkdir()
    workshop.variables["HOME"] = str(home)
    if installer != "rattler":
        seen = tmp_path / "seen"
        installer = str(wrap(Path(installer), tmp_path, f"echo \"$@\" >>'{seen}'"))
    (tmp_path / "served").mkdir()
    (tmp_path / "served/channel").symlink_to(hard_channel)
    with building.served_to(credentials, tmp_path / "served") as (full, bare):
        spec = f"'{full}/channel::hard-links'"
        workshop.environment("hard-text", spec, channel=f"{full}/channel")
        for how in ([], ["--locked"]):
            workshop.run("build", "-q", "--force", *how, "--installer", installer)
            assert versions(workshop).keys() == {"hard-text", "hard-links"}
            assert bare in workshop.lock_file.read_text()
    if "/" in installer:
        assert "create" in seen.read_text()
        assert "s3cret" not in seen.read_text()
    kept = [
        path for path in building.holders(b"s3cret", tmp_path) if path.name != "environment.yml"
    ]
    assert closed(kept, tmp_path), kept


@pytest.mark.parametrize("how", [[], ["--locked"]])
def test_a_token_is_not_told_to_whom_a_channel_redirects_to(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, how: list[str]
) -> None:
    (tmp_path / "channel").symlink_to(hard_channel)
    workshop.configure(package_cache=tmp_path / "packages")
    with building.served_elsewhere("/t/s3cret-1", tmp_path) as (url, told):
        workshop.environment("hard-text", f"'{url}/channel::hard-links'", channel=f"{url}/channel")
        workshop.run("build", "-q")
        shutil.rmtree(tmp_path / "packages")
        workshop.run("build", "-q", "--force", *how)
    assert versions(workshop).keys() == {"hard-text", "hard-links"}
    assert len(told) >= 4
    assert "s3cret" not in "".join(told)


def test_conda_keeps_what_the_users_own_condarc_names(
    workshop: Workshop, hard_channel: Path, conda: Path, tmp_path: Path
) -> None:
    own = tmp_path / ".condarc"
    own.write_text(f"custom_multichannels: {{ours: ['{hard_channel}']}}\n")
    workshop.variables["CONDARC"] = str(own)
    with building.served_to("someone:s3cret@", hard_channel) as (full, _):
        text = f"channels: [ours, '{full}']\ndependencies: [hard-text]\n"
        (workshop.directory / "environment.yml").write_text(text)
        workshop.run("build", "-q", "--installer", str(conda))
    (package,) = image.read_manifest(workshop.image)["packages"]
    assert package["channel"] == hard_channel.as_uri()
