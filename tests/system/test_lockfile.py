"""The lock file: what is in it, and that it brings the very same packages again."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest
from rattler import Subdir

from condainer.project import image
from tests import building

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Workshop

URL = "https://conda.anaconda.org/conda-forge/noarch/some-thing-1.0-h1_3.conda"
MD5 = "0123456789abcdef0123456789abcdef"


@pytest.fixture(params=["rattler", "micromamba"])
def installer(request: pytest.FixtureRequest, micromamba: Path) -> str:
    return "rattler" if request.param == "rattler" else str(micromamba)


@pytest.fixture(scope="module")
def channel(hard_channel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the channel, without the newer of two versions."""
    copy = tmp_path_factory.mktemp("lockfile") / "channel"
    shutil.copytree(hard_channel, copy)
    return copy


def limit(channel: Path, original: Path, without: str) -> None:
    """Leave a package out of the list of a channel."""
    for path in original.glob("*/repodata.json"):
        document = json.loads(path.read_bytes())
        records = document["packages.conda"]
        document["packages.conda"] = {k: v for k, v in records.items() if k != without}
        (channel / path.parent.name / "repodata.json").write_text(json.dumps(document))
        (channel / path.parent.name / "repodata.json.zst").unlink(missing_ok=True)


def identities(workshop: Workshop) -> list[tuple[str, str]]:
    return [(p["url"], p["sha256"]) for p in image.read_manifest(workshop.image)["packages"]]


def test_lock_file_is_an_explicit_list(
    workshop: Workshop, hard_channel: Path, installer: str
) -> None:
    workshop.environment("python", "hard-hello", "hard-bz2", channel=hard_channel)
    workshop.run("build", "-q", "--installer", installer)
    lines = workshop.lock_file.read_text().splitlines()
    assert "@EXPLICIT" in lines
    listed = [line for line in lines if not line.startswith(("#", "@"))]
    packages = image.read_manifest(workshop.image)["packages"]
    assert listed == [f"{package['url']}#{package['md5']}" for package in packages]
    names = [package["name"] for package in packages]
    assert names.index("python") < names.index("hard-hello")


def test_locked_build_ignores_newer_versions_and_a_changed_environment_yml(
    workshop: Workshop, hard_channel: Path, channel: Path, installer: str
) -> None:
    limit(channel, hard_channel, "hard-text-2.0-0.conda")
    workshop.environment("hard-text", "hard-links", channel=channel)
    workshop.run("build", "-q", "--installer", installer)
    before, lock = identities(workshop), workshop.lock_file.read_text()
    assert "hard-text-1.0-0" in lock
    limit(channel, hard_channel, "")
    workshop.environment("hard-text", "hard-names", channel=channel)
    workshop.run("build", "-q", "--force", "--locked", "--installer", installer)
    assert identities(workshop) == before
    assert workshop.lock_file.read_text() == lock
    workshop.run("build", "-q", "--force", "--installer", installer)
    assert "hard-text-2.0-0" in workshop.lock_file.read_text()


@pytest.mark.parametrize("credentials", ["someone:s3cret@", "/t/s3cret-1"])
def test_credentials_are_used_and_kept_nowhere(
    workshop: Workshop, hard_channel: Path, installer: str, credentials: str, tmp_path: Path
) -> None:
    workshop.configure(package_cache=tmp_path / "packages")
    (tmp_path / "served").mkdir()
    (tmp_path / "served/channel").symlink_to(hard_channel)
    with building.served_to(credentials, tmp_path / "served") as (full, bare):
        workshop.environment("hard-text", channel=f"{full}/channel")
        said = workshop.run("build", "-v", "--installer", installer)
        lock = workshop.lock_file.read_text()
        assert f"\n{bare}/channel/noarch/hard-text-" in lock
        shutil.rmtree(tmp_path / "packages")
        again = workshop.run("build", "-v", "--force", "--locked", "--installer", installer)
        assert workshop.lock_file.read_text() == lock
    unpacked = building.unpack(workshop.image, tmp_path / "image")
    assert (unpacked / ".condainer/environment.yml").exists()
    words = said.stdout + said.stderr + again.stdout + again.stderr
    assert "s3cret" not in words + lock + workshop.build_log.read_text()
    assert building.holders(b"s3cret", unpacked) == []


@pytest.mark.parametrize("credentials", ["someone:wr0ng@", "/t/wr0ng-1"])
def test_credentials_are_not_in_errors(
    workshop: Workshop, hard_channel: Path, installer: str, credentials: str
) -> None:
    right = credentials.replace("wr0ng", "right")
    with building.served_to(right, hard_channel) as (full, bare):
        workshop.environment("hard-text", channel=full.replace(right, credentials))
        answer = workshop.run("build", "-v", "--installer", installer, status=1)
    assert bare in answer.stderr
    assert "wr0ng" not in answer.stderr + workshop.build_log.read_text()


