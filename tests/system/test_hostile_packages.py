"""Packages that do what none should: what lies outside of the prefix stays as it is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from rattler.index import index_fs

from condainer.errors import BuildError
from condainer.pipeline.installers import contents
from condainer.project import image
from tests import building
from tests.localchannel.package import PLACEHOLDER, Package, put, subdir, write

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support import Workshop

NAME = "hostile"
STEM = f"{NAME}-1.0-0"


def listing(*paths: str, kind: str = "hardlink") -> bytes:
    """An `info/paths.json` of some paths."""
    entries = [{"_path": path, "path_type": kind} for path in paths]
    return json.dumps({"paths": entries, "paths_version": 1}).encode()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that no package may change, with a file in it."""
    put(tmp_path, "outside/file", "precious\n")
    return tmp_path / "outside"


@pytest.fixture
def project(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A project that wants the hostile package, with a package cache of its own."""
    workshop.configure(package_cache=tmp_path / "packages")
    workshop.environment(NAME, channel=tmp_path / "channel")
    return workshop


def publish(
    tmp_path: Path,
    package: Package,
    files: Mapping[str, str] = MappingProxyType({}),
    links: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Put a package into the channel of the test."""
    tree = tmp_path / "trees" / package.name
    tree.mkdir(parents=True)
    for name, content in files.items():
        put(tree, name, content, 0o755)
    for name, target in links.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(target)
    for each in (subdir(), "noarch"):
        (tmp_path / "channel" / each).mkdir(parents=True, exist_ok=True)
    write(package, tree, tmp_path / "channel")
    asyncio.run(index_fs(tmp_path / "channel", write_shards=False))


def refuse(project: Workshop, outside: Path, path: str, stem: str = STEM) -> None:
    """Build, and see that the package is refused and that nothing outside has changed."""
    before = building.picture(outside)
    answer = project.run("build", status=1)
    assert f"the package {stem} would write outside of the environment: {path}\n" in answer.stderr
    assert "leave that package out" in answer.stderr
    assert building.picture(outside) == before
    assert project.left_over() == []
    assert "linked" not in project.build_log.read_text()


def test_absolute_path(project: Workshop, tmp_path: Path, outside: Path) -> None:
    path = f"{outside}/file"
    publish(tmp_path, Package(name=NAME, version="1.0", info={"paths.json": listing(path)}))
    refuse(project, outside, path)


def test_path_with_dots(project: Workshop, tmp_path: Path, outside: Path) -> None:
    path = (
        f"../{STEM}/share/file"  # beside the prefix, and in the package cache a file that is there
    )
    package = Package(name=NAME, version="1.0", info={"paths.json": listing(path)})
    publish(tmp_path, package, {"share/file": "written\n"})
    refuse(project, outside, path)


def test_path_with_a_null_byte(project: Workshop, tmp_path: Path, outside: Path) -> None:
    package = Package(name=NAME, version="1.0", info={"paths.json": listing("share/a\0b")})
    publish(tmp_path, package)
    refuse(project, outside, r"share/a\0b")


def test_path_of_an_older_package(project: Workshop, tmp_path: Path, outside: Path) -> None:
    path = f"{outside}/file"
    info = {"paths.json": None, "files": f"{path}\n".encode()}
    publish(tmp_path, Package(name=NAME, version="1.0", suffix=".tar.bz2", info=info))
    refuse(project, outside, path)


def test_path_below_a_link_of_the_same_package(
    project: Workshop, tmp_path: Path, outside: Path
) -> None:
    entries = json.loads(listing("away", kind="softlink"))
    entries["paths"] += json.loads(listing("away/deep/file"))["paths"]
    info = {"paths.json": json.dumps(entries).encode()}
    publish(tmp_path, Package(name=NAME, version="1.0", info=info), links={"away": outside})
    refuse(project, outside, "away/deep/file")


LINKS = {
    "beside": {"away": "{outside}"},
    "relative": {"deep/away": "../../{name}"},
    "chain": {"away": "share/on", "share/on": "../further", "further": "{outside}"},
    "through": {"away": "a/b/on/../..", "a/b/on": "../../c", "c/x": "nothing"},
}
"""Links of one package, by which another would write into a directory outside."""


@pytest.mark.parametrize("how", LINKS)
def test_path_below_a_link_of_another_package(
    project: Workshop, tmp_path: Path, outside: Path, how: str
) -> None:
    given = {"outside": str(outside), "name": f"../../../{outside}"}
    links = {name: Path(target.format(**given)) for name, target in LINKS[how].items()}
    below = "deep/away" if how == "relative" else "away"
    publish(tmp_path, Package(name="links", version="1.0"), links=links)
    publish(tmp_path, Package(name=NAME, version="1.0"), {f"{below}/file": "hostile\n"})
    project.environment(NAME, "links", channel=tmp_path / "channel")
    refuse(project, outside, f"{below}/file")


@pytest.mark.parametrize("place", ["conda-meta", "bin", "lib/python3.12/site-packages"])
def test_link_in_the_place_of_a_directory_that_all_write_to(
    project: Workshop, tmp_path: Path, outside: Path, place: str
) -> None:
    publish(tmp_path, Package(name="python", version="3.12.0"), {"share/python": ""})
    module = Package(
        name=NAME,
        version="1.0",
        noarch="python",
        depends=("python",),
        entry_points=("hostile = module:main",),
    )
    publish(tmp_path, module, {"site-packages/module.py": ""})
    publish(tmp_path, Package(name="links", version="1.0"), links={place: outside})
    project.environment(NAME, "links", channel=tmp_path / "channel")
    before = building.picture(outside)
    assert "would write outside of the environment" in project.run("build", status=1).stderr
    assert building.picture(outside) == before
    assert project.left_over() == []


def test_links_of_one_package_that_another_writes_through_stay_within(
    project: Workshop, tmp_path: Path
) -> None:
    """As the packages of compilers have them: `lib64 -> lib`."""
    files = {"sysroot/lib/own": "own\n"}
    publish(tmp_path, Package(name="links", version="1.0"), files, {"sysroot/lib64": Path("lib")})
    publish(tmp_path, Package(name=NAME, version="1.0"), {"sysroot/lib64/file": "other\n"})
    project.environment(NAME, "links", channel=tmp_path / "channel")
    project.run("build", "-q")
    tree = building.unpack(project.image, tmp_path / "unpacked")
    assert (tree / "sysroot/lib64/file").read_text() == "other\n"


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("below", [False, True])
def test_link_listed_as_a_file_is_not_followed(
    project: Workshop, tmp_path: Path, outside: Path, *, prefixed: bool, below: bool
) -> None:
    """What it leads to would come into the image, changed where a prefix stands in it."""
    put(outside, "secret", f"{PLACEHOLDER}\n" if prefixed else "secret\n")
    path = "share/secret" if below else "secret"
    entry = {"_path": path, "path_type": "hardlink", "size_in_bytes": 7}
    if prefixed:
        entry |= {"prefix_placeholder": PLACEHOLDER, "file_mode": "text"}
    paths = json.dumps({"paths": [entry], "paths_version": 1}).encode()
    link = {"share": outside} if below else {"secret": outside / "secret"}
    publish(tmp_path, Package(name=NAME, version="1.0", info={"paths.json": paths}), links=link)
    before = building.picture(outside)
    answer = project.run("build", status=1)
    assert f"has a link out of the package in place of a file: {path}" in answer.stderr
    assert building.picture(outside) == before
    assert project.left_over() == []


def test_link_that_points_outside_is_allowed(
    project: Workshop, tmp_path: Path, outside: Path
) -> None:
    package = Package(name=NAME, version="1.0")
    publish(tmp_path, package, {"awayward": "beside it\n"}, {"away": outside})
    project.run("build", "-q")
    tree = building.unpack(project.image, tmp_path / "unpacked")
    assert (tree / "away").readlink() == outside
    assert (tree / "awayward").read_text() == "beside it\n"


def test_package_that_is_in_the_cache_already(
    project: Workshop, tmp_path: Path, outside: Path
) -> None:
    publish(tmp_path, Package(name=NAME, version="1.0"), {"share/file": "written\n"})
    path = f"{outside}/file"
    with building.served(tmp_path / "channel") as url:
        project.environment(NAME, channel=url)
        project.run("build", "-q")
        project.image.unlink()
        (tmp_path / "packages" / STEM / "info/paths.json").write_bytes(listing(path))
        refuse(project, outside, path)


def test_package_in_the_cache_is_compared_with_the_archive_that_is_at_hand(
    project: Workshop, tmp_path: Path, outside: Path
) -> None:
    publish(tmp_path, Package(name=NAME, version="1.0"), {"share/file": "written\n"})
    project.run("build", "-q")
    (tmp_path / "packages" / STEM / "info/paths.json").write_bytes(listing(f"{outside}/file"))
    before = building.picture(outside)
    project.run("build", "-q", "--force")
    assert building.picture(outside) == before
    assert "the package cache is damaged" in project.build_log.read_text()


def test_package_that_takes_the_place_of_another_in_the_cache(
    project: Workshop, tmp_path: Path, outside: Path
) -> None:
    """What rattler fetches itself, as its name, version and build are those of one there."""
    publish(tmp_path, Package(name=NAME, version="1.0"), {"share/file": "harmless\n"})
    project.run("build", "-q")
    project.image.unlink()
    shutil.rmtree(tmp_path / "channel")
    shutil.rmtree(tmp_path / "trees")
    publish(tmp_path, Package(name=NAME, version="1.0"), links={"conda-meta": outside})
    refuse(project, outside, "conda-meta", "that has this link")
    shutil.rmtree(tmp_path / "channel")
    shutil.rmtree(tmp_path / "trees")
    publish(tmp_path, Package(name=NAME, version="1.0"), {"share/file": "harmless again\n"})
    project.run("build", "-q")


def test_refused_package_does_not_stay_in_the_cache(
    project: Workshop, tmp_path: Path, outside: Path
) -> None:
    package = Package(name=NAME, version="1.0", info={"paths.json": listing("/nowhere")})
    publish(tmp_path, package, {"share/file": "written\n"})
    for _ in range(2):
        refuse(project, outside, "/nowhere")
        assert [path for path in (tmp_path / "packages").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("above", ["..", "/tmp/nowhere"])
def test_channel_that_has_modules_put_outside(
    project: Workshop, tmp_path: Path, outside: Path, above: str
) -> None:
    """`python_site_packages_path` of the record of python says where modules go."""
    publish(tmp_path, Package(name="python", version="3.12.0"), {"bin/python": ""})
    module = Package(name=NAME, version="1.0", noarch="python", depends=("python",))
    publish(tmp_path, module, {"site-packages/module.py": ""})
    repodata = tmp_path / "channel" / subdir() / "repodata.json"
    document = json.loads(repodata.read_bytes())
    (record,) = document["packages.conda"].values()
    record["python_site_packages_path"] = f"{above}/modules"
    repodata.write_text(json.dumps(document))
    repodata.with_suffix(".json.zst").unlink()
    refuse(project, outside, f"{above}/modules", "python-3.12.0-0")


def test_a_name_that_leads_out_of_the_cache(
    project: Workshop, tmp_path: Path, outside: Path
) -> None:
    """Name, version and build are those of the channel's index."""
    publish(tmp_path, Package(name=NAME, version="1.0"), {"file": "hostile\n"})
    repodata = tmp_path / "channel" / subdir() / "repodata.json"
    document = json.loads(repodata.read_bytes())
    (record,) = document["packages.conda"].values()
    record["build"] = "0/../../../outside"
    repodata.write_text(json.dumps(document))
    repodata.with_suffix(".json.zst").unlink()
    before = building.picture(outside)
    words = project.run("build", status=1).stderr
    assert (
        "contains characters that a file name cannot have: 'hostile-1.0-0/../../../outside'"
        in words
    )
    assert building.picture(outside) == before
    assert project.left_over() == []


def test_deep_directories_are_packed(project: Workshop, tmp_path: Path) -> None:
    script = f'#!/bin/bash\nmkdir -p "$PREFIX/{"d/" * 1500}"\n'
    files = {f"bin/.{NAME}-post-link.sh": script}
    publish(tmp_path, Package(name=NAME, version="1.0"), files)
    project.run("build", "-q")
    assert image.read_superblock(project.image).inodes > 1500


def test_path_that_is_too_long_for_an_image(project: Workshop, tmp_path: Path) -> None:
    script = f'#!/bin/bash\ncd "$PREFIX" && mkdir -p "{"directory/" * 2000}"\n'
    files = {f"bin/.{NAME}-post-link.sh": script}
    publish(tmp_path, Package(name=NAME, version="1.0"), files)
    answer = project.run("build", status=1)
    assert "has more than 4,095 bytes; it begins with directory/directory/" in answer.stderr
    assert len(answer.stderr) < 1000
    assert project.left_over() == []


def test_script_that_puts_a_link_in_the_place_of_the_prefix(
    project: Workshop, tmp_path: Path, outside: Path
) -> None:
    """No program of what the link points to runs, and it stays as it is; only the link goes."""
    put(outside, "bin/python", f"#!/bin/sh\ntouch {tmp_path}/ran\n", 0o755)
    script = f'#!/bin/bash\nrm -r "$PREFIX"\nln -s {outside} "$PREFIX"\n'
    files = {f"bin/.{NAME}-post-link.sh": script, "share/file": ""}
    publish(tmp_path, Package(name=NAME, version="1.0"), files)
    before = building.picture(outside)
    answer = project.run("build", status=1)
    assert f"{project.prefix} is no longer the directory that this build has made" in answer.stderr
    assert building.picture(outside) == before
    assert not (tmp_path / "ran").exists()
    assert project.left_over() == []


@pytest.mark.parametrize("name", ["paths.json", "index.json", "files"])
def test_a_package_with_a_pipe_in_the_place_of_its_record(tmp_path: Path, name: str) -> None:
    """Rattler would wait for somebody to write."""
    (tmp_path / "info").mkdir()
    os.mkfifo(tmp_path / "info" / name)
    with pytest.raises(BuildError, match=f"has an info/{name} that is not a file"):
        contents.check_package("a-1-0", tmp_path)
