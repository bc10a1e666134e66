"""What pip adds: the `pip:` list of environment.yml, then requirements.txt, and the lock file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from condainer.pipeline import logins
from condainer.project import image
from tests import building, support
from tests.wheels import make_index, make_source, make_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support import Workshop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with wheels that are nowhere else, and their index below it."""
    directory = tmp_path_factory.mktemp("wheels")
    for name in ("alpha", "beta", "gamma"):
        make_wheel(directory, f"cnd_{name}", "1.0")
    make_wheel(directory, "cnd_delta", "1.0", "cnd-alpha", "cnd-beta; extra == 'more'")
    make_index(directory)
    return directory


@pytest.fixture(scope="module")
def all_kinds(
    tmp_path_factory: pytest.TempPathFactory, home: Path, basic_channel: Path, wheels: Path
) -> Iterator[Workshop]:
    """A project that uses pip in every way there is."""
    directory = tmp_path_factory.mktemp("pip") / "my project"
    with building.new_workshop(directory, home) as made:
        make_wheel(made.directory / "local", "cnd_local", "1.0")
        make_source(made.directory / "source tree", "cnd_source")
        (made.directory / "more").mkdir()
        (made.directory / "more/list.txt").write_text("-r further.txt\n")
        (made.directory / "more/further.txt").write_text("cnd-gamma\n")
        (made.directory / "limits.txt").write_text("cnd-alpha<2\n")
        made.environment(
            *("python", "pygments"),
            channel=basic_channel,
            more=(
                "  - pip:\n"
                f"    - --index-url {(wheels / 'simple').as_uri()}\n"
                "    - -r more/list.txt  # relative to this file\n"
                "    - -c limits.txt\n"
                "    - ./local/cnd_local-1.0-py3-none-any.whl\n"
                "    - './source tree'\n"
                f"    - cnd-beta @ {(wheels / 'cnd_beta-1.0-py3-none-any.whl').as_uri()}\n"
                "    - cnd-delta[more]\n"
                "variables:\n  CND_TEST: 1\n"
            ),
        )
        made.run("build")
        yield made
        made.run("umount", "-q")


ADDED = {
    *("cnd_alpha", "cnd_beta", "cnd_gamma", "cnd_delta", "cnd_local", "cnd_source"),
}


def installed(workshop: Workshop) -> dict[str, str]:
    """What pip of the environment itself lists."""
    answer = workshop.run(
        *("exec", "--", "python", "-m", "pip", "list", "--format=json"),
        "--disable-pip-version-check",
    )
    return {canonical(item["name"]): item["version"] for item in json.loads(answer.stdout)}


def canonical(name: str) -> str:
    return name.lower().replace("-", "_")


def listed(workshop: Workshop) -> dict[str, str]:
    """What the manifest says that pip has added."""
    return {canonical(p["name"]): p["version"] for p in image.read_manifest(workshop.image)["pip"]}


def test_every_kind_of_line_is_installed(all_kinds: Workshop) -> None:
    assert listed(all_kinds) == dict.fromkeys(ADDED, "1.0")


def test_pip_comes_along_where_it_is_not_listed(all_kinds: Workshop) -> None:
    names = {p["name"] for p in image.read_manifest(all_kinds.image)["packages"]}
    assert {"python", "pip", "pygments"} <= names


def test_pip_list_agrees_with_the_manifest(all_kinds: Workshop) -> None:
    packages = image.read_manifest(all_kinds.image)["packages"]
    of_conda = {canonical(p["name"]): p["version"] for p in packages if p["name"] != "python"}
    assert installed(all_kinds) == {**of_conda, **listed(all_kinds)}


def test_what_pip_installs_runs_and_is_compiled(all_kinds: Workshop) -> None:
    code = "import cnd_source; print(cnd_source.VERSION, cnd_source.__cached__)"
    answer = all_kinds.run("exec", "--", "python", "-v", "-c", code)
    version, cached = answer.stdout.split()
    assert version == "1.0"
    assert f"# {cached} matches" in answer.stderr
    script = all_kinds.run("exec", "sh", "-c", 'head -1 "$CONDA_PREFIX/bin/cnd_source"').stdout
    assert script.startswith(f"#!{all_kinds.prefix}/bin/python")


def test_output_of_pip_is_in_the_log(all_kinds: Workshop) -> None:
    assert "Successfully installed cnd-alpha-1.0" in all_kinds.build_log.read_text()


