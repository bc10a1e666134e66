"""The scripts `activate` and `deactivate` of a project, for bash and zsh.

To be sourced. They do to the shell what `conda activate` and `conda deactivate` do: variables,
PATH, prompt, and the packages' own scripts; and they put back what was there before.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from condainer import files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from condainer.activation import Snapshot

_WRITTEN = "# Written by 'condainer build'."
_WRITTEN_BEFORE = "# usage: source "
"""What the scripts of older projects begin with."""
_CONDA_NAMES = ("CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CONDA_SHLVL", "CONDA_PROMPT_MODIFIER")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

TRY_AGAIN = 75
"""Exit status of `mount --for-shell` where what the shell has opened holds nothing any more."""

_ACTIVATE = r"""# Puts a bash or zsh into the environment:  source ./activate
# Out of it again:                          source ./deactivate
# Written by 'condainer build'.

if [ "${_CONDAINER_PREFIX-}" = @PREFIX@ ]; then
  :  # active already
elif [ -n "${_CONDAINER_PREFIX-}" ]; then
  echo "condainer: another environment is active: source its deactivate first" >&2
  false
elif [ -z "${BASH_VERSION-}${ZSH_VERSION-}" ]; then
  echo "condainer: activate is for bash and zsh" >&2
  false
else

_condainer() {
  if [ -x @COMMAND@ ]; then @COMMAND@ "$@"; else command condainer "$@"; fi
}

_condainer_activate() {
  if [ -n "${ZSH_VERSION-}" ]; then emulate -L sh; setopt no_ignore_braces; fi
  local _c_name _c_script
  _CONDAINER_DIRECTORY="$1"
  _CONDAINER_PREFIX=@PREFIX@
  _CONDAINER_NAMES="@NAMES@"
  # While this shell has the lock file open, here or in a program it started, the mount stays.
  local _c_status=@TRY_AGAIN@ _c_lock _c_try
  for _c_try in 1 2 3 4 5; do  # the mount's last user may be going, and the file with it
    [ "$_c_status" = @TRY_AGAIN@ ] || break
    _c_lock="$(_condainer -q -d "$_CONDAINER_DIRECTORY" mount --for-shell)" ||
      { _c_status=1; break; }
    [ -e "$_c_lock" ] || continue  # zsh would give up on the whole function
    eval 'exec {_CONDAINER_HOLD}<"$_c_lock"' || continue
    _condainer -q -d "$_CONDAINER_DIRECTORY" mount --for-shell "$_CONDAINER_HOLD" >/dev/null &&
      _c_status=0 || { _c_status=$?; eval 'exec {_CONDAINER_HOLD}<&-'; }
  done
  if [ "$_c_status" != 0 ]; then
    [ "$_c_status" != @TRY_AGAIN@ ] || echo "condainer: $_CONDAINER_PREFIX comes and goes" >&2
    unset _CONDAINER_PREFIX _CONDAINER_DIRECTORY _CONDAINER_NAMES _CONDAINER_HOLD
    unset -f _condainer _condainer_activate _condainer_deactivate
    return 1
  fi
  for _c_name in $_CONDAINER_NAMES; do
    eval "_CONDAINER_HAD_$_c_name=\"\${$_c_name+1}\"; _CONDAINER_OLD_$_c_name=\"\${$_c_name-}\""
  done
  _CONDAINER_PROMPT=
  case "${PS1-}" in
    "${CONDA_PROMPT_MODIFIER-}"*) _CONDAINER_PROMPT="${CONDA_PROMPT_MODIFIER-}" ;;
  esac
  _CONDAINER_OUTER=
  if [ "${CONDA_SHLVL:-0}" -gt 0 ]; then
    _CONDAINER_OUTER="CONDA_PREFIX_$CONDA_SHLVL"
    export "$_CONDAINER_OUTER=${CONDA_PREFIX-}"
  fi
  export CONDA_SHLVL=$((${CONDA_SHLVL:-0} + 1))
  export CONDA_PREFIX="$_CONDAINER_PREFIX"
  export CONDA_DEFAULT_ENV=@NAME@
  export CONDA_PROMPT_MODIFIER=@PROMPT@
  export PATH="$_CONDAINER_PREFIX/bin${PATH:+:$PATH}"
