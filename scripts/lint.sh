#!/bin/sh
# Every static check, all of them even if one fails, so that one run shows everything.
set -u
cd "$(dirname "$0")/.."
bin=.venv/bin
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=""

check() {  # check NAME COMMAND...
    name=$1; shift
    if "$@" >"$scratch/output" 2>&1; then
        echo "ok      $name"
    else
        echo "FAILED  $name"
        sed 's/^/        /' "$scratch/output"
        failed="$failed $name"
    fi
}

# buf would fetch googleapis from its registry; given an image made by protoc it needs no network.
proto_lint() {
    googleapis=$($bin/python -c 'import google.api, pathlib; print(pathlib.Path(list(google.api.__path__)[0]).parents[1])')
    # shellcheck disable=SC2046  # file names without spaces
    $bin/python -m grpc_tools.protoc --include_imports --include_source_info --descriptor_set_out="$scratch/image.binpb" \
        -Iproto -I"$googleapis" $(find proto -name '*.proto' | sort) &&
        $bin/buf lint "$scratch/image.binpb" --config buf.yaml
}

check "ruff check" $bin/ruff check .
check "ruff format" $bin/ruff format --check .
check "mypy" $bin/mypy
check "import rules" $bin/lint-imports
check "buf lint" proto_lint
[ -z "$failed" ] || { echo "lint failed:$failed" >&2; exit 1; }
