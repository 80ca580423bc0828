#!/usr/bin/env bash
# See to it that there is a browser for the tests that look at a page (tests/reporting).
#
# Nothing to do where there is one, or SFL_BROWSER names one. As root on Debian or Ubuntu, chromium
# is installed. Elsewhere it says what to do: those tests are then skipped, or fail where CI=true,
# but where the machine's own source of packages has none to give, which .venv/.no-browser says.
set -euo pipefail
cd "$(dirname "$0")/.."
none=.venv/.no-browser
rm -f "$none"

for name in ${SFL_BROWSER:-chromium chromium-browser google-chrome google-chrome-stable}; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing chromium for the tests that look at a page."
    export DEBIAN_FRONTEND=noninteractive
    if { timeout 600 apt-get update -qq && timeout 600 apt-get install -y -qq \
        --no-install-recommends chromium; } >/dev/null && command -v chromium >/dev/null; then
        exit 0
    fi
    [ ! -d .venv ] || echo "apt-get could not install chromium" >"$none"
fi
echo "No browser: tests that look at a page need chromium. Install it (Debian: apt-get install" \
    "chromium), or name a browser of that family in SFL_BROWSER." >&2
