"""What activation scripts make of each caller's variables, where that depends on the caller.

The scripts run in a shell once for each caller that they can tell from others; what came of it is
kept as long as the mount is there, on this node. Callers are told apart by the variables that the
scripts can depend on: a rank's own number, say, counts only where a script could look at it. Of the
variables only a digest is kept, since they may hold secrets. Every `exec` of such an environment
comes through here, so nothing is imported that takes long, unless the scripts have to run.
"""

from __future__ import annotations

import os

from condainer.errors import CondainerError
from condainer.mounting import live
from condainer.running import variables
from condainer.system import notes, runtime

TYPE_CHECKING = False  # importing `typing` takes as long as all of this does
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from condainer.mounting.live import Scripts

    Changes = tuple[tuple[str, str | None], ...]
    Kept = dict[str, Changes]

_HEAD = b"condainer results 2\n"
_MOST = 64
"""How many callers' results are kept."""
_LARGEST = 4 << 20
_ALWAYS = ("PATH", "HOME", "LANG", "LC_ALL", "LC_COLLATE", "LC_CTYPE")
"""What a shell looks at although no script names it."""
_NEVER = frozenset({"_", "SHLVL"})
"""What a shell sets anew in any case; scripts that name SHLVL depend on it all the same."""


def source(
    scripts: Scripts,
    own: dict[str, str],
    on_warning: Callable[[str], None] | None,
) -> dict[str, str]:
    """The variables of a caller after the scripts.

    Args:
        scripts: which, and what they depend on.
        own: the variables before, of which the caller's are a part.
        on_warning: takes a line about each script that has been left out.
    """
    key = _key(scripts, own) if scripts.is_kept and scripts.results else ""
    changes = _read(scripts.results).get(key) if key else None
    if changes is None:
        changes = _run(scripts, own, on_warning)
        if key:
            _keep(scripts.results, key, changes)
    result = dict(own)
    variables.update(result, changes)
    return result


def _run(
    scripts: Scripts, own: Mapping[str, str], on_warning: Callable[[str], None] | None
) -> Changes:
    from condainer.errors import ToolError
    from condainer.running import sourcing

    try:
        sourced = sourcing.source(scripts.paths, own)
    except ToolError as error:
        sourced = sourcing.Sourced(dict(own), left_out=(f"cannot run: {error.message}",))
    if on_warning is not None:
        for text in sourced.left_out:
            on_warning(f"activation script {text}")
    after = sourced.variables
    changed = [name for name in own.keys() | after.keys() if own.get(name) != after.get(name)]
    return tuple((name, after.get(name)) for name in sorted(changed))


def _key(scripts: Scripts, own: Mapping[str, str]) -> str:
    """Tells callers apart that the scripts can tell apart."""
    if scripts.depends is None:
        names = own.keys() - _NEVER
    else:
        names = own.keys() & {*scripts.depends, *_ALWAYS}
    items = [scripts.mount, _cwd(), *(f"{name}={own[name]}" for name in sorted(names))]
    return _digest("\0".join(items).encode(errors="surrogateescape"))


def _cwd() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _digest(data: bytes) -> str:
    try:
        from _blake2 import blake2b  # all of hashlib takes as long as all of this does
    except ImportError:
        from hashlib import blake2b
    return blake2b(data, digest_size=32).hexdigest()


def _read(path: str) -> Kept:
    """What has been kept; nothing where it cannot be read."""
    try:
        data = runtime.read(path, most=_LARGEST)
        found = notes.loads(data[len(_HEAD) :]) if data.startswith(_HEAD) else ()
    except (OSError, ValueError):
        return {}
    pairs = found if isinstance(found, tuple) else ()
    return dict(pair for pair in pairs if isinstance(pair, tuple) and _is_result(*pair))


def _is_result(key: object = None, changes: object = None, *more: object) -> bool:
    return isinstance(key, str) and live.are_changes(changes) and not more


def _keep(path: str, key: str, changes: Changes) -> None:
    """Add a result; of two that do so at once one may be lost, and is found out again."""
    kept = {**_read(path), key: changes}
    for old in list(kept)[:-_MOST]:
        del kept[old]
    data = _HEAD + notes.dumps(tuple(kept.items()))
    if len(data) > _LARGEST:
        return
    try:
        runtime.publish(path, data)
    except (OSError, CondainerError):
        return  # without it all works, only slower
