#!/usr/bin/env bash
# Runs all tests of the bundle and checks its fixtures on a GPU. Needs neither Rust nor network. That is
# everything: grids at full size, 200 cases for each property, and what `cargo test` leaves out. A failure
# stops nothing; the table comes last, and with a failure the status is 1.
#
#   FP8_MOE_DEVICE   auto (default: a GPU, or every line fails), cuda, cuda:N, or sim for the emulated device
#   FP8_MOE_GRID     small or full; FP8_MOE_CASES: cases for each property
#   OUT              folder for summary.json, logs.tar.gz, and the cases of properties that failed (default ./out)
#   ONLY             run only lines of the table that match this expression, e.g. 'grid::layer|check'
#   JOBS             lines of the table at a time (default 4)
#   TEST_THREADS     tests at a time in each (default 4)
#   TEST_TIMEOUT     seconds for one line of the table (default 300)
#   SANITIZE         1: also run each test under compute-sanitizer's memcheck and racecheck, with one case
#                    for each property and small grids
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-$PWD/out}
limit=${TEST_TIMEOUT:-300}
only=${ONLY:-.}
export FP8_MOE_DEVICE=${FP8_MOE_DEVICE:-auto}
export FP8_MOE_FIXTURES=$here/fixtures
export FP8_MOE_BIN=$here/fp8-moe
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
# The programs, a log for each line of the table, and what became of it.
work=$(mktemp -d) || exit 1
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
mkdir "$work/logs" "$work/lines" || exit 1
tar -xJf "$here/tests.tar.xz" -C "$work" || exit 1

names=()
telling='relative L2|^error|panicked|ERROR SUMMARY|RACECHECK SUMMARY'

# elapsed START: seconds since then.
elapsed() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }

# check NAME COMMAND..: a line of the table, in the background: waits until there are fewer than $JOBS.
check() {
    [[ $1 =~ $only ]] || return 0
    while [ "$(jobs -pr | wc -l)" -ge "${JOBS:-4}" ]; do wait -n; done
    line "${#names[@]}" "$@" &
    names+=("$1")
}

# line NUMBER NAME COMMAND..: runs it with its output in a log; notes result, time and a remark.
line() {
    local number=$1 name=$2 log=$work/logs/${2//:/_}.log start=$EPOCHREALTIME code result remark seconds
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1
    code=$?
    case $code in
        0) result=ok ;;
        124 | 137) result=timeout ;;
        *) result=failed ;;
    esac
    seconds=$(elapsed "$start")
    # How many tests passed, or the last telling line; and which tests said that they skipped something.
    remark=$(sed -n 's/^test result: [a-zA-Z]*\. \(.* passed; .* failed; .* ignored\);.*/\1/p' "$log" | tail -n 1)
    [ -n "$remark" ] || remark=$(grep -E "$telling" "$log" | tail -n 1)
    if grep -q '^skipped' "$log"; then
        remark="$remark; $(grep -c '^skipped' "$log") skips: $(grep -m 1 '^skipped' "$log")"
    fi
    remark=$(tr -d '"\\\t' <<<"$remark" | cut -c 1-110)
    printf '%s\t%s\t%s\n' "$result" "$seconds" "$remark" >"$work/lines/$number"
    {
        printf '%-34s %-8s %8s s\n' "$name" "$result" "$seconds"
        if [ "$result" != ok ]; then
            printf -- '---- %s: %s\n' "$name" "$result"
            grep -E '^test .*FAILED|panicked at' -A 3 "$log" | head -n 40
            tail -n 12 "$log"
        fi
        if [ "$result" = timeout ]; then
            # What had begun, or was still to come: what the list has and the log has not.
            echo 'not finished:'
            "$@" --list 2>/dev/null | sed -n 's/: test$//p' | while read -r test; do
                grep -q "^test $test \.\.\." "$log" || echo "    $test"
            done | head -n 20
        fi
    } >"$work/lines/$number.said"
    # In one piece, whoever else is printing.
    cat "$work/lines/$number.said"
}

