#!/bin/sh
# Brings this checkout and this machine into shape: .venv with PWM in it, the generated code, and the
# programs PWM runs on (Docker engine, etcd, busybox for the demo's image). As root on Debian and Ubuntu
# it installs what is missing; anybody else is told exactly what to install. Does nothing, in a few
# milliseconds, when everything is there: each step leaves a stamp made of what it was built from.
#
#   --dev        also the developers' tools (tests, type checker, linters)
#   --no-system  only .venv and generated code
#   --lenient    a missing engine or etcd is a note, not an error (tests that need one are skipped)
set -eu
cd "$(dirname "$0")/.."

dev="" system=yes lenient=""
for option in "$@"; do
    case $option in
        --dev) dev=yes ;;
        --no-system) system="" ;;
        --lenient) lenient=yes ;;
        *) echo "setup.sh: unknown option $option" >&2; exit 2 ;;
    esac
done

say() { printf '\033[2m%s\033[0m\n' "$*" >&2; }
[ -t 2 ] && [ -z "${NO_COLOR:-}" ] || say() { printf '%s\n' "$*" >&2; }

# -- the machine ---------------------------------------------------------------------------------

apt_updated=""
install() {  # install PACKAGE...: as root with apt, otherwise fails
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    export DEBIAN_FRONTEND=noninteractive
    if [ -z "$apt_updated" ]; then
        apt-get update -qq >/dev/null || true
        apt_updated=yes
    fi
    say "installing $*"
    apt-get install -y -qq --no-install-recommends "$@" >/tmp/pwm-apt.$$ 2>&1 || {
        cat /tmp/pwm-apt.$$ >&2; rm -f /tmp/pwm-apt.$$; return 1
    }
    rm -f /tmp/pwm-apt.$$
}

has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null; }

# What a newer Ubuntu or Debian calls it, else the older name.
etcd_package() { if apt-cache show etcd-server >/dev/null 2>&1; then echo etcd-server etcd-client; else echo etcd; fi; }

missing_programs() {
    [ -S /var/run/docker.sock ] || [ -n "${DOCKER_HOST:-}" ] || has dockerd || echo docker.io iptables
    [ -n "${PWM_ETCD_BIN:-}" ] || has etcd || etcd_package
    has busybox || echo busybox-static
}

if [ -n "$system" ]; then
    missing=$(missing_programs | tr '\n' ' ')
    if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && has apt-get; then
        apt-get update -qq >/dev/null || true
        apt_updated=yes
        missing=$(missing_programs | tr '\n' ' ')
    fi
    # shellcheck disable=SC2086  # a list of package names
    if [ -n "$missing" ] && ! install $missing; then
        echo "PWM needs programs that this machine does not have. On Debian or Ubuntu, install them with:" >&2
        echo "    sudo apt-get install --no-install-recommends $missing" >&2
        echo "and let your user talk to the Docker engine:  sudo usermod -aG docker \"\$USER\"  (then log in again)" >&2
        [ -n "$lenient" ] || exit 1
    fi
fi

# What tests break things with. Without it they are skipped by name.
if [ -n "$dev" ] && [ -n "$system" ] && [ "$(id -u)" = 0 ]; then
    tools=""
    has ip || tools="$tools iproute2"
    has strace || tools="$tools strace"
    has faketime || tools="$tools faketime"
    # shellcheck disable=SC2086  # a list of package names
    [ -z "$tools" ] || install $tools || say "not installed:$tools"
fi

# -- .venv ---------------------------------------------------------------------------------------

find_python() {
    for candidate in python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"; return
        fi
    done
    return 1
}

fingerprint() { cat "$@" | cksum | tr ' ' -; }

if [ ! -x .venv/bin/python ]; then
    python=$(find_python) || { install python3 && python=$(find_python); } || {
        echo "PWM needs Python 3.11 or newer. On Debian 12 or Ubuntu 24.04:  sudo apt-get install python3 python3-venv" >&2
        exit 1
    }
    say "making .venv with $("$python" --version)"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null && ! install python3-venv; then
        echo "Python's venv module is missing. Install it with:  sudo apt-get install python3-venv" >&2
        exit 1
    fi
    "$python" -m venv .venv
fi

installed=$(fingerprint setup.cfg pyproject.toml)${dev:+-dev}
stamp=$(cat .venv/pwm-installed 2>/dev/null || true)
if [ "$stamp" != "$installed" ] && [ "$stamp" != "$installed-dev" ]; then
    say "installing PWM and its libraries into .venv"
    pip="$PWD/.venv/bin/python -m pip --disable-pip-version-check install -qq --root-user-action=ignore"
    # Built with what is in .venv: an isolated build would install the same tools once more.
    $pip "setuptools>=77" "grpcio-tools>=1.71" "googleapis-common-protos>=1.66"
    # A plain path entry: setuptools' other kind of editable install costs every `pwm` 20 ms.
    $pip --no-build-isolation --config-settings editable_mode=compat --editable ".${dev:+[dev]}"
    echo "$installed" >.venv/pwm-installed
fi

# -- generated code ------------------------------------------------------------------------------

# shellcheck disable=SC2046  # file names without spaces
sources=$(fingerprint proto/generate.py $(find proto -name '*.proto' | sort))
if [ ! -d pwm/api/v1 ] || [ "$(cat pwm/api/.sources 2>/dev/null)" != "$sources" ] ||
    { [ -n "$dev" ] && [ ! -e pwm/api/v1/common_pb2.pyi ]; }; then
    say "generating pwm/api"
    .venv/bin/python proto/generate.py
    echo "$sources" >pwm/api/.sources
fi
