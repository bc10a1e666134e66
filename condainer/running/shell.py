"""The scripts `activate` and `deactivate` of a project, for bash and zsh.

To be sourced. They do to the shell what `conda activate` and `conda deactivate` do: variables,
PATH, prompt, and the packages' own scripts; and they put back what was there before.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from condainer.running import variables
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from condainer.project.config import Config
    from condainer.running.activation import Snapshot

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

\builtin : 2>/dev/null || \eval 'echo "condainer: activate is for bash and zsh" >&2; return 1'
\builtin test "${_CONDAINER_PREFIX-}" != @PREFIX@ || \builtin return 0  # active already
\builtin test -z "${_CONDAINER_PREFIX-}" || \builtin eval '\builtin echo "condainer: another environment is active: source its deactivate first" >&2; \builtin return 1'

# Until all is as in a new shell no word may be an alias or a function of the caller's: hence the
# backslashes. In zsh a function has options of its own, so this file is read again inside of one.
\builtin eval "${BASH_VERSION:+_CONDAINER_SET=\$SHELLOPTS _CONDAINER_SHOPT=\$(\builtin shopt -p); \builtin shopt -q expand_aliases && _CONDAINER_ALIASES=-s; \builtin set +o allexport +o functrace +o errtrace; \builtin shopt -u expand_aliases}"
\builtin test -n "${BASH_VERSION-}${_CONDAINER_INSIDE-}" || \builtin eval '_condainer_zsh() { \builtin unset -f _condainer_zsh; \builtin emulate -L zsh; \builtin setopt no_aliases; \builtin trap - DEBUG ZERR; \builtin trap : INT; \builtin local _CONDAINER_INSIDE="${${funcsourcetrace[1]%:*}:A}"; \builtin source "$_CONDAINER_INSIDE"; }; _condainer_zsh; \builtin return'

_condainer() {
  if [[ -x @COMMAND@ ]]; then @COMMAND@ "$@"; else command condainer "$@"; fi
}

# The caller's options are put away, and its functions that stand before commands.
_condainer_begin() {
  if [[ -n "${ZSH_VERSION-}" ]]; then _condainer_hide; builtin return; fi
  # First of all the aliases: what is in $() is read only when it runs.
  if builtin shopt -q expand_aliases; then _CONDAINER_ALIASES=-s; fi
  builtin shopt -u expand_aliases
  builtin : "${_CONDAINER_SET:=$SHELLOPTS}" "${_CONDAINER_SHOPT:=$(builtin shopt -p)}"
  builtin local IFS=$' \t\n'
  _CONDAINER_POSIX=
  case ":$_CONDAINER_SET:" in
    *:posix:*) _CONDAINER_POSIX="$(builtin declare -p POSIXLY_CORRECT 2>/dev/null)" ;;
  esac
  # Behind || it counts for nothing already, and must not be turned on again there.
  case "$-" in *e*) builtin set +o errexit ;; esac
  builtin set +o allexport +o errtrace +o functrace +o keyword +o noclobber \
    +o noglob +o nounset +o physical +o pipefail +o posix +o verbose +o xtrace \
    -o braceexpand -o hashall
  builtin shopt -u assoc_expand_once compat31 compat32 compat40 compat41 compat42 compat43 \
    compat44 dotglob execfail expand_aliases extdebug extglob failglob globstar inherit_errexit \
    lastpipe localvar_inherit localvar_unset nocaseglob nocasematch nullglob shift_verbose \
    xpg_echo 2>/dev/null
  builtin shopt -s sourcepath interactive_comments
  _CONDAINER_INT="$(builtin trap -p INT)"
  builtin trap : INT  # Ctrl-C ends what runs, and that ends the activation in order
  _condainer_hide
}

_condainer_hide() {
  if [[ -n "${ZSH_VERSION-}" ]]; then
    builtin eval '() {
      builtin emulate -L zsh
      builtin local name
      builtin typeset -ga _CONDAINER_HIDDEN
      _CONDAINER_HIDDEN=()
      for name in ${(k)functions}; do
        if (( $+builtins[$name] || $+commands[$name] )); then
          builtin disable -f -- $name
          _CONDAINER_HIDDEN+=($name)
        fi
      done
    }'
    builtin return
  fi
  builtin local _c_kind _c_flags _c_name _c_builtins
  _c_builtins=" $(builtin compgen -b) "
  _c_builtins="${_c_builtins//$'\n'/ }"
  _CONDAINER_HIDDEN=
  while builtin read -r _c_kind _c_flags _c_name; do
    [[ "$_c_name" == [!_]* && "$_c_flags" != *r* ]] || builtin continue  # no command begins with _
    [[ "$_c_builtins" == *" $_c_name "* ]] || builtin type -P -- "$_c_name" >/dev/null || builtin continue
    _CONDAINER_HIDDEN+="builtin declare -F -- $_c_name >/dev/null || {
      $(builtin declare -f -- "$_c_name")
    }
    "
    [[ "$_c_flags" != *x* ]] || _CONDAINER_HIDDEN+="builtin export -f -- $_c_name
    "
    builtin unset -f -- "$_c_name"
  done <<< "$(builtin declare -F)"
}

# All is put back, and the status that is given becomes that of `source`.
_condainer_end() {
  [[ -n "${_CONDAINER_PREFIX-}" ]] || builtin unset -f _condainer_end
  if [[ -n "${ZSH_VERSION-}" ]]; then
    builtin eval '() {
      builtin emulate -L zsh
      builtin local name
      for name in $_CONDAINER_HIDDEN; do builtin enable -f -- $name; done
    }'
    builtin unset _CONDAINER_HIDDEN
    builtin return "$1"
  fi
  builtin local IFS=: _c_name _c_set="$_CONDAINER_SET" _c_shopt="$_CONDAINER_SHOPT"
  builtin local _c_value="${_CONDAINER_POSIX#*=\"}" _c_posix="$_CONDAINER_POSIX"
  builtin local _c_int="$_CONDAINER_INT" _c_kind _c_flag _c_aliases="${_CONDAINER_ALIASES--u}"
  builtin shopt -s extglob  # functions may hold such patterns
  builtin eval "$_CONDAINER_HIDDEN"
  builtin unset _CONDAINER_SET _CONDAINER_SHOPT _CONDAINER_POSIX _CONDAINER_HIDDEN \
    _CONDAINER_ALIASES _CONDAINER_INT
  case ":$_c_set:" in
    *:posix:*)
      builtin set -o posix
      if [[ -n "$_c_posix" ]]; then POSIXLY_CORRECT="${_c_value%\"}"; fi
      case "$_c_posix" in
        "declare -"*x*" POSIX"*) builtin export POSIXLY_CORRECT ;;
      esac ;;
  esac
  while IFS=" " builtin read -r _c_kind _c_flag _c_name; do
    builtin shopt "$_c_flag" "$_c_name" 2>/dev/null
  done <<< "$_c_shopt"
  builtin shopt "$_c_aliases" expand_aliases
  for _c_name in $SHELLOPTS; do
    case ":$_c_set:" in *":$_c_name:"*) ;; *) builtin set +o "$_c_name" ;; esac
  done
  for _c_name in $_c_set; do
    case "$_c_name:$SHELLOPTS:" in xtrace:*|verbose:*|*":$_c_name:"*) ;; *) builtin set -o "$_c_name" ;; esac
  done
  builtin trap - INT
  builtin eval "${_c_int:+\\builtin $_c_int}"
  case ":$_c_set:" in *:verbose:*) builtin set -o verbose ;; esac
  case ":$_c_set:" in *:xtrace:*) builtin set -o xtrace ;; esac
  builtin return "$1"
}

# A script of a package, which sees no arguments, and does not read what is meant for others.
_condainer_source() {
  builtin local _c_script="$_CONDAINER_PREFIX/$1"
  builtin set --
  builtin . "$_c_script" </dev/null
  builtin set +eu
}

# One that may end the shell runs in another one first: where it does, it counts for nothing.
_condainer_try() {
  if [[ "$(_condainer_source "$1" >/dev/null 2>&1; builtin printf end)" = end ]]; then
    _condainer_source "$1"
  else
    builtin printf 'condainer: warning: %s ends the shell: it counts for nothing\n' \
      "$_CONDAINER_PREFIX/$1" >&2
  fi
}

# Opens a lock file, which may go away at any moment. Without all this zsh would end the caller's
# shell then: a redirection of `exec` that fails is fatal to it.
_condainer_hold() {
  _CONDAINER_HOLD=
  if [[ -n "${ZSH_VERSION-}" ]]; then
    builtin eval '() {
      builtin emulate -L zsh
      { { exec {_CONDAINER_HOLD}<"$1" } 2>/dev/null } always { TRY_BLOCK_ERROR=0 }
    } "$1"'
  else
    { builtin eval 'exec {_CONDAINER_HOLD}<"$1"'; } 2>/dev/null
  fi
  [[ -n "$_CONDAINER_HOLD" ]]
}

_condainer_is_exported() {
  if [[ -n "${ZSH_VERSION-}" ]]; then
    builtin eval "[[ \${(Pt)1} = *export* ]]"
  else
    case "$(builtin declare -p "$1" 2>/dev/null)" in "declare -"*x*" $1"*) ;; *) builtin false ;; esac
  fi
}

_condainer_forget() {
  builtin unset _CONDAINER_PREFIX _CONDAINER_DIRECTORY _CONDAINER_NAMES _CONDAINER_HOLD
  builtin unset _CONDAINER_PROMPT
  builtin unset -f _condainer _condainer_hide _condainer_source _condainer_try _condainer_hold
  builtin unset -f _condainer_is_exported _condainer_forget
  builtin unset -f _condainer_activate _condainer_deactivate _condainer_begin
}

_condainer_activate() {
  if [[ -n "${ZSH_VERSION-}" ]]; then
    builtin emulate -L sh
    builtin setopt no_aliases no_ignore_braces
  fi
  builtin local IFS=$' \t\n' _c_name _c_level
  _CONDAINER_DIRECTORY="$1"
  _CONDAINER_PREFIX=@PREFIX@
  _CONDAINER_NAMES="@NAMES@"
  # While this shell has the lock file open, here or in a program it started, the mount stays.
  builtin local _c_status=@TRY_AGAIN@ _c_lock _c_try _c_python
  for _c_try in 1 2 3 4 5; do  # the mount's last user may be going, and the file with it
    [[ "$_c_status" = @TRY_AGAIN@ ]] || builtin break
    _c_lock="$(_condainer -q -d "$_CONDAINER_DIRECTORY" mount --for-shell)" ||
      { _c_status=1; builtin break; }
    _condainer_hold "$_c_lock" || builtin continue
    _c_python="$(_condainer -q -d "$_CONDAINER_DIRECTORY" \
      mount --for-shell "$_CONDAINER_HOLD")" &&
      _c_status=0 || { _c_status=$?; builtin eval 'exec {_CONDAINER_HOLD}<&-'; }
  done
  if [[ "$_c_status" != 0 ]]; then
    [[ "$_c_status" != @TRY_AGAIN@ ]] ||
      builtin echo "condainer: $_CONDAINER_PREFIX comes and goes" >&2
    _condainer_forget
    builtin return 1
  fi
  case "${CONDA_SHLVL-}" in
    ""|*[!0123456789]*|?????*) _c_level=0 ;;
    *) _c_level=$((10#$CONDA_SHLVL)) ;;
  esac
  for _c_name in $_c_python; do
    _CONDAINER_NAMES="$_CONDAINER_NAMES ${_c_name%%=*}"
  done
  if [[ "$_c_level" != 0 ]]; then
    _CONDAINER_NAMES="$_CONDAINER_NAMES CONDA_PREFIX_$_c_level CONDA_STACKED_$((_c_level + 1))"
  fi
  for _c_name in $_CONDAINER_NAMES; do
    builtin eval "_CONDAINER_HAD_$_c_name=\"\${$_c_name+set}\""
    builtin eval "_CONDAINER_OLD_$_c_name=\"\${$_c_name-}\""
    if _condainer_is_exported "$_c_name"; then
      builtin eval "_CONDAINER_HAD_$_c_name=exported"
    fi
  done
  _CONDAINER_PROMPT=
  case "${PS1-}" in
    "${CONDA_PROMPT_MODIFIER-}"*) _CONDAINER_PROMPT="${CONDA_PROMPT_MODIFIER-}" ;;
  esac
  for _c_name in $_c_python; do
    case "$_c_name" in
      *=*) builtin export "$_c_name" ;;
      *) builtin unset "$_c_name" ;;
    esac
  done
  if [[ "$_c_level" != 0 ]]; then
    builtin export "CONDA_PREFIX_$_c_level=${CONDA_PREFIX-}"
    builtin export "CONDA_STACKED_$((_c_level + 1))=true"
  fi
  builtin export CONDA_SHLVL="$((_c_level + 1))"
  builtin export CONDA_PREFIX="$_CONDAINER_PREFIX"
  builtin export CONDA_DEFAULT_ENV=@NAME@
  builtin export CONDA_PROMPT_MODIFIER=@PROMPT@
  builtin export PATH="$_CONDAINER_PREFIX/bin${PATH:+:$PATH}"
@VARIABLES@
  if [[ -n "${PS1+1}" ]]; then PS1="$CONDA_PROMPT_MODIFIER${PS1#"$_CONDAINER_PROMPT"}"; fi
@ACTIVATE@
  for _c_name in $_CONDAINER_NAMES; do
    builtin eval "_CONDAINER_NEW_$_c_name=\"\${$_c_name-}\""
  done
  builtin hash -r
}

_condainer_deactivate() {
  if [[ -n "${ZSH_VERSION-}" ]]; then
    builtin emulate -L sh
    builtin setopt no_aliases no_ignore_braces
    builtin trap - DEBUG ZERR
    builtin trap : INT
  fi
  _condainer_begin
  builtin local IFS=$' \t\n' _c_name _c_value _c_made _c_had _c_before _c_after
@DEACTIVATE@
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
    builtin eval "_c_value=\"\${$_c_name-}\"; _c_made=\"\$_CONDAINER_NEW_$_c_name\""
    builtin eval "_c_had=\"\$_CONDAINER_HAD_$_c_name\""
    if [[ "$_c_value" = "$_c_made" || -z "$_c_value" ]]; then
      builtin unset "$_c_name"
      case "$_c_had" in
        exported) builtin eval "builtin export $_c_name=\"\$_CONDAINER_OLD_$_c_name\"" ;;
        set) builtin eval "$_c_name=\"\$_CONDAINER_OLD_$_c_name\"" ;;
      esac
    fi
    builtin unset "_CONDAINER_OLD_$_c_name" "_CONDAINER_NEW_$_c_name" "_CONDAINER_HAD_$_c_name"
  done
  builtin hash -r
  builtin eval 'exec {_CONDAINER_HOLD}<&-'
  _condainer_forget
  _condainer_end 0
}

_condainer_begin
if [[ -n "${BASH_VERSION-}" ]]; then
  case "${BASH_SOURCE[0]}" in
    */*) _CONDAINER_DIRECTORY="${BASH_SOURCE[0]%/*}/" ;;
    *) _CONDAINER_DIRECTORY=. ;;
  esac
  _CONDAINER_DIRECTORY="$(CDPATH= builtin cd -- "$_CONDAINER_DIRECTORY" && builtin pwd)"
else
  _CONDAINER_DIRECTORY="${_CONDAINER_INSIDE%/*}"
fi
if _condainer_activate "$_CONDAINER_DIRECTORY"; then _condainer_end 0; else _condainer_end 1; fi
"""

