#!/bin/sh
# Set-up, every static check, then every test that can run on this machine. Arguments go to pytest, and
# with arguments only the tests are run. Tests that need an engine or etcd start one of their own when
# none is running, and are skipped by name where they cannot.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh --dev --lenient
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
scripts/lint.sh
exec .venv/bin/python -m pytest
