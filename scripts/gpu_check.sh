#!/usr/bin/env bash
# See on a GPU, within ten minutes, what a CPU cannot show: directions, replay and a run with the
# CPU's bits, no wait inside a mini-batch's probes, peaks of clients, and speed.
#
# usage: scripts/gpu_check.sh [--wheels DIR] [--out DIR] [--device cuda|cpu] [--small]
#                             [--sections NAME,NAME] [--seconds N]
#
# Needs Python 3.11, torch 2.11 and flwr with what they depend on, but no network, no git and no
# Ray. Packages that the machine lacks come as wheels in a folder (--wheels, or $WHEELS).
#
# --out (or $OUT, or gpu_check) gets figures.jsonl, gpu_check.log and summary.txt as they are made.
# Exit status: 0 all is equal and done; 1 something that must be equal is not, or was not seen; 2 a
# section of figures did not end; 3 there is no GPU; 4 a package or an argument is missing.
#
# On a CPU the same code runs at small sizes in under a minute: --device cpu --small
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
out=${OUT:-gpu_check}
wheels=${WHEELS:-}
rest=()
while [ "$#" -gt 0 ]; do
    case $1 in
    --wheels | --out)
        [ "$#" -gt 1 ] || { echo "$1 needs a folder." >&2; exit 4; }
        if [ "$1" = --out ]; then out=$2; else wheels=$2; fi
        shift 2 ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) rest+=("$1"); shift ;;
    esac
done

scratch=$(mktemp -d) || exit 4
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$out" "$scratch/site" || exit 4

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; '$python' is not. Set PYTHON to one that is." >&2
    exit 4
}

# One wheel at a time: one that does not fit this machine leaves the others.
unpack() {
    local wheel=$1
    if "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
            --no-compile --no-cache-dir --upgrade --target "$scratch/site" "$wheel" 2>&1 \
            || echo "not installed: ${wheel##*/}"
    else # a wheel is an archive of what it installs
        "$python" -m zipfile -e "$wheel" "$scratch/site" || echo "not unpacked: ${wheel##*/}"
    fi
}
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "There is no folder '$wheels' of wheels." >&2; exit 4; }
    for wheel in "$wheels"/*.whl; do
        [ -e "$wheel" ] || { echo "The folder '$wheels' holds no wheel." >&2; exit 4; }
        echo "wheel ${wheel##*/}"
        unpack "$wheel"
    done
fi

export PYTHONPATH="$scratch/site:$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 PYTHONPYCACHEPREFIX="$scratch/compiled" MPLBACKEND=Agg
export FLWR_HOME="$scratch/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export HOME="${HOME:-$scratch}"
mkdir -p "$FLWR_HOME"

"$python" - <<'EOF' || exit 4
import sys

try:
    import torch

    import benchmarks.gpu.check
    import benchmarks.gpu.equality
    import benchmarks.gpu.speed
except ImportError as error:
    sys.exit(
        f"{error}. The GPU check cannot begin: install that package, or put its wheel, and those of "
        "what it depends on, into the folder of --wheels."
    )
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
    print(f"note: torch is {torch.__version__}; the check is meant for 2.11 and newer")
EOF
command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true

"$python" -m benchmarks.gpu --out "$out" ${rest[@]+"${rest[@]}"}