@VARIABLES@
  if [ -n "${PS1+1}" ]; then PS1="$CONDA_PROMPT_MODIFIER${PS1#"$_CONDAINER_PROMPT"}"; fi
  if [ -d "$_CONDAINER_PREFIX/etc/conda/activate.d" ]; then
    for _c_script in "$_CONDAINER_PREFIX"/etc/conda/activate.d/*.sh; do
      if [ -r "$_c_script" ]; then . "$_c_script"; fi
    done
  fi
  for _c_name in $_CONDAINER_NAMES; do
    eval "_CONDAINER_NEW_$_c_name=\"\${$_c_name-}\""
  done
  hash -r
}

_condainer_deactivate() {
  if [ -n "${ZSH_VERSION-}" ]; then emulate -L sh; setopt no_ignore_braces; fi
  local _c_name _c_value _c_made _c_script _c_before _c_after
  if [ -d "$_CONDAINER_PREFIX/etc/conda/deactivate.d" ]; then
    while IFS= read -r _c_script <&9; do
      if [ -r "$_c_script" ]; then . "$_c_script"; fi
    done 9<<SCRIPTS
$(printf '%s\n' "$_CONDAINER_PREFIX"/etc/conda/deactivate.d/*.sh | sort -r)
SCRIPTS
  fi
  case "${PS1-}" in
    "${CONDA_PROMPT_MODIFIER-none}"*)
      PS1="$_CONDAINER_PROMPT${PS1#"$CONDA_PROMPT_MODIFIER"}" ;;
  esac
  # Of PATH only our own entry goes: it may have grown meanwhile.
  case ":$PATH:" in
    *":$_CONDAINER_PREFIX/bin:"*)
      _c_before=":$PATH:"
      _c_after="${_c_before#*":$_CONDAINER_PREFIX/bin:"}"
      _c_before="${_c_before%":$_CONDAINER_PREFIX/bin:$_c_after"}"
      _c_before="${_c_before#:}"
      _c_after="${_c_after%:}"
      PATH="$_c_before${_c_before:+${_c_after:+:}}$_c_after" ;;
  esac
  # Other variables are put back where they still are what activation made of them.
  for _c_name in $_CONDAINER_NAMES; do
    eval "_c_value=\"\${$_c_name-}\"; _c_made=\"\$_CONDAINER_NEW_$_c_name\""
    if [ "$_c_value" = "$_c_made" ] || [ -z "$_c_value" ]; then
      if eval "[ -n \"\$_CONDAINER_HAD_$_c_name\" ]"; then
        eval "export $_c_name=\"\$_CONDAINER_OLD_$_c_name\""
      else
        unset "$_c_name"
      fi
    fi
    unset "_CONDAINER_OLD_$_c_name" "_CONDAINER_NEW_$_c_name" "_CONDAINER_HAD_$_c_name"
  done
  if [ -n "$_CONDAINER_OUTER" ]; then unset "$_CONDAINER_OUTER"; fi
  hash -r
  eval 'exec {_CONDAINER_HOLD}<&-'
  unset _CONDAINER_PREFIX _CONDAINER_DIRECTORY _CONDAINER_NAMES _CONDAINER_HOLD _CONDAINER_OUTER
  unset _CONDAINER_PROMPT
  unset -f _condainer _condainer_activate _condainer_deactivate
}

if [ -n "${BASH_VERSION-}" ]; then
  _condainer_activate "$(CDPATH= builtin cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
else
  # Not %x, which in the C locale spells out bytes that are not ASCII.
  eval '_condainer_activate "${${funcsourcetrace[1]%:*}:A:h}"'
fi

fi
"""

_DEACTIVATE = r"""# Takes a bash or zsh out of the environment again:  source ./deactivate
# Written by 'condainer build'.
if [ -n "${_CONDAINER_PREFIX-}" ]; then
  _condainer_deactivate
else
  echo "condainer: no environment of condainer is active in this shell" >&2
  false
fi
"""


def activate_script(snapshot: Snapshot, variables: Sequence[tuple[str, str]], command: str) -> str:
    """The text of `activate`.

    Args:
        snapshot: what activation does; names the variables to put back.
        variables: those that no script sets: of environment.yml and of env_vars.d.
        command: path of the `condainer` executable; where it is not there, PATH is searched.
    """
    changed = [name for name, _ in snapshot.variables if name != "PATH"]
    names = dict.fromkeys([*_CONDA_NAMES, *changed])
    exports = [f"  export {name}={shlex.quote(value)}" for name, value in variables]
    places = {
        "@COMMAND@": shlex.quote(command),
        "@PREFIX@": shlex.quote(snapshot.prefix),
        "@NAMES@": " ".join(name for name in names if _IDENTIFIER.fullmatch(name)),
        "@NAME@": shlex.quote(snapshot.name),
        "@PROMPT@": shlex.quote(f"({snapshot.name}) "),
        "@TRY_AGAIN@": str(TRY_AGAIN),
        "@VARIABLES@": "\n".join(exports),
    }
    return re.sub(r"@[A-Z_]+@", lambda match: places[match[0]], _ACTIVATE)


def is_ours(path: Path) -> bool:
    """Whether a file may be replaced: it is not there, or a `build` wrote it."""
    try:
        text = files.read(path).decode(errors="replace")
        return _WRITTEN in text or text.startswith(_WRITTEN_BEFORE)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def deactivate_script() -> str:
    """The text of `deactivate`."""
    return _DEACTIVATE