# check_tests NAME PROGRAM: a line for each module of a folder of tests, so that a fault, after which a process
# can do nothing more on a GPU, ends one module; a line for any other program.
check_tests() {
    local name=$1 program=$2 module modules= threads=${TEST_THREADS:-4} options=(--show-output)
    [ "$emulated" = 1 ] || options+=(--include-ignored)
    case $name in
        grid | parallel | properties | unsound)
            modules=$("$program" --list 2>/dev/null | sed -n 's/::.*: test$//p' | sort -u)
            ;;
    esac
    for module in $modules; do
        # The filter finds `permute::` in `unpermute::` as well.
        local skips=() at_a_time=$threads
        for other in $modules; do
            case $other in "$module") ;; *"$module") skips+=(--skip "$other::") ;; esac
        done
        # All of them take all GPUs.
        [ "$name::$module" != parallel::gpus ] || at_a_time=1
        check "$name::$module" "$program" "$module::" "${skips[@]}" "${options[@]}" --test-threads "$at_a_time"
    done
    if [ -z "$modules" ]; then
        check "$name" "$program" "${options[@]}" --test-threads "$threads"
    elif "$program" --list 2>/dev/null | grep -q '^[^:]*: test$'; then
        # Those in no module.
        local all=()
        for module in $modules; do all+=(--skip "$module::"); done
        check "$name" "$program" "${all[@]}" "${options[@]}" --test-threads "$threads"
    fi
}

started=$EPOCHREALTIME
"$here/fp8-moe" info --device "$FP8_MOE_DEVICE" >"$work/logs/info.log" 2>&1
sed -n '1,4p' "$work/logs/info.log"
grep -q 'emulated device' "$work/logs/info.log" && emulated=1 || emulated=0

cd "$here" || exit 1
# The longest first.
for name in grid properties; do
    [ ! -x "$work/tests/$name" ] || check_tests "$name" "$work/tests/$name"
done
for test in "$work"/tests/*; do
    case ${test##*/} in grid | properties) ;; *) check_tests "${test##*/}" "$test" ;; esac
done
if [ "${SANITIZE:-0}" = 1 ]; then
    sanitizer=$work/sanitizer/compute-sanitizer
    [ -x "$sanitizer" ] || sanitizer=compute-sanitizer
    for tool in memcheck racecheck; do
        for test in "$work"/tests/*; do
            FP8_MOE_CASES=1 FP8_MOE_GRID=small check "${tool}_${test##*/}" \
                "$sanitizer" --tool "$tool" --error-exitcode 99 "$test" --test-threads 1
        done
    done
fi
for fixture in fixtures/*.safetensors; do
    check "check_$(basename "$fixture" .safetensors)" ./fp8-moe check "$fixture" --device "$FP8_MOE_DEVICE"
done
wait

results=() seconds=() remarks=() bad=0
for number in "${!names[@]}"; do
    IFS=$'\t' read -r result took remark <"$work/lines/$number" || result=lost took=0 remark=
    results+=("$result") seconds+=("$took") remarks+=("$remark")
    [ "$result" = ok ] || bad=$((bad + 1))
done
[ "${#names[@]}" -gt 0 ] || { echo "no line matches '$only'"; bad=1; }
{
    printf '{\n  "device": "%s",\n  "results": [\n' "$FP8_MOE_DEVICE"
    for i in "${!names[@]}"; do
        comma=,
        [ "$i" -eq $((${#names[@]} - 1)) ] && comma=
        printf '    {"name": "%s", "result": "%s", "seconds": %s, "remark": "%s"}%s\n' \
            "${names[i]}" "${results[i]}" "${seconds[i]}" "${remarks[i]}" "$comma"
    done
    printf '  ],\n  "failed": %d\n}\n' "$bad"
} >"$out/summary.json"
tar -czf "$out/logs.tar.gz" -C "$work" logs
[ ! -d tests/regressions ] || tar -czf "$out/regressions.tar.gz" tests/regressions

printf '\n%-34s %-8s %8s  %s\n' "on $FP8_MOE_DEVICE" result seconds remark
for i in "${!names[@]}"; do
    printf '%-34s %-8s %8s  %s\n' "${names[i]}" "${results[i]}" "${seconds[i]}" "${remarks[i]}"
done
printf '%d of %d failed, in %s s\n' "$bad" "${#names[@]}" "$(elapsed "$started")"
[ "$bad" -eq 0 ]
