#!/usr/bin/env bash
# Runs all tests of the bundle and checks its fixtures, on the GPU if there is one, else on the emulated device.
# Needs neither Rust nor network.
#
#   FP8_MOE_DEVICE   auto (default), cuda:N or sim
#   OUT              folder for logs and summary.json (default ./out)
#   TEST_TIMEOUT     seconds for one test executable (default 300)
#   TEST_THREADS     tests at a time in one executable (default 4)
#   SANITIZE         1: also run each test under compute-sanitizer's memcheck and racecheck, with one case per property
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-$PWD/out}
limit=${TEST_TIMEOUT:-300}
export FP8_MOE_DEVICE=${FP8_MOE_DEVICE:-auto}
export FP8_MOE_FIXTURES=$here/fixtures
export FP8_MOE_BIN=$here/fp8-moe
mkdir -p "$out/logs" || exit 1
out=$(cd "$out" && pwd)
unpacked=$(mktemp -d) || exit 1
trap 'rm -rf "$unpacked"' EXIT
tar -xJf "$here/tests.tar.xz" -C "$unpacked" || exit 1

names=() results=() seconds=() remarks=()

# check NAME COMMAND..: runs it with its output in a log; notes result, time and the last telling line.
check() {
    local name=$1 log=$out/logs/$1.log start=$EPOCHREALTIME code result
    shift
    timeout "$limit" "$@" >"$log" 2>&1
    code=$?
    case $code in
        0) result=ok ;;
        124) result=timeout ;;
        *) result=failed ;;
    esac
    names+=("$name")
    results+=("$result")
    seconds+=("$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }')")
    remarks+=("$(grep -E 'test result|relative L2|^error|panicked|ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1 | tr -d '"\\\t' | cut -c 1-90)")
    if [ "$result" != ok ]; then
        printf -- '---- %s: %s\n' "$name" "$result"
        tail -n 25 "$log"
    fi
}

"$here/fp8-moe" info >"$out/logs/info.log" 2>&1
sed -n '1,12p' "$out/logs/info.log"

cd "$here" || exit 1
for test in "$unpacked"/tests/*; do
    check "$(basename "$test")" "$test" --test-threads "${TEST_THREADS:-4}"
done
if [ "${SANITIZE:-0}" = 1 ]; then
    sanitizer=$unpacked/sanitizer/compute-sanitizer
    [ -x "$sanitizer" ] || sanitizer=compute-sanitizer
    for tool in memcheck racecheck; do
        for test in "$unpacked"/tests/*; do
            FP8_MOE_CASES=1 check "${tool}_$(basename "$test")" \
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

printf '\n%-34s %-8s %9s  %s\n' "on $FP8_MOE_DEVICE" result seconds remark
for i in "${!names[@]}"; do
    printf '%-34s %-8s %9s  %s\n' "${names[i]}" "${results[i]}" "${seconds[i]}" "${remarks[i]}"
done
printf '%d of %d failed\n' "$bad" "${#names[@]}"
[ "$bad" -eq 0 ]
