"""What the tests of a build share: file systems with little room, servers, and what is left."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import os
import shutil
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest
from rattler.index import index_fs

from tests import support
from tests.localchannel.package import Package, put, subdir, write

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator

    from tests.localchannel.package import Recipe
    from tests.support import Workshop

NOBODY = 65534
_MOMENT = 0.7
"""Seconds in which everything else of a small channel has come."""
EVERYTHING = (
    *("python", "hard-text=1", "hard-binary", "hard-links", "hard-hello", "hard-activate"),
    *("hard-post-link", "hard-post-link-edits", "clobber-a", "clobber-b", "hard-empty"),
    *("hard-names", "hard-modes", "hard-bz2", "hard-times", "hard-modules", "hard-variables"),
)
"""What can be installed together of the channel of hard cases."""


@contextlib.contextmanager
def new_workshop(directory: Path, home: Path) -> Iterator[Workshop]:
    """A workshop; afterwards nothing may be left in its mount base directory."""
    made = support.make_workshop(directory, home)
    try:
        yield made
        made.wait_until_clean()
    finally:
        support.clear(made)


def make_channel(directory: Path, *recipes: Recipe) -> Path:
    """A channel of packages that only one test wants."""
    for name in (subdir(), "noarch"):
        (directory / name).mkdir(parents=True)
    for recipe in recipes:
        with tempfile.TemporaryDirectory() as tree:
            write(recipe(Path(tree)), Path(tree), directory)
    asyncio.run(index_fs(directory, write_shards=False))
    return directory


def odd_package(script: str) -> Recipe:
    """A package called `odd` whose post-link script does what a package cannot contain."""

    def recipe(tree: Path) -> Package:
        put(tree, "bin/.odd-post-link.sh", f'#!/bin/bash\ncd "$PREFIX"\n{script}\n', 0o755)
        return Package(name="odd", version="1.0")

    return recipe


def unpack(image: Path, directory: Path) -> Path:
    """Unpack an image with the program that comes with mksquashfs."""
    command = ["unsquashfs", "-quiet", "-no-progress", "-dest", str(directory), str(image)]
    subprocess.run(command, check=True, capture_output=True)
    return directory


def holders(content: bytes, top: Path) -> list[Path]:
    """The files below a directory that hold something."""
    files = (path for path in top.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if content in path.read_bytes()]


@contextlib.contextmanager
def deep_directories(top: Path, depth: int, name: str = "d") -> Iterator[None]:
    """Directories in each other; their removal would be too much for Python and so for pytest."""
    subprocess.run(["mkdir", "-p", f"{name}/" * depth], cwd=top, check=True)
    try:
        yield
    finally:
        subprocess.run(["rm", "-rf", str(top / name)], check=True)


def picture(top: Path) -> dict[str, tuple[object, ...]]:
    """All that can be seen of a path and what is below it, for comparing before and after."""
    seen: dict[str, tuple[object, ...]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        status = path.lstat()
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = path.readlink()
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        key = str(path.relative_to(top)) if path != top else "."
        seen[key] = (status.st_mode, status.st_uid, status.st_mtime_ns, content)
    return seen


def processes_of(workshop: Workshop) -> dict[int, str]:
    """The living processes whose command line or variables name a workshop's prefix."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                variables = (entry / "environ").read_bytes()
                if str(workshop.uuid).encode() in line + variables:
                    found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def parts(workshop: Workshop) -> list[str]:
    """The files beside the project that are not complete."""
    return sorted(path.name for path in workshop.directory.glob(".*.part"))


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can arrange that")


