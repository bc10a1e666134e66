"""Builds without a network: from the lock file, and from lists of channels that are kept."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from typing import TYPE_CHECKING

import pytest

from condainer.project import image
from tests import building

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop

PACKAGES = ("hard-hello", "python", "hard-modules", "hard-bz2")


@pytest.fixture(params=["rattler", "micromamba"])
def project(
    request: pytest.FixtureRequest, workshop: Workshop, micromamba: Path, tmp_path: Path
) -> Workshop:
    """A project with an empty package cache, for each kind of installer."""
    own = "rattler" if request.param == "rattler" else str(micromamba)
    workshop.variables["CONDAINER_INSTALLER"] = own
    workshop.configure(package_cache=tmp_path / "cache")
    return workshop


@pytest.fixture
def builtin(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A project with an empty package cache, for the installer that comes along."""
    workshop.variables["CONDAINER_INSTALLER"] = "rattler"
    workshop.configure(package_cache=tmp_path / "cache")
    return workshop


def identities(project: Workshop) -> list[tuple[str, ...]]:
    """The packages that an image lists, as far as a lock file tells."""
    names = ("name", "version", "build", "subdir", "url", "sha256", "md5", "size")
    packages = image.read_manifest(project.image)["packages"]
    return [tuple(package[name] for name in names) for package in packages]


def archives(asked: list[str]) -> list[str]:
    """The packages that were asked for."""
    return sorted(path.rpartition("/")[2] for path in asked if ".json" not in path)


def test_channel_that_is_switched_off(project: Workshop, hard_channel: Path) -> None:
    with building.served(hard_channel) as url:
        project.environment(*PACKAGES, channel=url)
        project.run("build", "-q")
        before = identities(project)
    assert all(all(identity) for identity in before)
    for words in (["--locked"], ["--locked", "--offline"], ["--offline"]):
        project.run("build", "-q", "--force", *words)
        assert identities(project) == before
    assert project.run("exec", "hard-hello").stdout == f"hello from {project.prefix}\n"


