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

# Most of the rest waits most of the time: beside it runs, first, what only computes and gives way to it, then the faults
# and, for both to end at about the same time, the store's contract.
computing="tests/sim tests/unit tests/property"
breaking="tests/faults tests/contract"
said=$(mktemp)
(
    ended=0
    # What is told to end passes it on, and waits for the cleaning up.
    trap 'kill "$running" 2>/dev/null || :; wait; exit 143' TERM
    # shellcheck disable=SC2086
    nice -n 10 .venv/bin/python -m pytest -o timeout=600 $computing & running=$!
    wait "$running" || ended=$?
    # shellcheck disable=SC2086
    .venv/bin/python -m pytest $breaking & running=$!
    wait "$running" || ended=$?
    exit "$ended"
) >"$said" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null || :; wait; rm -f "$said"' EXIT
trap 'exit 130' INT TERM

scripts/lint.sh
failed=0
# shellcheck disable=SC2086
.venv/bin/python -m pytest $(printf -- '--ignore=%s ' $computing $breaking) || failed=$?
wait "$beside" || failed=$?
echo "== beside it: $computing $breaking"
cat "$said"
exit "$failed"