def test_lock_file_names_origin_and_checksum(all_kinds: Workshop, wheels: Path) -> None:
    lines = [line for line in all_kinds.lock_file.read_text().splitlines() if "# pip " in line]
    assert len(lines) == len(ADDED)
    wheel = wheels / "cnd_alpha-1.0-py3-none-any.whl"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert f"# pip cnd_alpha==1.0 @ {wheel.as_uri()} --hash=sha256:{digest}" in lines


@pytest.fixture
def indexed(workshop: Workshop, basic_channel: Path, tmp_path: Path) -> Workshop:
    """A project whose pip asks an index of the test's own; it has cnd_one 1.0."""
    make_wheel(tmp_path / "wheels", "cnd_one", "1.0")
    index = make_index(tmp_path / "wheels")
    workshop.variables["PIP_INDEX_URL"] = index.as_uri()
    workshop.environment("python", channel=basic_channel, more="  - pip:\n    - cnd-one\n")
    return workshop


def test_locked_build_installs_the_very_same(indexed: Workshop, tmp_path: Path) -> None:
    indexed.run("build", "-q")
    lock = indexed.lock_file.read_text()
    make_wheel(tmp_path / "wheels", "cnd_one", "2.0")
    make_wheel(tmp_path / "wheels", "cnd_two", "1.0")
    make_index(tmp_path / "wheels")
    (indexed.directory / "requirements.txt").write_text("cnd-two\n")
    indexed.run("build", "-q", "--force", "--locked")
    assert listed(indexed) == {"cnd_one": "1.0"}
    assert indexed.lock_file.read_text() == lock
    indexed.run("build", "-q", "--force")
    assert listed(indexed) == {"cnd_one": "2.0", "cnd_two": "1.0"}


def test_locked_build_takes_lines_of_other_programs(indexed: Workshop, tmp_path: Path) -> None:
    """As conda-lock and pip write them: a checksum here or there, with a URL or without."""
    for name in ("cnd_two", "cnd_three"):
        make_wheel(tmp_path / "wheels", name, "1.0")
    make_index(tmp_path / "wheels")
    indexed.run("build", "-q")
    wheels = {name: tmp_path / "wheels" / f"{name}-1.0-py3-none-any.whl" for name in ADDED_BY_HAND}
    url = {name: wheel.as_uri() for name, wheel in wheels.items()}
    digest = {
        name: hashlib.sha256(wheel.read_bytes()).hexdigest() for name, wheel in wheels.items()
    }
    lines = (
        f"# pip cnd_one @ {url['cnd_one']}#sha256={digest['cnd_one']}",
        f"# pip cnd-two==1.0 --hash=sha256:{digest['cnd_two']}",
        f"# pip cnd_three @ {url['cnd_three']} --hash=sha256:{digest['cnd_three']}",
    )
    own = [line for line in indexed.lock_file.read_text().splitlines() if "# pip " not in line]
    indexed.lock_file.write_text("\n".join([*own, *lines, ""]))
    indexed.run("build", "-q", "--force", "--locked")
    assert listed(indexed) == dict.fromkeys(ADDED_BY_HAND, "1.0")
    another = f"# pip cnd-two==1.0 --hash=sha256:{digest['cnd_one']}"
    indexed.lock_file.write_text("\n".join([*own, another, ""]))
    answer = indexed.run("build", "--force", "--locked", status=1)
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in answer.stderr


def test_pip_asks_nobody_offline(workshop: Workshop, basic_channel: Path, tmp_path: Path) -> None:
    """Neither an index nor the server of a URL, unless that is here."""
    wheel = make_wheel(tmp_path / "wheels", "cnd_four", "1.0")
    workshop.environment("python", "pip", channel=basic_channel)
    requirements = workshop.directory / "requirements.txt"
    with building.served_in_part(0, tmp_path / "wheels") as (url, asked):
        workshop.variables["PIP_INDEX_URL"] = f"{url}/simple"
        for line in ("cnd-four==1.0", f"cnd-four @ {url}/{wheel.name}"):
            requirements.write_text(f"{line}\n")
            answer = workshop.run("build", "--force", "--offline", status=1)
            assert (
                "with --offline, pip can use its own cache and files of this machine only"
                in answer.stderr
            )
        assert asked == []
    requirements.write_text(f"{wheel}\n")
    workshop.run("build", "-q", "--force", "--offline")
    assert listed(workshop)["cnd_four"] == "1.0"