def test_image_of_a_lock_file_is_the_same_from_server_and_cache(
    builtin: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    with building.served_in_part(0, hard_channel) as (url, asked):
        builtin.environment(*PACKAGES, channel=url)
        builtin.run("build", "-q")
        lock = builtin.lock_file.read_text()
        shutil.rmtree(tmp_path / "cache")
        asked.clear()
        builtin.run("build", "-q", "--force", "--locked")
        assert [path for path in asked if ".json" in path] == []
        fetched = builtin.image.read_bytes()
    builtin.run("build", "-q", "--force", "--locked")
    assert builtin.image.read_bytes() == fetched
    assert builtin.lock_file.read_text() == lock


def test_what_is_missing_is_named(project: Workshop, hard_channel: Path, tmp_path: Path) -> None:
    with building.served(hard_channel) as url:
        project.environment("hard-text", channel=url)
        project.run("build", "-q")
        before = project.image.read_bytes()
        shutil.rmtree(tmp_path / "cache")
        # The server is there, and is not asked.
        answer = project.run("build", "--force", "--locked", "--offline", status=1)
        assert f"{url}/noarch/hard-text-2.0-0.conda" in answer.stderr
        answer = project.run("build", "--force", "--offline", status=1)
        assert url in answer.stderr
        assert "Traceback" not in answer.stderr
    assert project.image.read_bytes() == before


def test_channel_in_a_directory_needs_no_network(project: Workshop, hard_channel: Path) -> None:
    project.environment("hard-text", channel=hard_channel)
    project.run("build", "-q", "--offline")
    project.run("build", "-q", "--force", "--locked", "--offline")


def test_lists_of_channel_with_token_are_kept(
    builtin: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    channel = shutil.copytree(hard_channel, tmp_path / "channel", symlinks=True)
    private = tmp_path / f"cache/rattler-repodata/private-{os.getuid()}"
    with building.served_to("/t/s3cret", channel) as (full, bare):
        builtin.environment("hard-text", channel=full)
        builtin.run("build", "-q")
        before = identities(builtin)
        assert len(list(private.glob("*.json"))) == 2
        for path in channel.glob("linux-*/repodata*"):
            path.unlink()
        builtin.run("build", "-q", "--force")
        (kept,) = private.glob("*.json")
    assert [path.name for path in private.glob(".list-*")] == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in (private, kept)} == {0o700, 0o600}
    builtin.run("build", "-q", "--force", "--offline")
    assert identities(builtin) == before
    kept.unlink()
    answer = builtin.run("build", "--force", "--offline", status=1)
    assert f"the cache has no list of the channel {bare}" in answer.stderr
    assert "s3cret" not in answer.stderr


@pytest.mark.parametrize("checksum", ["md5", "none"])
def test_lock_of_another_program_that_names_no_sha256(
    builtin: Workshop, hard_channel: Path, checksum: str
) -> None:
    """What is in the cache may be another package of that name; so it is fetched again."""
    with building.served_in_part(0, hard_channel) as (url, asked):
        builtin.environment("hard-text", channel=url)
        builtin.run("build", "-q")
        lock = builtin.lock_file.read_text()
        text = re.sub(r"# (sha256|size) .*\n", "", lock)
        text = text if checksum == "md5" else re.sub(r"#[0-9a-f]{32}\n", "\n", text)
        builtin.lock_file.write_text(text)
        asked.clear()
        answer = builtin.run("build", "--force", "--locked", "--offline", status=1)
        assert "hard-text-2.0-0.conda (no SHA256 of it is known)" in answer.stderr
        builtin.run("build", "-q", "--force", "--locked")
        assert archives(asked) == ["hard-text-2.0-0.conda"]
        first = builtin.image.read_bytes()
        assert builtin.lock_file.read_text() == lock
        assert all(all(identity) for identity in identities(builtin))
    builtin.run("build", "-q", "--force", "--locked", "--offline")
    assert builtin.image.read_bytes() == first


def test_lock_that_names_no_size(builtin: Workshop, hard_channel: Path, tmp_path: Path) -> None:
    """The image is the same, be a package in the cache or not."""
    with building.served(hard_channel) as url:
        builtin.environment("hard-text", channel=url)
        builtin.run("build", "-q")
        text = re.sub(r"# size .*\n", "", builtin.lock_file.read_text())
        images = []
        for _ in range(2):
            builtin.lock_file.write_text(text)
            builtin.run("build", "-q", "--force", "--locked")
            images.append(builtin.image.read_bytes())
            shutil.rmtree(tmp_path / "cache")
    assert images[0] == images[1]


def test_another_package_of_that_name_in_the_cache_is_replaced(
    builtin: Workshop, tmp_path: Path
) -> None:
    channels = {
        text: building.make_channel(tmp_path / text, building.odd_package(f"echo {text} > kept"))
        for text in ("one", "other")
    }
    builtin.environment("odd", channel=channels["one"])
    builtin.run("build", "-q")
    lock = builtin.lock_file.read_text()
    builtin.environment("odd", channel=channels["other"])
    builtin.run("build", "-q", "--force")
    builtin.lock_file.write_text(lock)
    builtin.run("build", "-q", "--force", "--locked")
    assert (building.unpack(builtin.image, tmp_path / "tree") / "kept").read_text() == "one\n"


def test_lock_that_lists_a_package_before_what_it_needs(
    builtin: Workshop, hard_channel: Path
) -> None:
    builtin.environment(*PACKAGES, channel=hard_channel)
    builtin.run("build", "-q")
    head, _, listed = builtin.lock_file.read_text().partition("@EXPLICIT\n")
    lines = [line for line in listed.splitlines() if not line.startswith("#")]
    builtin.lock_file.write_text("\n".join([head, "@EXPLICIT", *reversed(lines), ""]))
    builtin.run("build", "-q", "--force", "--locked")
    assert builtin.run("exec", "hard-hello").stdout == f"hello from {builtin.prefix}\n"


def test_channel_that_holds_another_file_now(
    project: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    """The cache has the one that was locked."""
    channel = tmp_path / "channel"
    shutil.copytree(hard_channel, channel)
    project.environment("hard-text=2", "hard-links", channel=channel)
    project.run("build", "-q")
    before = identities(project)
    (other,) = channel.glob("noarch/hard-text-1.0-*.conda")
    other.rename(next(channel.glob("noarch/hard-text-2.0-*.conda")))
    for words in (["--locked"], ["--locked", "--offline"]):
        project.run("build", "-q", "--force", *words)
        assert identities(project) == before
    shutil.rmtree(tmp_path / "cache")
    answer = project.run("build", "--force", "--locked", status=1)
    assert re.search("no longer the file in the lock file|doesn't match", answer.stderr)


# Packages that lie in no channel


def test_archive_in_no_channel(project: Workshop, hard_channel: Path, tmp_path: Path) -> None:
    original = next(hard_channel.glob("noarch/hard-text-1.0-*.conda"))
    archive = tmp_path / "loose" / original.name
    archive.parent.mkdir()
    shutil.copy(original, archive)
    project.environment(str(archive), "hard-links", channel=hard_channel)
    project.run("build", "-q")
    lock = project.lock_file.read_text()
    before = identities(project)
    assert all(identity[-1] for identity in before)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert re.search(
        rf"^# sha256 {digest}\n{re.escape(archive.as_uri())}#[0-9a-f]+$", lock, re.MULTILINE
    )
    project.run("build", "-q", "--force", "--locked", "--offline")
    assert project.lock_file.read_text() == lock
    assert identities(project) == before
    shutil.copy(next(hard_channel.glob("noarch/hard-text-2.0-*.conda")), archive)
    shutil.rmtree(tmp_path / "cache")
    answer = project.run("build", "--force", "--locked", status=1)
    assert archive.name in answer.stderr
    assert re.search("no longer the file in the lock file|doesn't match", answer.stderr)


def test_archive_of_a_server_in_no_channel(
    project: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    """Nobody lists its SHA256."""
    original = next(hard_channel.glob("noarch/hard-text-1.0-*.conda"))
    (tmp_path / "served/loose").mkdir(parents=True)
    shutil.copy(original, tmp_path / "served/loose")
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    with building.served(tmp_path / "served") as url:
        spec = f"{url}/loose/{original.name}"
        project.environment(spec, "hard-links", channel=hard_channel)
        project.run("build", "-q")
        lock = project.lock_file.read_text()
        size = original.stat().st_size
        assert f"# size {size}\n# sha256 {digest}\n{spec}#" in lock
        before = identities(project)
        project.run("build", "-q", "--force", "--locked")
    assert project.lock_file.read_text() == lock
    assert identities(project) == before


def test_archive_in_no_channel_that_has_changed(
    builtin: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    """The cache has one of the same name."""
    for text in ("one", "other"):
        channel = building.make_channel(
            tmp_path / text, building.odd_package(f"echo {text} > kept")
        )
        shutil.copy(next(channel.rglob("odd-*.conda")), builtin.directory)
        name = next(builtin.directory.glob("odd-*.conda")).name
        builtin.environment(f"./{name}", channel=hard_channel)
        builtin.run("build", "-q", "--force")
        tree = building.unpack(builtin.image, tmp_path / f"tree-{text}")
        assert (tree / "kept").read_text() == f"{text}\n"
