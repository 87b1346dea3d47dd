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

# The simulator only computes: it runs beside all the rest, which mostly waits, and gives way to it.
said=$(mktemp)
nice -n 10 .venv/bin/python -m pytest -o timeout=600 tests/sim >"$said" 2>&1 &
simulator=$!
trap 'kill "$simulator" 2>/dev/null || :; wait; rm -f "$said"' EXIT
trap 'exit 130' INT TERM

scripts/lint.sh
failed=0
.venv/bin/python -m pytest --ignore=tests/sim || failed=$?
wait "$simulator" || failed=$?
echo "== what the simulator said"
cat "$said"
exit "$failed"
