"""Small packages, each of which is hard for an installer in its own way.

Every recipe here is one case; `RECIPES` is what the `hard` channel has. `big` and `badchecksum`
have channels of their own, because few tests want them.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from tests.localchannel.package import (
    EPOCH,
    PLACEHOLDER,
    SITE_PACKAGES,
    Package,
    Recipe,
    compile_tree,
    put,
)

if TYPE_CHECKING:
    from pathlib import Path

BIG_SIZE = 64 * 1024 * 1024
"""The size in bytes of the one file of `hard-big`."""

BINARY = (
    b"\x7fHARD\0first="
    + PLACEHOLDER.encode()
    + b"/share/hard-binary\0second="
    + f"{PLACEHOLDER}/lib:{PLACEHOLDER}/lib64".encode()
    + b"\0end of the binary\0"
)
"""The file of `hard-binary`: a string with one placeholder and a string with two."""

TEXT = f"""\
# one on a line, two on a line, one at the very end
prefix = {PLACEHOLDER}
path = {PLACEHOLDER}/bin:{PLACEHOLDER}/sbin
last = {PLACEHOLDER}"""
"""The text file of `hard-text`."""

NAMES = ("two words", 'it\'s "quoted"', "back\\slash", "größe-雪", "new\nline", "-dash", "$HOME")
"""The files of `hard-names`; each holds its own name."""

_SCRIPT_ENVIRONMENT = '"$PKG_NAME" "$PKG_VERSION" "$PKG_BUILDNUM"'


def _text(version: str, tree: Path) -> Package:
    """A text file with placeholders, a script with one, and a file without; two versions."""
    put(tree, "etc/hard-text.conf", TEXT)
    put(tree, "share/hard-text/version.txt", f"{version}\n")
    put(tree, "bin/hard-text", f"#!/bin/sh\necho '{version} {PLACEHOLDER}'\n", 0o755)
    return Package(name="hard-text", version=version, noarch="generic")


def _binary(tree: Path) -> Package:
    """A binary file, whose length must not change, with NUL-padded placeholders."""
    put(tree, "share/hard-binary/data.bin", BINARY)
    return Package(name="hard-binary", version="1.0")


def _links(tree: Path) -> Package:
    """Soft links to a file, to a directory, upwards, and to nothing."""
    put(tree, "share/hard-links/target/file.txt", "linked\n")
    for link, target in (
        ("file", "target/file.txt"),
        ("directory", "target"),
        ("target/upwards", "../target/file.txt"),
        ("dangling", "nowhere"),
    ):
        (tree / "share/hard-links" / link).symlink_to(target)
    return Package(name="hard-links", version="1.0")


def _hello(tree: Path) -> Package:
    """A `noarch: python` package with a command."""
    module = 'import sys\n\n\ndef main() -> None:\n    print("hello from", sys.prefix)\n'
    put(tree, "site-packages/hard_hello/__init__.py", "")
    put(tree, "site-packages/hard_hello/cli.py", module)
    metadata = "Metadata-Version: 2.1\nName: hard-hello\nVersion: 1.0\n"
    put(tree, "site-packages/hard_hello-1.0.dist-info/METADATA", metadata)
    put(tree, "site-packages/hard_hello-1.0.dist-info/INSTALLER", "conda\n")
    return Package(
        name="hard-hello",
        version="1.0",
        noarch="python",
        depends=("python",),
        entry_points=("hard-hello = hard_hello.cli:main",),
    )


def _activate(tree: Path) -> Package:
    """Activation scripts, run in the order of their names, and their counterparts."""
    scripts = {
        "activate.d/hard-1-value.sh": (
            "export HARD_VALUE='two  words \"double\" '\\''single'\\'' $HOME\n"
            "second line, größer'\n"
        ),
        "activate.d/hard-2-path.sh": 'export PATH="$CONDA_PREFIX/share/hard-activate/bin:$PATH"\n',
        "activate.d/hard-3-prefix.sh": (
            'export HARD_PREFIX="$CONDA_PREFIX/share/hard-activate"\nHARD_NOT_EXPORTED=1\n'
        ),
        "activate.d/hard-4-unset.sh": "unset HARD_UNWANTED\n",
        "deactivate.d/hard-1-value.sh": "unset HARD_VALUE HARD_PREFIX HARD_NOT_EXPORTED\n",
        "deactivate.d/hard-2-path.sh": (
            'export PATH="${PATH#"$CONDA_PREFIX/share/hard-activate/bin:"}"\n'
        ),
    }
    for path, text in scripts.items():
        put(tree, f"etc/conda/{path}", text)
    put(tree, "share/hard-activate/bin/hard-activated", "#!/bin/sh\necho activated\n", 0o755)
    return Package(name="hard-activate", version="1.0", noarch="generic")


def _post_link(tree: Path) -> Package:
    """A post-link script that writes one file and leaves a message for the user."""
    script = f"""#!/bin/bash