def test_indexes_in_directories_count_offline(
    workshop: Workshop, basic_channel: Path, wheels: Path, tmp_path: Path
) -> None:
    """Beside others, which are not asked."""
    make_wheel(workshop.directory / "local", "cnd_four", "1.0")
    (tmp_path / "other").mkdir()
    make_wheel(tmp_path / "other", "cnd_five", "1.0")
    make_index(tmp_path / "other")
    workshop.environment("python", "pip", channel=basic_channel)
    (workshop.directory / "requirements.txt").write_text(
        f"--extra-index-url {(tmp_path / 'other/simple').as_uri()}\n"
        "--find-links local\n"
        "cnd-delta\ncnd-four\ncnd-five\n"
    )
    with building.served_in_part(0, wheels) as (url, asked):
        workshop.variables["PIP_EXTRA_INDEX_URL"] = f"{url}/simple"
        workshop.variables["PIP_INDEX_URL"] = (wheels / "simple").as_uri()
        workshop.run("build", "-q", "--force", "--offline")
        assert asked == []
    assert listed(workshop).keys() >= {"cnd_alpha", "cnd_delta", "cnd_four", "cnd_five"}


ADDED_BY_HAND = ("cnd_one", "cnd_two", "cnd_three")


def test_locked_build_refuses_another_file_of_the_same_name(
    indexed: Workshop, tmp_path: Path
) -> None:
    indexed.run("build", "-q")
    make_wheel(tmp_path / "wheels", "cnd_one", "1.0", "something-new")
    indexed.variables["PIP_NO_CACHE_DIR"] = "1"
    answer = indexed.run("build", "--force", "--locked", status=1)
    assert "pip failed" in answer.stderr
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in answer.stderr


def test_requirements_come_after_the_list(indexed: Workshop, tmp_path: Path) -> None:
    """Both name the same package: what requirements.txt asks for stays."""
    make_wheel(tmp_path / "wheels", "cnd_one", "2.0")
    make_index(tmp_path / "wheels")
    (indexed.directory / "wanted.txt").write_text("cnd-one<2\n")
    indexed.configure(requirements_txt="wanted.txt")
    indexed.run("build", "-q")
    assert listed(indexed) == {"cnd_one": "1.0"}
    assert "# pip cnd_one==1.0 @ " in indexed.lock_file.read_text()
    assert "cnd_one==2.0" not in indexed.lock_file.read_text()
    assert image.read_manifest(indexed.image)["requirements_txt"] == "cnd-one<2\n"


def test_requirements_alone_bring_pip_along(indexed: Workshop, basic_channel: Path) -> None:
    indexed.environment("python", channel=basic_channel)
    (indexed.directory / "requirements.txt").write_text("cnd-one\n")
    indexed.run("build", "-q")
    assert listed(indexed) == {"cnd_one": "1.0"}


def test_credentials_of_an_index_are_kept_nowhere(
    workshop: Workshop, basic_channel: Path, tmp_path: Path
) -> None:
    """Also where pip runs itself with the same index, to build a package."""
    make_wheel(tmp_path / "wheels", "cnd_two", "1.0")
    make_index(make_wheel(tmp_path / "wheels", "cnd_one", "1.0").parent)
    project = make_source(workshop.directory / "tree", "cnd_three") / "pyproject.toml"
    project.write_text(project.read_text().replace("requires = []", "requires = ['cnd-two']"))
    workshop.environment("python", channel=basic_channel)
    seen: list[bytes] = []
    with building.served_to("someone:s3cret@", tmp_path / "wheels", seen) as (url, _):
        wanted = f"--index-url {url}/simple\ncnd-one\n./tree\n"
        (workshop.directory / "requirements.txt").write_text(wanted)
        said = workshop.run("build", "-v")
    assert listed(workshop) == {"cnd_one": "1.0", "cnd_three": "1.0"}
    assert b"cnd-two" in b"".join(seen)
    assert b"s3cret" not in b"".join(seen)
    assert "s3cret" not in said.stdout + said.stderr
    assert "s3cret" not in workshop.lock_file.read_text() + workshop.build_log.read_text()
    unpacked = building.unpack(workshop.image, tmp_path / "image")
    assert building.holders(b"s3cret", unpacked) == []


