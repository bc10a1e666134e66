"""What is in an image: the tree as conda would install it, the manifest, and what a build says."""

from __future__ import annotations

import json
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import condainer
from condainer.project import image
from tests import building, support
from tests.localchannel.hardcases import BINARY, NAMES, TEXT
from tests.localchannel.package import EPOCH, PLACEHOLDER, SITE_PACKAGES, Package, put

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support import Workshop

pytestmark = pytest.mark.slow

VARIABLES = "variables:\n  PLAIN: a b\n  HARD_QUOTING: größe $HOME 'x' \"y\"\n"


@pytest.fixture(scope="module")
def everything(
    tmp_path_factory: pytest.TempPathFactory, home: Path, hard_channel: Path
) -> Iterator[Workshop]:
    """A project of all hard cases together, built with rattler."""
    directory = tmp_path_factory.mktemp("everything") / "my project"
    with building.new_workshop(directory, home) as made:
        made.environment(*building.EVERYTHING, channel=hard_channel, more=VARIABLES)
        made.run("build", "--installer", "rattler")
        yield made
        made.run("umount", "-q")


@pytest.fixture(scope="module")
def tree(everything: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is in its image."""
    return building.unpack(everything.image, tmp_path_factory.mktemp("tree") / "rattler")


@pytest.fixture(scope="module")
def other_tree(
    everything: Workshop, micromamba: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What is in the image of the same project, built with micromamba."""
    directory = tmp_path_factory.mktemp("tree")
    everything.run("umount", "-q")
    project = everything.copy(directory / "my project")
    project.run("build", "--force", "--installer", str(micromamba))
    return building.unpack(project.image, directory / "micromamba")


# The tree


def test_text_placeholders_hold_the_mountpoint(tree: Path, everything: Workshop) -> None:
    expected = TEXT.replace(PLACEHOLDER, str(everything.prefix)) + "\nedited = true\n"
    assert (tree / "etc/hard-text.conf").read_text() == expected
    assert str(everything.prefix) in (tree / "bin/hard-text").read_text()


def test_binary_placeholders_hold_the_mountpoint_and_keep_their_length(
    tree: Path, everything: Workshop
) -> None:
    content = (tree / "share/hard-binary/data.bin").read_bytes()
    prefix = str(everything.prefix).encode()
    assert len(content) == len(BINARY)
    assert b"first=" + prefix + b"/share/hard-binary\0" in content
    assert b"second=" + prefix + b"/lib:" + prefix + b"/lib64\0" in content


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("file", "target/file.txt"),
        ("directory", "target"),
        ("target/upwards", "../target/file.txt"),
        ("dangling", "nowhere"),
    ],
)
def test_soft_links_are_soft_links(tree: Path, link: str, target: str) -> None:
    assert str((tree / "share/hard-links" / link).readlink()) == target


def test_modes_are_the_packages_own(tree: Path) -> None:
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (tree / "share/hard-modes").iterdir()
    }
    expected = {"0755": 0o755, "0644": 0o644, "0444": 0o444, "0600": 0o600, "2755": 0o755}
    assert modes == expected


@building.needs_root
def test_all_belongs_to_root_and_is_open_to_readers(tree: Path) -> None:
    for path in [tree, *tree.rglob("*")]:
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (0, 0), path
        if not path.is_symlink() and "hard-modes" not in path.parts:
            assert status.st_mode & 0o044 == 0o044, path


def test_empty_files_are_there(tree: Path) -> None:
    assert (tree / "share/hard-empty/file").read_bytes() == b""


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_is_kept(tree: Path, name: str) -> None:
    assert (tree / "share/hard-names" / name).read_text() == f"{name}\n"


def test_times_are_the_packages_own(tree: Path) -> None:
    assert (tree / "share/hard-times/old.txt").stat().st_mtime < EPOCH


def test_post_link_scripts_have_run_with_their_variables(tree: Path) -> None:
    assert (tree / "share/hard-post-link.txt").read_text() == "hard-post-link 1.2 3\n"
    assert (tree / "share/hard-text/version.txt").read_text() == "1.0 (edited)\n"
    assert not (tree / ".messages.txt").exists()


def test_variables_stand_where_conda_looks_for_them(tree: Path) -> None:
    state = json.loads((tree / "conda-meta/state").read_bytes())
    expected = {"PLAIN": "a b", "HARD_QUOTING": "größe $HOME 'x' \"y\""}
    assert state == {"version": 1, "env_vars": expected}


