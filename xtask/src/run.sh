#!/usr/bin/env bash
# Runs all tests of the bundle and checks its fixtures, on the GPU if there is one, else on the emulated
# device. Needs neither Rust nor network. On a GPU that is everything: grids at full size, hundreds of cases
# for each property, and tests that `cargo test` ignores. A failure stops nothing; the table comes last.
#
#   FP8_MOE_DEVICE   auto (default), cuda:N or sim
#   FP8_MOE_GRID     small or full; FP8_MOE_CASES: cases for each property
#   OUT              folder for logs and summary.json (default ./out)
#   ONLY             run only lines of the table that match this expression, e.g. 'grid::layer|check'
#   TEST_TIMEOUT     seconds for one line of the table (default 180)
#   TEST_THREADS     tests at a time (default 4)
#   SANITIZE         1: also run each test under compute-sanitizer's memcheck and racecheck, with one case
#                    for each property and small grids
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-$PWD/out}
limit=${TEST_TIMEOUT:-180}
only=${ONLY:-.}
export FP8_MOE_DEVICE=${FP8_MOE_DEVICE:-auto}
export FP8_MOE_FIXTURES=$here/fixtures
export FP8_MOE_BIN=$here/fp8-moe
mkdir -p "$out/logs" || exit 1
out=$(cd "$out" && pwd)
unpacked=$(mktemp -d) || exit 1
trap 'rm -rf "$unpacked"' EXIT
tar -xJf "$here/tests.tar.xz" -C "$unpacked" || exit 1

names=() results=() seconds=() remarks=()
telling='relative L2|^error|panicked|ERROR SUMMARY|RACECHECK SUMMARY'

# elapsed START: seconds since then.
elapsed() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }

# check NAME COMMAND..: runs it with its output in a log; notes result, time and a remark.
check() {
    local name=$1 log=$out/logs/${1//:/_}.log start=$EPOCHREALTIME code result remark
    [[ $name =~ $only ]] || return 0
    shift
    timeout --kill-after=10 "$limit" "$@" >"$log" 2>&1
    code=$?
    case $code in
        0) result=ok ;;
        124 | 137) result=timeout ;;
        *) result=failed ;;
    esac
    # How many tests passed, or the last telling line; and which tests said that they skipped something.
    remark=$(sed -n 's/^test result: [a-zA-Z]*\. \(.* passed; .* failed; .* ignored\);.*/\1/p' "$log" | tail -n 1)
    [ -n "$remark" ] || remark=$(grep -E "$telling" "$log" | tail -n 1)
    if grep -q '^skipped' "$log"; then
        remark="$remark; $(grep -c '^skipped' "$log") skips: $(grep -m 1 '^skipped' "$log")"
    fi
    names+=("$name")
    results+=("$result")
    seconds+=("$(elapsed "$start")")
    remarks+=("$(tr -d '"\\\t' <<<"$remark" | cut -c 1-110)")
    printf '%-34s %-8s %8s s\n' "$name" "$result" "${seconds[-1]}"
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
}

# check_tests NAME PROGRAM: a line for each module of a folder of tests, so that a fault, after which a process
# can do nothing more on a GPU, ends one module; a line for any other program.
check_tests() {
    local name=$1 program=$2 module modules= options=(--test-threads "${TEST_THREADS:-4}" --show-output)
    [ "$emulated" = 1 ] || options+=(--include-ignored)
    case $name in
        grid | properties | unsound)
            modules=$("$program" --list 2>/dev/null | sed -n 's/::.*: test$//p' | sort -u)
            ;;
    esac
    for module in $modules; do
        # The filter finds `permute::` in `unpermute::` as well.
        local skips=()
        for other in $modules; do
            case $other in "$module") ;; *"$module") skips+=(--skip "$other::") ;; esac
        done
        check "$name::$module" "$program" "$module::" "${skips[@]}" "${options[@]}"
    done
    [ -n "$modules" ] || check "$name" "$program" "${options[@]}"
}

started=$EPOCHREALTIME
"$here/fp8-moe" info --device "$FP8_MOE_DEVICE" >"$out/logs/info.log" 2>&1
sed -n '1,4p' "$out/logs/info.log"
grep -q 'emulated device' "$out/logs/info.log" && emulated=1 || emulated=0

cd "$here" || exit 1
for test in "$unpacked"/tests/*; do
    check_tests "$(basename "$test")" "$test"
done
if [ "${SANITIZE:-0}" = 1 ]; then
    sanitizer=$unpacked/sanitizer/compute-sanitizer
    [ -x "$sanitizer" ] || sanitizer=compute-sanitizer
    for tool in memcheck racecheck; do
        for test in "$unpacked"/tests/*; do
            FP8_MOE_CASES=1 FP8_MOE_GRID=small check "${tool}_$(basename "$test")" \
                "$sanitizer" --tool "$tool" --error-exitcode 99 "$test" --test-threads 1
        done
    done
fi
for fixture in fixtures/*.safetensors; do
    check "check_$(basename "$fixture" .safetensors)" ./fp8-moe check "$fixture" --device "$FP8_MOE_DEVICE"
done

bad=0
for result in "${results[@]}"; do
    [ "$result" = ok ] || bad=$((bad + 1))
done
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

printf '\n%-34s %-8s %8s  %s\n' "on $FP8_MOE_DEVICE" result seconds remark
for i in "${!names[@]}"; do
    printf '%-34s %-8s %8s  %s\n' "${names[i]}" "${results[i]}" "${seconds[i]}" "${remarks[i]}"
done
printf '%d of %d failed, in %s s\n' "$bad" "${#names[@]}" "$(elapsed "$started")"
[ "$bad" -eq 0 ]