def test_pip_that_is_too_old_to_tell_is_not_passed_over(
    indexed: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "from condainer import cli; from condainer.pipeline import pip; "
        "pip._REPORT_SINCE = (9999,); cli.entry()"
    )
    monkeypatch.setattr(support, "CONDAINER", (sys.executable, "-c", program))
    answer = indexed.run("build")
    assert f"{indexed.directory}/environment.yml: this pip is older than 22.2" in answer.stderr
    assert "cnd_one" not in indexed.lock_file.read_text()
    assert listed(indexed) == {"cnd_one": "1.0"}


@pytest.mark.parametrize("name", ["environment.yml", "requirements.txt"])
def test_failing_pip_shows_its_last_lines_and_the_log(
    indexed: Workshop, basic_channel: Path, name: str
) -> None:
    indexed.image.write_bytes(b"an old image")
    if name == "environment.yml":
        more = "  - pip:\n    - cnd-nowhere\n"
        indexed.environment("python", channel=basic_channel, more=more)
    else:
        (indexed.directory / name).write_text("cnd-nowhere\n")
    answer = indexed.run("build", "--force", status=1)
    assert "pip failed (exit status 1) for " in answer.stderr
    assert f"{indexed.directory}/{name}:\n" in answer.stderr
    assert "No matching distribution found for cnd-nowhere" in answer.stderr
    assert f"the log is {indexed.build_log}" in answer.stderr
    assert "No matching distribution found" in indexed.build_log.read_text()
    assert indexed.image.read_bytes() == b"an old image"
    assert indexed.left_over() == []
    assert building.parts(indexed) == []


def test_editable_packages_become_copies(
    indexed: Workshop, basic_channel: Path, tmp_path: Path
) -> None:
    """In the `pip:` list, in requirements.txt and in files that it names in whichever way."""
    here = indexed.directory
    for name in ("listed", "required", "nested", "variable", "uri"):
        make_source(here / f"with space/{name}", f"cnd_{name}")
    repository = make_repository(make_source(tmp_path / "git", "cnd_git"), tmp_path / "git.git")
    indexed.environment(
        "python", channel=basic_channel, more="  - pip:\n    - -e ./with space/listed[extra]\n"
    )
    (here / "requirements.txt").write_text(
        "--editable='./with space/required'\n-r more/other.txt\n-r ${CND_HERE}/more/variable.txt\n"
        f"-r {(here / 'more/uri.txt').as_uri()}\n-e git+{repository.as_uri()}#egg=cnd_git\n"
    )
    (here / "more").mkdir()
    (here / "more/other.txt").write_text("# a \\\n-e \\\n  ./with space/nested # mine\n")
    (here / "more/variable.txt").write_text("-e ${CND_HERE}/with space/variable\n")
    (here / "more/uri.txt").write_text("-e ./with space/uri\n")
    indexed.variables["CND_HERE"] = str(here)
    built = indexed.run("build", "--force")
    assert built.stderr.count("a copy is installed instead of -e") == 2
    assert "'build --locked' cannot install" in built.stderr
    assert f"# pip cnd_git==1.0 @ git+{repository.as_uri()}@" in indexed.lock_file.read_text()
    (here / "with space").rename(here / "gone")
    code = "import cnd_listed, cnd_required, cnd_nested, cnd_variable, cnd_uri, cnd_git"
    indexed.run("exec", "--", "python", "-c", code)
    refused = indexed.run("build", "--locked", "--force", status=1)
    assert "the lock file lists a directory" in refused.stderr
    assert "pip wheel" in refused.stderr


def test_editable_packages_that_a_file_elsewhere_lists_are_refused(
    indexed: Workshop, basic_channel: Path, tmp_path: Path
) -> None:
    indexed.environment("python", channel=basic_channel)
    source = make_source(tmp_path / "git", "cnd_git")
    with (source / "build/backend.py").open("a") as backend:
        backend.write("build_editable = build_wheel\n")
    repository = make_repository(source, tmp_path / "git.git")
    (tmp_path / "served").mkdir()
    (tmp_path / "served/list.txt").write_text(f"-e git+{repository.as_uri()}#egg=cnd_git\n")
    with building.served(tmp_path / "served") as url:
        (indexed.directory / "requirements.txt").write_text(f"-r {url}/list.txt\n")
        refused = indexed.run("build", "--force", status=1).stderr
    assert "cnd_git" in refused
    assert "list it without -e" in refused
    assert not (indexed.directory / "src").exists()


