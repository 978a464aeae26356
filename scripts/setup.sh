#!/bin/sh
# Usage: setup.sh PYTHON VENV. Makes the virtual environment and, as root on Debian, installs the packages
# that the tests and the demo use and that are missing.
set -eu
python=$1
venv=$2

has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "Python 3.11 or newer is needed; '$python' is not. Try: make PYTHON=python3.11" >&2
    exit 1
}

missing=""
has nft || missing="$missing nftables"
has ip || missing="$missing iproute2"
has turnutils_stunclient || missing="$missing coturn"
has miniupnpd || missing="$missing miniupnpd-nftables" # the daemon alone: nothing starts it, nothing is asked
has conntrack || missing="$missing conntrack"
has redis-server || missing="$missing redis-server"
# The status page is looked at in a browser without a screen.
has chromium-headless-shell || has chromium || missing="$missing chromium-headless-shell fonts-dejavu-core"
has nginx || missing="$missing nginx-light"
has curl || missing="$missing curl"
has ssh || missing="$missing openssh-client"
has sshd || missing="$missing openssh-server"
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
# CPython's own tests; Debian packages those of its own Python only.
testsuite=$("$python" -c 'import sys
if sys.base_prefix == "/usr":
    print("libpython%d.%d-testsuite" % sys.version_info[:2])')
[ -z "$testsuite" ] || "$python" -c 'import test.test_socket' 2>/dev/null || missing="$missing $testsuite"

get() { RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }

install() {
    echo "installing Debian packages:$missing"
    export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes
    # Debian starts a packaged daemon at once and at each boot. The tests start what they need by themselves,
    # and coturn's daemon would hold the STUN port.
    guarded=""
    if [ -d /run/systemd/system ]; then
        for package in coturn redis-server; do
            case "$missing" in *"$package"*) guarded="$guarded $package.service" ;; esac
        done
        case "$missing" in *nginx-light*) guarded="$guarded nginx.service" ;; esac
        case "$missing" in *openssh-server*) guarded="$guarded ssh.service ssh.socket" ;; esac
    fi
    [ -z "$guarded" ] || systemctl --runtime --quiet mask $guarded
    # RUNLEVEL=1 says the same without systemd.
    failed=""
    apt-get update -qq || true
    get $missing 2>/dev/null || for package in $missing; do
        get "$package" || failed="$failed $package"
    done
    [ -z "$guarded" ] || systemctl --runtime --quiet unmask $guarded
    [ -z "$guarded" ] || systemctl --quiet disable $guarded 2>/dev/null || true
    [ -z "$failed" ] || echo "these packages could not be installed:$failed" >&2
}

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        install
    else
        echo "not root: these Debian packages are missing:$missing" >&2
    fi
fi
"$python" -c 'import venv, ensurepip' 2>/dev/null || {
    echo "Without python3-venv there is no $venv. Please: sudo apt-get install python3-venv" >&2
    exit 1
}
for program in nft ip turnutils_stunclient miniupnpd conntrack redis-server nginx curl ssh sshd; do
    has "$program" || { echo "what needs these is left out, the rest works: sudo apt-get install$missing" >&2; break; }
done

# A virtual environment without pip is what an interrupted run leaves behind.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || {
    echo "making $venv"
    "$python" -m venv --clear "$venv"
}
echo "installing ntcpsock and its development tools into $venv (once)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]'