printf '%s %s %s\\n' {_SCRIPT_ENVIRONMENT} > "$PREFIX/share/hard-post-link.txt"
echo "hard-post-link has something to say" >> "$PREFIX/.messages.txt"
"""
    put(tree, "bin/.hard-post-link-post-link.sh", script, 0o755)
    put(tree, "share/hard-post-link/file.txt", "linked before the script\n")
    return Package(name="hard-post-link", version="1.2", build="h3_3", build_number=3)


def _post_link_fails(tree: Path) -> Package:
    """A post-link script that fails with status 3."""
    script = '#!/bin/bash\necho "hard-post-link-fails: cannot go on" >&2\nexit 3\n'
    put(tree, "bin/.hard-post-link-fails-post-link.sh", script, 0o755)
    return Package(name="hard-post-link-fails", version="1.0")


def _post_link_edits(tree: Path) -> Package:
    """A post-link script that edits another package's files.

    One is replaced by a new file; the other is changed in place, which is safe because a file
    with a placeholder is never hard-linked to the package cache.
    """
    script = """#!/bin/bash
sed -i 's/$/ (edited)/' "$PREFIX/share/hard-text/version.txt"
printf '\\nedited = true\\n' >> "$PREFIX/etc/hard-text.conf"
"""
    put(tree, "bin/.hard-post-link-edits-post-link.sh", script, 0o755)
    return Package(name="hard-post-link-edits", version="1.0", depends=("hard-text",))


def _post_link_sleeps(tree: Path) -> Package:
    """A post-link script that takes a minute, for those who interrupt it.

    It has two children, one of them in a session of its own.
    """
    script = "#!/bin/bash\nsleep 60 &\nfirst=$!\nsetsid sleep 60 &\n"
    script += 'echo "$$ $first $!" > "$PREFIX/hard-sleeping.txt"\nwait\n'
    put(tree, "bin/.hard-post-link-sleeps-post-link.sh", script, 0o755)
    return Package(name="hard-post-link-sleeps", version="1.0")


def _post_link_leaves(tree: Path) -> Package:
    """A post-link script that leaves a daemon behind, as one does that starts a server."""
    script = "#!/bin/sh\nsetsid sleep 600 >/dev/null 2>&1 &\n"
    put(tree, "bin/.hard-post-link-leaves-post-link.sh", script, 0o755)
    return Package(name="hard-post-link-leaves", version="1.0")


def _clobber(name: str, tree: Path) -> Package:
    """One of two packages that own the same path with different content."""
    put(tree, "share/clobber.txt", f"from {name}\n")
    put(tree, f"share/{name}.txt", f"only in {name}\n")
    return Package(name=name, version="1.0")


def _empty(tree: Path) -> Package:
    """An empty file and an empty directory."""
    put(tree, "share/hard-empty/file", b"")
    (tree / "share/hard-empty/directory").mkdir()
    return Package(name="hard-empty", version="1.0")


def _names(tree: Path) -> Package:
    """File names that need care wherever they are quoted, split into lines or decoded."""
    for name in NAMES:
        put(tree, f"share/hard-names/{name}", f"{name}\n")
    return Package(name="hard-names", version="1.0")


def _modes(tree: Path) -> Package:
    """Permissions other than the usual two; installers ignore the set-group-ID bit."""
    for mode in (0o755, 0o644, 0o444, 0o600, 0o2755):
        put(tree, f"share/hard-modes/{mode:04o}", f"{mode:04o}\n", mode)
    return Package(name="hard-modes", version="1.0")


def _conflict(name: str, needs: str, tree: Path) -> Package:
    """One of two packages that cannot be installed together."""
    put(tree, f"share/{name}.txt", f"{name}\n")
    return Package(name=name, version="1.0", depends=(needs,))


def _bz2(tree: Path) -> Package:
    """A package in the older archive format."""
    put(tree, "share/hard-bz2.txt", f"{PLACEHOLDER}\n")
    return Package(name="hard-bz2", version="1.0", suffix=".tar.bz2")


def _times(tree: Path) -> Package:
    """A file older than conda, and a module that nobody has compiled."""
    put(tree, "share/hard-times/old.txt", "old\n")
    put(tree, "lib/hard-times/uncompiled.py", "VALUE = 1\n")
    mtimes = {"share/hard-times/old.txt": EPOCH - 30 * 365 * 86_400}
    return Package(name="hard-times", version="1.0", mtimes=mtimes)


def _modules(tree: Path) -> Package:
    """Modules whose bytecode is missing, or older than they are, and one that has none."""
    package = f"{SITE_PACKAGES}/hard_modules"
    put(tree, f"{package}/stale.py", "VALUE = 'older'\n")
    compile_tree(tree, package)
    put(tree, f"{package}/stale.py", "VALUE = 'as it is now'\n")
    for name in ("__init__", "plain", "größe", "deeper/__init__"):
        put(tree, f"{package}/{name}.py", f"VALUE = {name!r}\n")
    put(tree, f"{package}/broken.py", "def (:\n")
    return Package(name="hard-modules", version="1.0", depends=("python",))


def _slow_module(tree: Path) -> Package:
    """A module that takes seconds to compile, for those who interrupt that."""
    functions = (
        f"def f{i}(a, b=1, *, c=2):\n    return [a + {i}, b * {i}, c - {i}]\n\n\n"
        for i in range(60_000)
    )
    put(tree, f"{SITE_PACKAGES}/hard_slow_module.py", "".join(functions))
    return Package(name="hard-slow-module", version="1.0", depends=("python",))


def _variables(tree: Path) -> Package:
    """Variables that are set without a script."""
    put(tree, "etc/conda/env_vars.d/hard-variables.json", '{"HARD_PACKAGE": "of a package"}\n')
    return Package(name="hard-variables", version="1.0", noarch="generic")


def big(tree: Path) -> Package:
    """A package that no compressor makes smaller: for interruption and full disks."""
    content = random.Random(64).randbytes(BIG_SIZE)  # noqa: S311 - the same bytes each time
    put(tree, "share/hard-big.bin", content)
    return Package(name="hard-big", version="1.0")


def badchecksum(tree: Path) -> Package:
    """A package like any other; its channel gets the checksum wrong."""
    put(tree, "share/hard-badchecksum.txt", "not what the channel promised\n")
    return Package(name="hard-badchecksum", version="1.0")


RECIPES: tuple[Recipe, ...] = (
    partial(_text, "1.0"),
    partial(_text, "2.0"),
    _binary,
    _links,
    _hello,
    _activate,
    _post_link,
    _post_link_fails,
    _post_link_edits,
    _post_link_sleeps,
    _post_link_leaves,
    partial(_clobber, "clobber-a"),
    partial(_clobber, "clobber-b"),
    _empty,
    _names,
    _modes,
    partial(_conflict, "conflict-a", "hard-text 1.*"),
    partial(_conflict, "conflict-b", "hard-text 2.*"),
    _bz2,
    _times,
    _modules,
    _slow_module,
    _variables,
)
"""Every package of the `hard` channel but `python`."""