def test_one_of_two_packages_with_the_same_path_wins_and_the_log_says_so(
    tree: Path, everything: Workshop
) -> None:
    content = (tree / "share/clobber.txt").read_text()
    loser = {"from clobber-a\n": "clobber-b", "from clobber-b\n": "clobber-a"}[content]
    assert f"share/clobber.txt of {loser} is left out" in everything.build_log.read_text()
    assert (tree / "share/clobber-a.txt").exists()
    assert (tree / "share/clobber-b.txt").exists()


def test_nothing_of_the_installer_stays_in_the_tree(tree: Path) -> None:
    names = {path.name for path in tree.iterdir()}
    assert names == {".condainer", "bin", "conda-meta", "etc", "include", "lib", "share"} & names
    assert not list(tree.rglob("__clobbers__"))


def test_both_installers_make_the_same_tree(tree: Path, other_tree: Path) -> None:
    """Aside from the installers' own notes, and from where bytecode says its source lies."""
    mine, other = _comparable(tree), _comparable(other_tree)
    assert mine.keys() == other.keys()
    assert {key: (value, other[key]) for key, value in mine.items() if value != other[key]} == {}


def _comparable(top: Path) -> dict[str, tuple[object, ...]]:
    seen: dict[str, tuple[object, ...]] = {}
    for path, (mode, owner, _, content) in building.picture(top).items():
        noted = path.startswith((".condainer/", "conda-meta/")) or path.endswith(".pyc")
        seen[path] = (mode, owner, None if noted else content)
    return seen


# Programs


def test_noarch_entry_point_runs(everything: Workshop) -> None:
    answer = everything.run("exec", "--", "hard-hello")
    assert answer.stdout == f"hello from {everything.prefix}\n"


def test_variables_reach_programs(everything: Workshop) -> None:
    script = 'printf "%s|%s|%s" "$PLAIN" "$HARD_QUOTING" "$HARD_PACKAGE"'
    answer = everything.run("exec", "--", "sh", "-c", script)
    assert answer.stdout == "a b|größe $HOME 'x' \"y\"|of a package"


def test_python_compiles_nothing_any_more(everything: Workshop) -> None:
    code = "import hard_hello.cli, hard_modules.plain, hard_modules.deeper, hard_modules.größe"
    answer = everything.run("exec", "--", "python", "-v", "-c", code)
    matches = re.findall(r"# (.*) matches (.*)", answer.stderr)
    assert len(matches) >= 10
    assert _compiled(answer.stderr) == []


def test_stale_bytecode_is_replaced(everything: Workshop) -> None:
    code = "from hard_modules import stale; print(stale.VALUE, stale.__cached__)"
    answer = everything.run("exec", "--", "python", "-v", "-c", code)
    assert answer.stdout.startswith("as it is now ")
    assert _compiled(answer.stderr) == []


def _compiled(words: str) -> list[str]:
    """What `python -v` says it had to compile."""
    return re.findall(
        r"^# (?:bytecode is stale.*|code object from \S+\.py'?)$", words, re.MULTILINE
    )


def test_module_that_cannot_be_compiled_is_named_in_the_log(
    tree: Path, everything: Workshop
) -> None:
    assert (tree / SITE_PACKAGES / "hard_modules/broken.py").exists()
    assert re.search("not compiled: .*broken.py.* SyntaxError", everything.build_log.read_text())


SCRIPT = """\
export ODD_HOME="$HOME/data" ODD_CWD="$PWD"
touch "$HOME/of-home" of-cwd
"""


def test_activation_scripts_run_away_from_what_the_user_has(
    workshop: Workshop, tmp_path: Path
) -> None:
    """Neither in the user's home nor in the project, nor in what goes into the image."""

    def recipe(tree: Path) -> Package:
        put(tree, "etc/conda/activate.d/odd.sh", SCRIPT)
        return Package(name="odd", version="1.0")

    workshop.environment("odd", channel=building.make_channel(tmp_path / "channel", recipe))
    workshop.run("build", "-q")
    tree = building.unpack(workshop.image, tmp_path / "tree")
    for place in (tree, workshop.directory, Path(workshop.variables["HOME"]), Path.cwd()):
        assert not {path.name for path in place.iterdir()} & {"of-home", "of-cwd"}
    answer = workshop.run("exec", "sh", "-c", 'echo "$ODD_HOME $ODD_CWD"', variables={"HOME": "/h"})
    assert answer.stdout == f"/h/data {workshop.directory}\n"