@pytest.mark.parametrize("first", ["rattler", "micromamba"])
def test_one_installer_reads_what_the_other_wrote(
    workshop: Workshop, hard_channel: Path, micromamba: Path, first: str
) -> None:
    names = ["rattler", str(micromamba)]
    if first != "rattler":
        names.reverse()
    workshop.environment("python", "hard-hello", "hard-bz2", channel=hard_channel)
    workshop.run("build", "-q", "--installer", names[0])
    before = identities(workshop)
    workshop.run("build", "-q", "--force", "--locked", "--installer", names[1])
    assert sorted(identities(workshop)) == sorted(before)
    assert workshop.run("exec", "hard-hello").stdout == f"hello from {workshop.prefix}\n"


def test_changed_checksum_is_refused(
    workshop: Workshop, hard_channel: Path, installer: str, tmp_path: Path
) -> None:
    workshop.configure(package_cache=tmp_path / "packages")
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    text = workshop.lock_file.read_text()
    changed = re.sub(r"#[0-9a-f]{32}$", f"#{MD5}", text, flags=re.MULTILINE)
    assert changed != text
    workshop.lock_file.write_text(changed)
    before = workshop.image.read_bytes()
    shutil.rmtree(tmp_path / "packages")
    answer = workshop.run("build", "--force", "--locked", "--installer", installer, status=1)
    assert "hard-text-2.0-0.conda" in answer.stderr
    assert re.search("no longer the file in the lock file|MD5 doesn't match", answer.stderr)
    assert workshop.image.read_bytes() == before
    assert workshop.lock_file.read_text() == changed


def test_package_that_has_gone_from_its_channel(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    """The list of the channel does not count; the cache does, and then the file itself."""
    workshop.configure(package_cache=tmp_path / "packages")
    own = tmp_path / "channel"
    shutil.copytree(hard_channel, own)
    workshop.environment("hard-text", channel=own)
    workshop.run("build", "-q")
    limit(own, hard_channel, "hard-text-2.0-0.conda")
    shutil.rmtree(tmp_path / "packages")
    workshop.run("build", "-q", "--force", "--locked")
    (own / "noarch/hard-text-2.0-0.conda").unlink()
    workshop.run("build", "-q", "--force", "--locked")
    shutil.rmtree(tmp_path / "packages")
    answer = workshop.run("build", "--force", "--locked", status=1)
    assert f"there is no file {own}/noarch/hard-text-2.0-0.conda" in answer.stderr
    assert "build without --locked" in answer.stderr


def test_locked_build_without_a_lock_file(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    answer = workshop.run("build", "--locked", status=1)
    assert f"there is no lock file {workshop.lock_file}" in answer.stderr
    assert "build once without --locked" in answer.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it has no line @EXPLICIT"),
        (f"{URL}\n", "it has no line @EXPLICIT"),
        ("@EXPLICIT\nsome-thing=1.0\n", "'some-thing=1.0' in the lock file is not a URL"),
        (f"@EXPLICIT\n{URL}#123\n", "is not a URL of a conda package"),
        (f"@EXPLICIT\n{URL}\n# pip some thing\n", "'# pip some thing' in the lock file"),
        (f"@EXPLICIT\n{URL}\n# pip some\n", "'# pip some' in the lock file"),
        (f"@EXPLICIT\n{URL}\n# pip some==1 --hash=md5:123\n", "is not a package for pip"),
        (
            f"@EXPLICIT\n{URL}\n# pip a @ file:///x#sha256={'0' * 64} --hash=sha256:{'1' * 64}\n",
            "has two checksums",
        ),
    ],
)
def test_broken_lock_file_is_named(
    workshop: Workshop, hard_channel: Path, text: str, words: str
) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.lock_file.write_text(text)
    answer = workshop.run("build", "--locked", status=1)
    assert words in answer.stderr
    assert "solve" not in answer.stderr


@pytest.mark.parametrize(
    "changes",
    [
        [("# platform: noarch", "# platform: osx-arm64")],
        [("# platform: noarch", ""), ("/noarch/", "/win-64/")],
    ],
)
def test_lock_file_of_another_platform_is_refused(
    workshop: Workshop, hard_channel: Path, changes: list[tuple[str, str]]
) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    text = workshop.lock_file.read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    workshop.lock_file.write_text(text)
    answer = workshop.run("build", "--force", "--locked", status=1)
    foreign = changes[-1][1].strip("/").removeprefix("# platform: ")
    assert f"the lock file {workshop.lock_file} is for {foreign}, this machine is " in answer.stderr
    assert f"this machine is {Subdir.current()}\n" in answer.stderr
    assert "solve" not in answer.stderr


def test_lock_file_that_is_not_text(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.lock_file.write_bytes(b"\xff\xfe@EXPLICIT")
    answer = workshop.run("build", "--locked", status=1)
    assert f"cannot read the lock file {workshop.lock_file}" in answer.stderr