_DEACTIVATE = r"""# Takes a bash or zsh out of the environment again:  source ./deactivate
# Written by 'condainer build'.
\builtin : 2>/dev/null || \eval 'echo "condainer: deactivate is for bash and zsh" >&2; return 1'
\builtin test -z "${_CONDAINER_PREFIX-}" || \builtin eval '\builtin eval "${BASH_VERSION:+_CONDAINER_SET=\$SHELLOPTS; \builtin set +o functrace +o errtrace}"; _condainer_deactivate; \builtin return'
\builtin echo "condainer: no environment of condainer is active in this shell" >&2
\builtin false
"""


@dataclass(frozen=True)
class PackageScripts:
    """The scripts that packages have for one occasion.

    Attributes:
        paths: below the prefix, in the order in which they are to run.
        may_end_the_shell: whether that cannot be ruled out for all of them.
    """

    paths: tuple[str, ...] = ()
    may_end_the_shell: bool = True

    def lines(self) -> str:
        """What runs them."""
        command = "_condainer_try" if self.may_end_the_shell else "_condainer_source"
        return "\n".join(f"  {command} {shlex.quote(path)}" for path in self.paths)


NONE = PackageScripts()


def activate_script(
    snapshot: Snapshot,
    own: Sequence[tuple[str, str]],
    command: str,
    on_activation: PackageScripts = NONE,
    on_deactivation: PackageScripts = NONE,
) -> str:
    """The text of `activate`.

    Args:
        snapshot: what activation does; names the variables to put back.
        own: the variables that no script sets: of environment.yml and of env_vars.d.
        command: path of the `condainer` executable; where it is not there, PATH is searched.
        on_activation: the packages' activation scripts.
        on_deactivation: their deactivation scripts.
    """
    changed = [name for name, _ in snapshot.variables if name != "PATH"]
    changed += [name for name in snapshot.touched if name != "PATH"]
    names = dict.fromkeys([*_CONDA_NAMES, *changed])
    exports = [f"  builtin export {name}={shlex.quote(value)}" for name, value in own]
    places = {
        "@COMMAND@": shlex.quote(command),
        "@PREFIX@": shlex.quote(snapshot.prefix),
        "@NAMES@": " ".join(name for name in names if _IDENTIFIER.fullmatch(name)),
        "@NAME@": shlex.quote(snapshot.name),
        "@PROMPT@": shlex.quote(f"({snapshot.name}) "),
        "@TRY_AGAIN@": str(TRY_AGAIN),
        "@VARIABLES@": "\n".join(exports),
        "@ACTIVATE@": on_activation.lines(),
        "@DEACTIVATE@": on_deactivation.lines(),
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


def of_python(config: Config) -> str:
    """What keeps other Pythons out, for `activate`: NAME to unset and NAME=VALUE to set."""
    changes = variables.of_python(
        user_site=config.user_site_packages, keep_python_path=config.keep_python_path
    )
    return " ".join(name if value is None else f"{name}={value}" for name, value in changes)


def deactivate_script() -> str:
    """The text of `deactivate`."""
    return _DEACTIVATE
