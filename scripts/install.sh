#!/usr/bin/env bash
# Build a virtual environment with this project in it, editable.
#
# usage: scripts/install.sh DIRECTORY EXTRA [CONSTRAINTS_FILE] [REQUIREMENT ...]
#
# BARE="REQUIREMENT ..." installs these too, without what they depend on.
#
# uv does the work because it is several times faster than pip and links files from its cache, so
# that a second environment costs seconds. It gets pip's index and certificate settings. Where it
# cannot install, pip does.  Modules are compiled at once: a process that may not write them down
# would compile torch anew at every start.
set -euo pipefail

[ "$#" -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$1
extra=$2
shift 2
case $venv in /*) ;; *) venv=$root/$venv ;; esac

arguments=(--editable "$root[$extra]")
if [ "$#" -gt 0 ] && [ -n "$1" ]; then
    case $1 in *.txt)
        constraints=$1
        case $constraints in /*) ;; *) constraints=$root/$constraints ;; esac
        arguments+=(--constraint "$constraints")
        shift ;;
    esac
fi
arguments+=("$@")

find_python=${PYTHON:-python3}
"$find_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; '$find_python' is not. Try: make PYTHON=python3.12" >&2
    exit 1
}
if [ ! -x "$venv/bin/python" ]; then
    "$find_python" -m venv "$venv" || {
        echo "No virtual environment: this Python lacks its venv module (Debian: python3-venv)." >&2
        exit 1
    }
fi
python=$venv/bin/python

# `pip config get` fails where a value is not set; that is no error here.
pip_setting() { "$python" -m pip config get "global.$1" 2>/dev/null || true; }
use() { # NAME VALUE: export NAME unless it is set or the value is empty
    if [ -z "${!1:-}" ] && [ -n "$2" ]; then export "$1=$2"; fi
}
use UV_DEFAULT_INDEX "${PIP_INDEX_URL:-$(pip_setting index-url)}"
use SSL_CERT_FILE "${PIP_CERT:-$(pip_setting cert)}"
use UV_HTTP_TIMEOUT "${PIP_DEFAULT_TIMEOUT:-180}"

echo "Installing into ${venv#"$root"/} (the first time this fetches several GB: torch comes with CUDA)"
# From elsewhere, because uv would read the project's own settings here (see uv.toml).
cd /
bare=()
[ -z "${BARE:-}" ] || read -ra bare <<<"$BARE"
if "$python" -m pip install --quiet --disable-pip-version-check uv 2>/dev/null \
    && "$python" -m uv pip install --compile-bytecode --python "$python" "${arguments[@]}"; then
    install=("$python" -m uv pip install --python "$python")
else
    echo "uv could not install; trying pip." >&2
    install=("$python" -m pip install)
    "${install[@]}" "${arguments[@]}"
fi
[ "${#bare[@]}" -eq 0 ] || "${install[@]}" --no-deps "${bare[@]}"
