#!/bin/sh
# Runs tests and benchmarks that were built elsewhere on a machine with an NVIDIA GPU. Needs its driver, no CUDA toolkit and
# no Rust.
#
#   run.sh [tests] [sanitizers] [benchmarks]     (all three if none is named)
#
# Logs, and the rows of the benchmarks as JSON lines, go to the folder $OUT, ./out if that is not set. $BENCH_OPTIONS is
# handed to the benchmarks. Exit code: 0 if all passed, 1 if not, 2 for a wrong argument, 77 if there is no GPU.
set -u
here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || set -- tests sanitizers benchmarks
for part in "$@"; do
    case "$part" in
    tests | sanitizers | benchmarks) ;;
    *)
        echo "error: unknown part \`$part\`; there are: tests sanitizers benchmarks" >&2
        exit 2
        ;;
    esac
done
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU' && ! [ -e /dev/nvidia0 ]; then
    echo "no NVIDIA GPU here: \`nvidia-smi -L\` lists none, and there is no /dev/nvidia0" >&2
    exit 77
fi
mkdir -p "${OUT:-out}" && out=$(cd "${OUT:-out}" && pwd) || exit 1
TPGM_COMMIT=$(cat "$here/COMMIT")
TPGM_GOLDEN=$here/golden
export TPGM_COMMIT TPGM_GOLDEN
nvidia-smi 2>/dev/null | tee "$out/gpu.txt"

failed=0
skipped=0
# Runs a command with its output in a log; shows the end of the log if it fails.
run() {
    name=$1
    shift
    printf '%s ... ' "$name"
    if "$@" >"$out/$name.log" 2>&1; then
        echo "ok"
    else
        echo "FAILED ($?), see $out/$name.log"
        tail -n 30 "$out/$name.log"
        failed=1
    fi
    # Tests that did not find what they need say so, and pass.
    if grep '^skipped' "$out/$name.log" | sort -u | grep .; then
        skipped=1
    fi
}

tests() {
    for binary in "$here"/bin/test-*; do
        run "$(basename "$binary")" "$binary" --show-output
    done
}

sanitizers() {
    PATH=$PATH:/usr/local/cuda/bin
    if ! command -v compute-sanitizer >/dev/null; then
        echo "skipped: no compute-sanitizer (it comes with the CUDA toolkit)"
        skipped=1
        return
    fi
    for tool in memcheck racecheck synccheck; do
        # Only the tests that use the GPU: a program that never calls CUDA is an error for it.
        run "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$here/bin/test-tpgm-cuda-cuda" --test-threads 1
    done
}

benchmarks() {
    for model in resnet-50 vit-b-16 clip-vit-l-14 llama-3.2-1b; do
        # shellcheck disable=SC2086 # several options
        run "bench-$model" "$here/bin/side_by_side" --backend cuda --model "$model" --out "$out/rows.jsonl" ${BENCH_OPTIONS:-}
        cat "$out/bench-$model.log"
    done
}

for part in "$@"; do
    "$part"
done
case "$failed$skipped" in
00) echo "all passed; results in $out" ;;
01) echo "nothing failed, but parts were skipped: see above; results in $out" ;;
esac
exit $failed
