#!/usr/bin/env bash
# A whole PWM on this machine runs one workload: start, apply, states, output, lists, stop. `make demo` calls it
# with everything set up. It touches nothing that was there before: ports, state and profile are its own, and
# all of it is gone afterwards, also after Ctrl-C or an error.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

scratch=$(mktemp -d "${TMPDIR:-/tmp}/pwm-demo-XXXXXX")
export PWM_CONFIG=$scratch/profiles
unset PWM_PROFILE PWM_SERVER PWM_TOKEN
children=()

bold="" dim="" off=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'; fi

finish() {
    local code=$?
    trap - EXIT INT TERM HUP
    # The last one started is stopped first; `pwm up` itself is the first.
    for ((n = ${#children[@]} - 1; n >= 0; n--)); do
        kill "${children[n]}" 2>/dev/null || continue
        wait "${children[n]}" 2>/dev/null || true
    done
    if [ "$code" -ne 0 ] && [ -s "$scratch/up.log" ]; then
        echo "The demo did not come to its end (exit code $code). What pwm up said:" >&2
        cat "$scratch/up.log" >&2
    fi
    rm -rf "$scratch"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

show() {  # show WORD...: prints a command as one would type it, then runs it
    printf '\n%s$ %s%s\n' "$bold" "$*" "$off"
    "$@"
}

started() { grep -q '^Ready' "$scratch/up.log"; }

# Containers of all clusters share the engine's names: a `hello` of another PWM here gets ours out of its way.
group=""
if python -c 'import docker, sys; sys.exit(not docker.from_env().containers.list(
        all=True, ignore_removed=True, filters={"name": "^/pwm[.]users[.]hello[.]"}))'; then
    group=demo-$$
fi

printf '%s$ pwm up%s\n' "$bold" "$off"
pwm up --rm --port 0 >"$scratch/up.log" 2>&1 &
up=$!
children+=("$up")
shown=0
until started; do
    kill -0 "$up" 2>/dev/null || { wait "$up" || exit $?; exit 1; }
    sleep 0.05
    # Its lines as they come, up to the advice for people who stay.
    total=$(grep -c '^PWM\|^  ✓' "$scratch/up.log" || true)
    if [ "$total" -gt "$shown" ]; then
        grep '^PWM\|^  ✓' "$scratch/up.log" | tail -n "+$((shown + 1))"
        shown=$total
    fi
done

printf '\n%s$ cat examples/hello.yaml%s\n%s' "$bold" "$off" "$dim"
grep -v '^#' examples/hello.yaml
printf '%s' "$off"

if [ -n "$group" ]; then
    printf '\n%sAnother PWM on this machine has a workload hello; this one is in the group %s.%s\n' "$dim" "$group" "$off"
    printf 'apiVersion: v1\nkind: Group\nmetadata: {name: %s}\n' "$group" | pwm apply -f - >/dev/null
fi
in_group=(${group:+-g "$group"})
show pwm apply "${in_group[@]}" -f examples/hello.yaml --wait
show pwm logs wk hello -f "${in_group[@]}"
show pwm get wk "${in_group[@]}"
show pwm get nodes
show pwm events wk hello "${in_group[@]}"

printf '\n%s(stopping)%s\n' "$dim" "$off"
kill "$up"
wait "$up" || true
children=()
printf 'That was PWM. %smake up%s starts one that stays; %spwm top%s shows it live.\n' "$bold" "$off" "$bold" "$off"