@contextlib.contextmanager
def mounted_tmpfs(directory: Path, options: str) -> Iterator[Path]:
    """A file system of its own, which needs root."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a file system with little room")
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    subprocess.run(command, check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing about it."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Silence(_Quiet):
    """Takes requests for what ends in a certain way, and answers when the test is over."""

    withheld = ""
    over: threading.Event
    asked: threading.Event

    def do_GET(self) -> None:
        if self.path.endswith(self.withheld):
            self.asked.set()
            self.over.wait()
        else:
            super().do_GET()


class _Busy(_Quiet):
    """Has no time for the first that ask."""

    refused: list[str]
    first = 0

    def do_GET(self) -> None:
        if len(self.refused) < self.first:
            self.refused.append(self.path)
            self.send_response(HTTPStatus.SERVICE_UNAVAILABLE)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()


class _Guarded(_Quiet):
    """Serves only those who bring what it asks for."""

    token = ""
    authorization = ""
    seen: list[bytes] | None = None

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        if self.seen is not None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self.seen.append(path.read_bytes())
        known = self.headers.get("Authorization", "") == self.authorization
        if known and self.path.startswith(self.token):
            self.path = self.path.removeprefix(self.token)
            return super().send_head()
        self.send_response(HTTPStatus.NOT_FOUND if known else HTTPStatus.UNAUTHORIZED)
        if not known:
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None


@contextlib.contextmanager
def served_to(
    credentials: str, directory: Path, seen: list[bytes] | None = None
) -> Iterator[tuple[str, str]]:
    """An HTTP server that serves a directory to those who know `USER:PASSWORD@` or `/t/TOKEN`.

    Args:
        credentials: what has to be known.
        directory: what is served.
        seen: is told the command lines of all processes at each request.

    Yields:
        the URL with the credentials, and without.
    """
    members: dict[str, object] = {"seen": seen}
    members["token"] = credentials if credentials.startswith("/") else ""
    if not members["token"]:
        encoded = base64.b64encode(credentials.removesuffix("@").encode()).decode()
        members["authorization"] = f"Basic {encoded}"
    handler = type("_Guarding", (_Guarded,), members)
    with _serving(functools.partial(handler, directory=str(directory))) as url:
        host = url.removeprefix("http://")
        full = f"{url}{credentials}" if members["token"] else f"http://{credentials}{host}"
        yield full, url


class _Elsewhere(_Guarded):
    """Sends those who bring a token elsewhere."""

    elsewhere = ""

    def do_GET(self) -> None:
        if not self.path.startswith(self.token):
            self.send_response(HTTPStatus.FORBIDDEN)
        else:
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", self.elsewhere + self.path.removeprefix(self.token))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()


class _Told(_Quiet):
    """Notes what else it is told by those who ask."""

    told: list[str]

    def do_GET(self) -> None:
        self.told.append(str(self.headers))
        super().do_GET()

    def do_HEAD(self) -> None:
        self.told.append(str(self.headers))
        super().do_HEAD()


@contextlib.contextmanager
def served_elsewhere(token: str, directory: Path) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that knows a token `/t/TOKEN`, and redirects to another that serves.

    Yields:
        the URL with the token, and the headers of all requests that the other one had.
    """
    told: list[str] = []
    listening = type("_Listening", (_Told,), {"told": told})
    with _serving(functools.partial(listening, directory=str(directory))) as other:
        members = {"token": token, "elsewhere": other}
        with _serving(type("_Sending", (_Elsewhere,), members)) as url:
            yield f"{url}{token}", told