def make_repository(source: Path, bare: Path) -> Path:
    """A repository of git with one commit, as a server of files can serve it."""

    def git(*words: str | Path) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", *who, *map(str, words)], check=True, capture_output=True)

    git("init", "-q", "-b", "main", source)
    git("-C", source, "add", ".")
    git("-C", source, "commit", "-q", "-m", "all")
    git("clone", "-q", "--bare", source, bare)
    git("-C", bare, "update-server-info")
    return bare


def test_passwords_in_requirements_are_in_no_command_line(
    workshop: Workshop, basic_channel: Path, tmp_path: Path
) -> None:
    """Of repositories of git and of files, by variables, in nested files and in pip's own."""
    served = tmp_path / "served"
    for name in ("cnd_first", "cnd_second"):
        make_repository(make_source(tmp_path / name, name), served / f"{name}.git")
    wheel = make_wheel(served, "cnd_wheel", "1.0")
    project = make_source(workshop.directory / "tree", "cnd_tree") / "pyproject.toml"
    project.write_text(project.read_text().replace("requires = []", "requires = ['cnd-needed']"))
    index = make_index(make_wheel(tmp_path / "served/index", "cnd_needed", "1.0").parent)
    assert index.is_dir()
    seen: list[bytes] = []
    with building.served_to("someone:s3cret@", served, seen) as (url, bare):
        host = bare.removeprefix("http://")
        more = (
            "  - pip:\n"
            f"    - cnd_first @ git+{url}/cnd_first.git\n"
            f"    - -e git+http://someone:${{SECRET}}@{host}/cnd_second.git@main#egg=cnd_second\n"
        )
        workshop.environment("python", channel=basic_channel, more=more)
        (workshop.directory / "requirements.txt").write_text("-r nested/more.txt\n./tree\n")
        (workshop.directory / "nested").mkdir()
        (workshop.directory / "nested/more.txt").write_text(f"{url}/{wheel.name}\n")
        (tmp_path / "pip.conf").write_text(f"[install]\nindex-url = {url}/index/simple\n")
        workshop.variables |= {"SECRET": "s3cret", "PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
        said = workshop.run("build", "-v")
        lines = workshop.lock_file.read_text().splitlines(keepends=True)
        workshop.lock_file.write_text("".join(line for line in lines if "cnd_tree" not in line))
        workshop.run("build", "-q", "--force", "--locked")
    assert set(listed(workshop)) == {"cnd_first", "cnd_second", "cnd_wheel"}
    shown = b"\n".join(seen)
    assert f"{bare}/cnd_second.git".encode() in shown
    assert b"cnd-needed" in shown
    assert b"s3cret" not in shown
    lock = workshop.lock_file.read_text()
    assert f"git+{bare}/cnd_first.git@" in lock
    assert f"{bare}/{wheel.name}" in lock
    assert "s3cret" not in said.stdout + said.stderr + lock + workshop.build_log.read_text()
    unpacked = building.unpack(workshop.image, tmp_path / "image")
    assert building.holders(b"s3cret", unpacked) == []


def test_git_is_told_each_login_for_its_repository(tmp_path: Path) -> None:
    """And a user's name alone may be a token."""
    (tmp_path / "requirements.txt").write_text(
        "git+https://a:s3cret-1@example.org/one.git@v1\n"
        "git+https://b:s3cret%232@example.org/two.git\n"
        "git+https://s3cret-3@example.com:8443/x.git\n"
    )
    path, variables = logins.handed([tmp_path / "requirements.txt"], dict(os.environ), tmp_path)
    assert path.read_text() == (
        "git+https://example.org/one.git@v1\n"
        "git+https://example.org/two.git\n"
        "git+https://example.com:8443/x.git\n"
    )
    for place, user, password in (
        ("example.org/one.git", "a", "s3cret-1"),
        ("example.org/two.git", "b", "s3cret#2"),
        ("example.com:8443/x.git", "s3cret-3", ""),
    ):
        filled = subprocess.run(
            ["git", "credential", "fill"],
            input=f"url=https://{place}\n\n",
            env={**os.environ, **variables, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"username={user}\npassword={password}\n" in filled.stdout
