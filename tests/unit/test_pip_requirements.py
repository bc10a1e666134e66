"""Lines for pip: which are taken, which are rewritten, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from condainer.errors import BuildError
from condainer.pipeline import editable, logins, pip


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-r other.txt", "-r /base/other.txt"),
        ("-rother.txt", "-r /base/other.txt"),
        ("--requirement=other.txt", "--requirement /base/other.txt"),
        ("-c 'with space.txt'", "-c '/base/with space.txt'"),
        ("-r ../other.txt  # a comment", "-r /base/../other.txt"),
        ("-r /absolute/other.txt", "-r /absolute/other.txt"),
        ("-r https://example.org/other.txt", "-r https://example.org/other.txt"),
        ("-f ./wheels", "-f /base/wheels"),
        ("--find-links https://example.org/", "--find-links https://example.org/"),
        ("--index-url https://example.org/simple", "--index-url https://example.org/simple"),
        ("--no-binary :all:", "--no-binary :all:"),
        ("requests[socks]>=2", "requests[socks]>=2"),
        ("-e ./package", "-e ./package"),
    ],
)
def test_paths_of_other_files_count_from_environment_yml(
    tmp_path: Path, line: str, expected: str
) -> None:
    written = pip.write_requirements([line], Path("/base"), tmp_path)
    assert written.read_text() == f"{expected}\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.pth", "# a comment\n\n{outside}\n"),
        ("own.pth", "\ufeff../../../../outside\n"),
        ("own.pth", "import sys; sys.path.insert(0, '{outside}')\n"),
        ("own.pth", "in\n../site-packages/link\n"),
        ("x.egg-link", "{outside}\n.\n"),
        ("__editable___x_1_0_finder.py", "MAPPING = {{'x': '{outside}'}}\n"),
        ("x-1.0.dist-info/direct_url.json", '{{"dir_info": {{"editable": true}}}}'),
    ],
)
def test_what_leads_out_of_the_environment_is_refused(tmp_path: Path, name: str, text: str) -> None:
    site = tmp_path / "prefix/lib/python3.12/site-packages"
    (site / "in").mkdir(parents=True)
    (site / "x-1.0.dist-info").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (site / "link").symlink_to(outside)
    (site / name).write_text(text.format(outside=outside), encoding="utf-8")
    with pytest.raises(BuildError, match="which would not be in the image") as refused:
        editable.check(tmp_path / "prefix")
    assert "without -e" in refused.value.hint
    (site / name).write_text("in\n./in\n../site-packages\n/nothing/there\nimport os; '/nothing'\n")
    if name == "own.pth":
        editable.check(tmp_path / "prefix")


@pytest.mark.parametrize(
    "lines",
    [
        "thing @ svn+https://me:s3cret@example.org/thing",
        "hg+https://me:s3cret@example.org/thing#egg=thing",
        "--index-url https://a:s3cret@example.org/a\n--extra-index-url https://b:s3cret@example.org/b",
        "-i https://me:s3cret%20with%20blanks@example.org/simple",
    ],
)
def test_a_password_that_cannot_be_hidden_is_refused(tmp_path: Path, lines: str) -> None:
    (tmp_path / "requirements.txt").write_text(f"{lines}\n")
    with pytest.raises(BuildError, match="would show a password") as refused:
        logins.handed([tmp_path / "requirements.txt"], {}, tmp_path)
    assert "s3cret" not in str(refused.value)


def test_a_password_for_a_proxy_is_refused_where_pip_would_show_it(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("thing\n")
    variables = {"PIP_PROXY": "me:s3cret@proxy:3128"}
    with pytest.raises(BuildError, match="would show a password") as refused:
        logins.handed([tmp_path / "requirements.txt"], variables, tmp_path)
    assert "s3cret" not in str(refused.value)
    assert "HTTPS_PROXY" in refused.value.hint