@contextlib.contextmanager
def served_reluctantly(first: int, directory: Path) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that serves a directory, but says to some requests that it is too busy.

    Yields:
        the URL, and the paths of the requests that were refused: the first ones.
    """
    refused: list[str] = []
    handler = type("_Reluctant", (_Busy,), {"refused": refused, "first": first})
    with _serving(functools.partial(handler, directory=str(directory))) as url:
        yield url, refused


@contextlib.contextmanager
def served(directory: Path) -> Iterator[str]:
    """The URL of an HTTP server on this machine that serves a directory."""
    with _serving(functools.partial(_Quiet, directory=str(directory))) as url:
        yield url


@contextlib.contextmanager
def served_but(withheld: str, directory: Path) -> Iterator[tuple[str, threading.Event]]:
    """The same, but requests for names that end in a certain way get no answer.

    Yields:
        the URL, and an event that tells when somebody waits for such an answer.
    """
    over, asked = threading.Event(), threading.Event()
    members = {"withheld": withheld, "over": over, "asked": asked}
    handler = type("_Withholding", (_Silence,), members)
    try:
        with _serving(functools.partial(handler, directory=str(directory))) as url:
            yield url, asked
            over.set()
    finally:
        over.set()


class _CutOff(_Quiet):
    """Ends some answers in the middle, and tells who has asked for what."""

    asked: list[str]
    cut = 0

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:  # type: ignore[override]
        content = source.read()
        is_cut = self.path.endswith(".conda") and self.asked.count(self.path) <= self.cut
        outputfile.write(content[: len(content) // 2] if is_cut else content)


@contextlib.contextmanager
def served_in_part(cut: int, directory: Path) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that serves a directory, but cuts answers with packages off.

    Args:
        cut: how often, of each.
        directory: what is served.

    Yields:
        the URL, and the paths of all requests.
    """
    asked: list[str] = []
    handler = type("_CutOff", (_CutOff,), {"asked": asked, "cut": cut})
    with _serving(functools.partial(handler, directory=str(directory))) as url:
        yield url, asked


class _Late(_Quiet):
    """Takes a moment for what has a certain word in its name."""

    word = ""

    def do_GET(self) -> None:
        if self.word and self.word in self.path:
            time.sleep(_MOMENT)
        super().do_GET()


@contextlib.contextmanager
def served_late(directory: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    """An HTTP server that serves a directory, and takes longer for some of it.

    Yields:
        the URL, and what takes the word that the names of those files have from now on.
    """

    class Handler(_Late):
        pass

    def be_late_with(word: str) -> None:
        Handler.word = word

    with _serving(functools.partial(Handler, directory=str(directory))) as url:
        yield url, be_late_with


class _Foreign(_Quiet):
    """Serves whoever asks for a URL with a certain beginning, on whichever host."""

    token = ""
    authorizations: list[str | None]

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        self.authorizations.append(self.headers["Proxy-Authorization"])
        self.path = urllib.parse.urlsplit(self.path).path.removeprefix(self.token)
        return super().send_head()


@contextlib.contextmanager
def served_as_proxy(token: str, directory: Path) -> Iterator[tuple[str, list[str | None]]]:
    """An HTTP proxy behind which each host serves a directory, below `/t/TOKEN` or nothing.

    Yields:
        its URL, and with what each request has told who asks.
    """
    seen: list[str | None] = []
    handler = type("_Proxy", (_Foreign,), {"token": token, "authorizations": seen})
    with _serving(functools.partial(handler, directory=str(directory))) as url:
        yield url, seen


@contextlib.contextmanager
def served_with_tls(token: str, directory: Path, certificate: Path) -> Iterator[str]:
    """The URL of an HTTPS server, as above, that nobody knows who does not have its certificate.

    Args:
        token: `/t/TOKEN`, or nothing.
        directory: what is served.
        certificate: where the certificate is put.
    """
    key = certificate.with_suffix(".key")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=here"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = type("_Known", (_Foreign,), {"token": token, "authorizations": []})
    with _serving(functools.partial(handler, directory=str(directory)), context) as url:
        yield url.replace("http:", "https:")


@contextlib.contextmanager
def _serving(
    handler: Callable[..., _Quiet], context: ssl.SSLContext | None = None
) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context:
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who asked has gone
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def run_as_nobody(workshop: Workshop, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `condainer` in a workshop as a user who owns nothing."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can run a program as somebody else")
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    look = [*become, sys.executable, "-c", "import condainer.pipeline.installers.rattler"]
    variables = {**workshop.variables, "HOME": "/nonexistent"}
    if subprocess.run(look, env=variables, capture_output=True, check=False).returncode != 0:
        pytest.skip("other users cannot run the Python of these tests")
    return subprocess.run(
        [*become, *support.CONDAINER, "-d", str(workshop.directory), *arguments],
        cwd="/",
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


@contextlib.contextmanager
def public_directory() -> Iterator[Path]:
    """A new directory that every user can look into."""
    directory = Path(tempfile.mkdtemp(prefix="cndt-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
