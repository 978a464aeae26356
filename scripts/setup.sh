#!/bin/sh
# Usage: setup.sh PYTHON VENV. Makes the virtual environment and, as root on Debian, installs the packages
# that the tests and the demo use and that are missing.
set -eu
python=$1
venv=$2

missing=""
command -v nft >/dev/null 2>&1 || [ -x /usr/sbin/nft ] || missing="$missing nftables"
command -v ip >/dev/null 2>&1 || [ -x /usr/sbin/ip ] || missing="$missing iproute2"
command -v turnutils_stunclient >/dev/null 2>&1 || missing="$missing coturn"
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing Debian packages:$missing"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        # Debian starts a packaged daemon at once; ours are started by the tests, where they need them.
        RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $missing >/dev/null
    else
        echo "not root: these Debian packages are missing, and what needs them is skipped:$missing" >&2
    fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]'
