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

# What only computes runs beside all the rest, which mostly waits, and gives way to it.
computing="tests/sim tests/unit tests/property"
said=$(mktemp)
# shellcheck disable=SC2086
nice -n 10 .venv/bin/python -m pytest -o timeout=600 $computing >"$said" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null || :; wait; rm -f "$said"' EXIT
trap 'exit 130' INT TERM

scripts/lint.sh
failed=0
# shellcheck disable=SC2086
.venv/bin/python -m pytest $(printf -- '--ignore=%s ' $computing) || failed=$?
wait "$beside" || failed=$?
echo "== beside it: $computing"
cat "$said"
exit "$failed"
