"""What `.condarc` says: names of channels, files that add up, priorities, proxies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from condainer.errors import ConfigError
from condainer.pipeline.installers import channels, condarc, network
from condainer.project import environment

ANACONDA = "https://repo.anaconda.com/pkgs"


ALIAS = "https://conda.anaconda.org"


def load(directory: Path, text: str = "", **variables: str) -> condarc.Condarc:
    """What is read where there is one file, and some variables."""
    path = directory / "a.condarc"
    path.write_text(text)
    return condarc.load({"CONDARC": str(path), **variables})


@pytest.fixture(autouse=True)
def _home_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "name", "urls"),
    [
        ("", "defaults", [f"{ANACONDA}/main", f"{ANACONDA}/r"]),
        ("", "pkgs/main", [f"{ANACONDA}/main"]),
        ("", "pkgs/msys2", [f"{ANACONDA}/msys2"]),
        ("", "pkgs/free", [f"{ANACONDA}/free"]),
        ("", "pkgs/pro", [f"{ANACONDA}/pro"]),
        ("", "main", [f"{ALIAS}/main"]),
        ("", "conda-forge/label/dev", [f"{ALIAS}/conda-forge/label/dev"]),
        ("", "https://h/t/x/ch/linux-64", ["https://h/t/x/ch"]),
        ("channel_alias: https://h/conda/", "bioconda", ["https://h/conda/bioconda"]),
        ("channel_alias: https://h", "defaults", [f"{ANACONDA}/main", f"{ANACONDA}/r"]),
        ("default_channels: [https://h/m, own]", "defaults", ["https://h/m", f"{ALIAS}/own"]),
        ("default_channels: [https://h/pkgs/main]", "pkgs/main", ["https://h/pkgs/main"]),
        ("default_channels: [https://h/a]", "pkgs/main", [f"{ALIAS}/pkgs/main"]),
        ("default_channels: [https://h/a]", "pkgs/r", [f"{ALIAS}/pkgs/r"]),
        ("custom_channels: {lab: https://h/conda}", "lab", ["https://h/conda/lab"]),
        ("custom_channels: {lab: https://h/conda}", "lab/dev", ["https://h/conda/lab/dev"]),
        ("custom_channels: {lab: https://h}", "pkgs/pro", [f"{ALIAS}/pkgs/pro"]),
        ("custom_channels: {lab: https://h}", "labs", [f"{ALIAS}/labs"]),
        ("custom_multichannels: {two: [a, https://h/b]}", "two", [f"{ALIAS}/a", "https://h/b"]),
    ],
)
def test_names_of_channels(tmp_path: Path, text: str, name: str, urls: list[str]) -> None:
    assert list(channels.find(name, load(tmp_path, text)).urls) == urls


@pytest.mark.parametrize(
    ("spec", "placed"),
    [
        ("x=1", "x=1"),
        ("defaults::x", "defaults::x"),
        ("defaults/noarch::x>1", "defaults/noarch::x>1"),
        ("pkgs/main/linux-64::x", f"{ANACONDA}/main/linux-64::x"),
        ("x[channel=pkgs/r]", f"{ANACONDA}/r::x"),
        ("x[channel='lab', version='1.*']", "https://h/lab::x[version='1.*']"),
        ("x=1[build=0, channel=lab/dev]", "https://h/lab/dev::x=1[build=0]"),
        ("https://u:p@h/c::x", "https://u:p@h/c::x"),
    ],
)
def test_names_in_specs(tmp_path: Path, spec: str, placed: str) -> None:
    configured = load(tmp_path, "custom_channels: {lab: https://h}")
    assert channels.placed(spec, configured)[0] == placed


def test_files_add_up_and_a_final_key_stays(tmp_path: Path) -> None:
    (tmp_path / ".condarc").write_text(
        "channels: [a]\nchannel_alias: https://first  #!final\nssl_verify: false\n"
    )
    configured = load(tmp_path, "channels: [b]\nchannel_alias: https://second\n")
    assert configured.channels == ("b", "a")
    assert configured.channel_alias == "https://first"
    assert not configured.ssl_verify


def test_variables_go_before_files(tmp_path: Path) -> None:
    text = "channel_priority: strict\nchannels: [a]\n"
    variables = {"CONDA_CHANNEL_PRIORITY": "disabled", "CONDA_CHANNELS": "b,c"}
    configured = load(tmp_path, text, **variables)
    assert configured.channel_priority == "disabled"
    assert configured.channels == ("b", "c", "a")


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        ("", "flexible"),
        ("channel_priority: false", "disabled"),
        ("channel_priority: True", "flexible"),
    ],
)
def test_priority(tmp_path: Path, text: str, priority: str) -> None:
    assert load(tmp_path, text).channel_priority == priority


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("channel_priority: hard", "line 1: channel_priority: 'hard' is not one of flexible"),
        ("channel_alias: host/path", "line 1: channel_alias: 'host/path' is not a URL"),
        ("channels: {a: b}", "line 1: 'channels' must be a list"),
        ("ssl_verify: /no/such/file", "ssl_verify names /no/such/file, which has no certificates"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "variables", "url", "proxy"),
    [
        ("{https: one, 'https://h': two}", {}, "https://h:8/x", "http://two"),
        ("{https: one, 'https://h': two}", {}, "https://i/x", "http://one"),
        (
            "{https: one, 'https://h': two}",
            {"HTTPS_PROXY": "http://e"},
            "https://h/x",
            "http://two",
        ),
        ("{https: one}", {"HTTPS_PROXY": "http://e"}, "https://h/x", "http://e"),
        ("{https: one}", {"ALL_PROXY": "http://e"}, "https://h/x", "http://one"),
        ("{all: one}", {"HTTPS_PROXY": "http://e"}, "https://h/x", "http://e"),
        ("{https: one, 'https://h': ''}", {}, "https://h/x", ""),
        ("{https: one, 'https://h': null}", {}, "https://h/x", "http://one"),
        ("{https: one, 'https://h': two}", {"NO_PROXY": "h"}, "https://u:p@h:8/x", ""),
        ("{all: one, 'all://h': two}", {}, "http://h/x", "http://two"),
    ],
)
def test_which_proxy_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    variables: dict[str, str],
    url: str,
    proxy: str,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    proxies = network.proxies_of(load(tmp_path, f"proxy_servers: {text}\n"))
    assert network.proxy_for(url, proxies) == proxy


@pytest.mark.parametrize("channel", ["./local", "'./local'", "../base/local"])
def test_channel_in_brackets_counts_from_environment_yml(channel: str) -> None:
    text = f"dependencies: [{json.dumps(f'thing[version=1, channel={channel}]')}]\n"
    parsed = environment.parse(Path("/base/environment.yml"), text)
    assert parsed.specs == ("thing[version=1, channel='file:///base/local']",)