def test_an_empty_directory_in_place_of_condainers_own_is_taken(
    workshop: Workshop, tmp_path: Path
) -> None:
    channel = building.make_channel(
        tmp_path / "channel", building.odd_package("mkdir -m 700 .condainer")
    )
    workshop.environment("odd", channel=channel)
    workshop.run("build", "-q")
    tree = building.unpack(workshop.image, tmp_path / "tree")
    assert stat.S_IMODE((tree / ".condainer").stat().st_mode) == 0o755


# The manifest


def test_manifest_is_read_without_mounting(everything: Workshop) -> None:
    manifest = image.read_manifest(everything.image)
    assert manifest["uuid"] == everything.uuid
    assert manifest["prefix"] == str(everything.prefix)
    assert manifest["environment_yml"] == (everything.directory / "environment.yml").read_text()
    assert manifest["requirements_txt"] is None
    assert manifest["host"]["machine"] == platform.machine()


def test_manifest_names_every_package_with_its_origin(
    everything: Workshop, hard_channel: Path
) -> None:
    packages = {p["name"]: p for p in image.read_manifest(everything.image)["packages"]}
    assert packages.keys() == {spec.partition("=")[0] for spec in building.EVERYTHING}
    repodata = {}
    for file in hard_channel.glob("*/repodata.json"):
        document = json.loads(file.read_bytes())
        for name, record in {**document["packages"], **document["packages.conda"]}.items():
            repodata[f"{hard_channel.as_uri()}/{file.parent.name}/{name}"] = record
    for package in packages.values():
        record = repodata[package["url"]]
        for key in ("version", "build", "build_number", "sha256", "md5", "subdir", "size"):
            assert package[key] == record[key], (package["name"], key)
        assert package["channel"] == hard_channel.as_uri()


def test_both_installers_make_the_same_manifest(tree: Path, other_tree: Path) -> None:
    mine, other = (json.loads((top / image.MANIFEST).read_bytes()) for top in (tree, other_tree))
    assert mine["tools"].pop("installer").startswith("rattler ")
    assert other["tools"].pop("installer").startswith("micromamba ")
    for manifest in (mine, other):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", manifest.pop("built"))
        manifest["packages"].sort(key=lambda package: package["name"])
    assert mine == other


def test_manifest_names_tools_and_activation(everything: Workshop) -> None:
    manifest = image.read_manifest(everything.image)
    assert manifest["tools"].keys() == {"condainer", "mksquashfs", "python", "installer"}
    assert manifest["tools"]["condainer"] == condainer.__version__
    assert manifest["tools"]["python"] == platform.python_version()
    activation = manifest["activation"]["variables"]
    assert activation["CONDA_PREFIX"] == str(everything.prefix)
    assert activation["PLAIN"] == "a b"
    assert activation["HARD_PREFIX"] == f"{everything.prefix}/share/hard-activate"


# What a build says


def test_log_lines_name_stages_and_seconds(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    answer = workshop.run("build")
    assert answer.stdout == ""
    lines = answer.stderr.splitlines()
    stages = [m[1] for line in lines if (m := re.match(r"([a-z ]+): \d+\.\d s", line))]
    expected = ["check", "solve", "fetch and link", "compile", "snapshot", "squash", "verify"]
    assert stages == [*expected, "publish"]
    assert lines.index("solve …") < next(i for i, line in enumerate(lines) if "solve:" in line)
    assert "\x1b" not in answer.stderr


def test_summary_tells_the_truth(workshop: Workshop, hard_channel: Path, tmp_path: Path) -> None:
    workshop.environment("hard-text", "hard-binary", "hard-links", channel=hard_channel)
    answer = workshop.run("build")
    tree = building.unpack(workshop.image, tmp_path / "tree")
    paths = [tree, *tree.rglob("*")]
    size = sum(path.lstat().st_size for path in paths if stat.S_ISREG(path.lstat().st_mode))
    found = re.search(
        r"\n  ([\d,]+) files, ([\d.]+) KB -> 1 file, ([\d.]+) KB \(([\d.]+) times", answer.stderr
    )
    assert found
    assert int(found[1].replace(",", "")) == len(paths)
    assert float(found[2]) == pytest.approx(size / 1000, abs=0.06)
    assert float(found[3]) == pytest.approx(workshop.image.stat().st_size / 1000, abs=0.06)
    assert float(found[4]) == pytest.approx(size / workshop.image.stat().st_size, abs=0.06)


def test_quiet_build_says_nothing(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-post-link", channel=hard_channel)
    answer = workshop.run("build", "-q")
    assert (answer.stdout, answer.stderr) == ("", "")
    assert workshop.image.exists()


@pytest.mark.parametrize("odd", ["mkfifo", "ln -s ../kept.txt"])
def test_variables_replace_what_a_package_put_in_their_place(
    workshop: Workshop, tmp_path: Path, odd: str
) -> None:
    script = f"echo kept > kept.txt; {odd} conda-meta/state"
    channel = building.make_channel(tmp_path / "channel", building.odd_package(script))
    workshop.environment("odd", channel=channel, more="variables:\n  PLAIN: a\n")
    workshop.run("build", "-q")
    tree = building.unpack(workshop.image, tmp_path / "tree")
    assert json.loads((tree / "conda-meta/state").read_bytes())["env_vars"] == {"PLAIN": "a"}
    assert (tree / "kept.txt").read_text() == "kept\n"


def test_a_second_name_of_the_library_adds_no_packages_of_pip(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    """As `lib/python3.1` of conda-forge's Python."""
    library = SITE_PACKAGES.split("/")[1]
    script = f"ln -s {library} lib/python3"
    channel = building.make_channel(tmp_path / "channel", building.odd_package(script))
    text = f"channels: [{hard_channel}, {channel}, nodefaults]\n"
    text += "dependencies: [python, hard-hello, odd]\n"
    (workshop.directory / "environment.yml").write_text(text)
    workshop.run("build", "-q")
    assert image.read_manifest(workshop.image)["pip"] == []


def test_messages_of_packages_reach_the_user(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-post-link", channel=hard_channel)
    assert "hard-post-link has something to say\n" in workshop.run("build").stderr


def test_output_of_programs_is_in_the_log_when_all_is_well(everything: Workshop) -> None:
    log = everything.build_log.read_text()
    assert "Creating 4.0 filesystem on" in log
    assert ".hard-post-link-post-link.sh" in log


def test_verbose_build_shows_the_output_of_programs(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    assert "  | Creating 4.0 filesystem on" in workshop.run("build", "-v").stderr


@pytest.mark.parametrize("image_is_there", [False, True])
def test_dry_run_changes_nothing(
    workshop: Workshop, hard_channel: Path, *, image_is_there: bool
) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    if image_is_there:
        workshop.run("build", "-q")
    before = building.picture(workshop.directory), building.picture(workshop.base)
    answer = workshop.run("build", "-n", *(["--force"] if image_is_there else []))
    assert "would install hard-text-2.0-0\n" in answer.stderr
    assert f"would write {workshop.image}\n" in answer.stderr
    assert (building.picture(workshop.directory), building.picture(workshop.base)) == before


def test_failing_dry_run_changes_nothing(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-nowhere", channel=hard_channel)
    before = building.picture(workshop.directory), building.picture(workshop.base)
    assert "hard-nowhere" in workshop.run("build", "-n", status=1).stderr
    assert (building.picture(workshop.directory), building.picture(workshop.base)) == before


def test_dry_run_leaves_a_mount_that_a_build_would_take_away(
    workshop: Workshop, hard_channel: Path
) -> None:
    workshop.configure(unmount_after=600)
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    workshop.run("exec", "--", "true")
    answer = workshop.run("build", "-n", "--force")
    assert f"would unmount {workshop.prefix}, which nobody uses\n" in answer.stderr
    assert "would install hard-text-2.0-0\n" in answer.stderr
    assert workshop.is_mounted()
    workshop.run("build", "-q", "--force")
    assert not workshop.is_mounted()


def test_image_is_for_whom_the_umask_says_and_its_content_for_all(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    workshop.environment("python", "hard-hello", channel=hard_channel)
    command = ["sh", "-c", 'umask 077; exec "$@"', "sh", *support.CONDAINER, "build", "-q"]
    subprocess.run(command, cwd=workshop.directory, env=workshop.variables, check=True)
    files = [workshop.image, workshop.lock_file, workshop.build_log]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
    tree = building.unpack(workshop.image, tmp_path / "tree")
    closed = [p for p in tree.rglob("*") if not p.is_symlink() and not p.stat().st_mode & 0o004]
    assert closed == []


def test_build_starts_from_nothing_of_another_environment(
    workshop: Workshop, hard_channel: Path
) -> None:
    workshop.environment("python", "hard-hello", channel=hard_channel)
    foreign = {"PYTHONHOME": "/nowhere", "PIP_TARGET": "/nowhere", "CONDA_PREFIX": "/nowhere"}
    command = [sys.executable, "-E", "-c", _START, str(support.REPOSITORY), "build", "-q"]
    done = subprocess.run(
        command,
        cwd=workshop.directory,
        env={**workshop.variables, **foreign},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert workshop.run("exec", "hard-hello").stdout == f"hello from {workshop.prefix}\n"


_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from condainer.cli import entry; entry()"


# Where the image is


def test_image_is_written_where_its_link_leads(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    """People keep images on a disk that has room for them."""
    (tmp_path / "disk").mkdir()
    workshop.image.symlink_to("../disk/my image")
    workshop.environment("python", "hard-hello", channel=hard_channel)
    for _ in range(2):  # first the link leads to nothing
        workshop.run("build", "-q", "--force")
        assert str(workshop.image.readlink()) == "../disk/my image"
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["my image"]
        assert workshop.run("exec", "hard-hello").stdout == f"hello from {workshop.prefix}\n"
        workshop.wait_until_clean()


@pytest.mark.parametrize("name", ["rattler", "micromamba"])
def test_daemon_that_a_script_leaves_behind_ends_with_the_build(
    workshop: Workshop, hard_channel: Path, micromamba: Path, name: str
) -> None:
    workshop.environment("hard-post-link-leaves", channel=hard_channel)
    installer = "rattler" if name == "rattler" else str(micromamba)
    workshop.run("build", "-q", "--installer", installer)
    assert building.processes_of(workshop) == {}


def test_mount_that_an_installer_makes_outlives_the_build(
    workshop: Workshop, hard_channel: Path, micromamba: Path, ready: Workshop, tmp_path: Path
) -> None:
    """As where a program that is called while packages are built comes from another image."""
    wrapper = tmp_path / "micromamba"
    condainer = shlex.join(["env", f"PYTHONPATH={support.REPOSITORY}", *support.CONDAINER])
    mount = f"{condainer} -q -d {shlex.quote(str(ready.directory))} mount"
    wrapper.write_text(f'#!/bin/sh\n{mount} || exit 1\nexec {micromamba} "$@"\n')
    wrapper.chmod(0o755)
    workshop.environment("hard-post-link-leaves", channel=hard_channel)
    workshop.run("build", "-q", "--installer", str(wrapper))
    assert building.processes_of(workshop) == {}
    assert len(support.daemons_of(ready)) == 1
    assert ready.is_mounted()
    ready.run("umount")


# Other kinds of builds


def test_application_that_conda_did_not_install(workshop: Workshop, tmp_path: Path) -> None:
    workshop.configure(non_conda_application="true")
    program = workshop.prefix / "bin/program"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho works\n")
    program.chmod(0o755)
    before = building.picture(workshop.prefix)
    workshop.run("build")
    after = building.picture(workshop.prefix)
    assert {key: value[0] for key, value in after.items()} == {
        key: value[0] for key, value in before.items()
    }
    assert not workshop.lock_file.exists()
    assert image.read_manifest(workshop.image)["packages"] == []
    shutil.move(workshop.prefix, tmp_path / "installed before")
    assert workshop.run("exec", "program").stdout == "works\n"


def test_dry_run_leaves_an_application_alone(workshop: Workshop) -> None:
    workshop.configure(non_conda_application="true")
    workshop.prefix.mkdir()
    before = building.picture(workshop.directory), building.picture(workshop.base)
    assert f"would write {workshop.image}\n" in workshop.run("build", "-n").stderr
    assert (building.picture(workshop.directory), building.picture(workshop.base)) == before
    workshop.prefix.rmdir()


def test_application_that_is_not_there(workshop: Workshop) -> None:
    workshop.configure(non_conda_application="true")
    answer = workshop.run("build", status=1)
    assert f"there is nothing at {workshop.prefix}" in answer.stderr


def test_application_behind_a_link_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    workshop.configure(non_conda_application="true")
    (tmp_path / "application").mkdir()
    workshop.prefix.symlink_to(tmp_path / "application")
    answer = workshop.run("build", status=1)
    assert f"{workshop.prefix} is a symbolic link" in answer.stderr
    workshop.prefix.unlink()


def test_application_that_is_mounted_is_refused(workshop: Workshop) -> None:
    workshop.configure(non_conda_application="true")
    workshop.prefix.mkdir()
    (workshop.prefix / "file").touch()
    workshop.run("build", "-q")
    shutil.rmtree(workshop.prefix)
    workshop.run("mount", "-q")
    before = workshop.image.read_bytes()
    answer = workshop.run("build", "--force", status=1)
    assert f"{workshop.prefix} is mounted" in answer.stderr
    assert workshop.image.read_bytes() == before
    workshop.run("umount", "-q")
