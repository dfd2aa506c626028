#!/bin/sh
# A day on a GPU, in one call: tests, benchmarks, profiles. Everything was built elsewhere: this machine needs an NVIDIA
# driver and the usual tools of Linux, and neither Rust nor a network. What else is there (Python with PyTorch, ncu,
# compute-sanitizer, libraries of CUDA) is found out and used; a stage that misses something says so.
#
#   run.sh [--model NAME] [STAGE...]       all stages if none is named; NAME is the only model of the benchmarks
#
#   facts        the machine: GPU, driver, clocks, tools, libraries
#   warm-up      three tests, so that all code is loaded
#   correctness  the tests of tpgm-cuda, but
#   parity       for the numbers of the published code, with their table
#   candle       the tests of tpgm-candle
#   anchors      what memory and PyTorch can do by themselves
#   benchmarks   side by side with PyTorch and the published code
#   end-to-end   whole training steps
#   ncu          a profile of each of six kernels
#   sanitizers   memcheck, racecheck and synccheck, on small tests
#
# Variables: OUT, the folder for the results (./out); BUDGET, the seconds of the whole call (570); LIMITS, the limits of single
# stages in percent of what is written below (100); PYTHON, an interpreter with PyTorch (the first of the usual ones that has
# it); DEVICE, where whole training steps run (cuda:0); FOLDER, where archives are unpacked (./unpacked, beside this script).
#
# In OUT are results.tar.gz, packed again after each stage, and summary.txt, which is also what this script prints: fewer than
# 12,000 characters. The results of a call before this one become earlier.tar.gz. Exit code: 0 if nothing failed, 1 if something
# did or was cut off, 2 for a wrong argument, 77 without a GPU.
set -u

all="facts warm-up correctness parity candle anchors benchmarks end-to-end ncu sanitizers"
# Model and element type. CUDA graphs of PyTorch keep their memory: the largest model runs without PyTorch, which would not fit
# beside ours.
benchmarks="vit-b-16:f32 resnet-50:f32 vit-b-16:bf16 clip-vit-l-14:bf16 resnet-50:bf16 llama-3.2-1b:bf16 clip-vit-l-14:f32 llama-3.2-1b:f32"
# Kernels, each with a method that launches it.
kernels="measure_f32:adamw+ftp adamw_f32:adamw+ftp project_f32:project-mars blend_f32:ema sgd_f32:sgd+ftp measure_bf16:adamw+ftp"
# All element types between them.
warm_up="device::mixed_types_match_the_cpu suite::half_precision_without_masters_matches_the_oracle device::late_reports_come_with_a_later_call"
golden="device::golden_cases_pass"
sanitized="device::mixed_types_match_the_cpu device::late_reports_come_with_a_later_call suite::projector_matches_the_oracle"
most_printed=11000

model=
wanted=
while [ $# -gt 0 ]; do
    case " $all " in
    *" $1 "*) wanted="$wanted $1" ;;
    *)
        if [ "$1" = --model ] && [ $# -gt 1 ]; then
            model=$2
            shift
        else
            echo "error: unknown stage \`$1\`; there are: $all, and the option --model NAME" >&2
            exit 2
        fi
        ;;
    esac
    shift
done
wanted=${wanted:-$all}
for number in "${BUDGET:-570}" "${LIMITS:-100}"; do
    case "$number" in
    '' | *[!0-9]* | 0)
        echo "error: BUDGET is a number of seconds and LIMITS one of percent, not \`$number\`" >&2
        exit 2
        ;;
    esac
done
budget=${BUDGET:-570}
percent=${LIMITS:-100}
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU' && ! [ -e /dev/nvidia0 ]; then
    echo "no NVIDIA GPU here: \`nvidia-smi -L\` lists none, and there is no /dev/nvidia0" >&2
    exit 77
fi

begun=$(date +%s)
here=$(cd "$(dirname "$0")" && pwd)
folder=${FOLDER:-$here/unpacked}
mkdir -p "$folder" 2>/dev/null && [ -w "$folder" ] || folder=$(mktemp -d) || exit 1
work=$(mktemp -d) && mkdir "$work/results" && results=$work/results || exit 1
mkdir -p "${OUT:-out}" && out=$(cd "${OUT:-out}" && pwd) || exit 1
# Those of the call before stay.
[ ! -e "$out/results.tar.gz" ] || mv "$out/results.tar.gz" "$out/earlier.tar.gz"
rm -f "$out/summary.txt"
failed=0
printed=0
running=
after=

left() { echo $((budget - $(date +%s) + begun)); }

# One line of the summary, on standard output and in the file.
say() {
    line=$(printf '%s' "$*" | tr -d '\r' | cut -c 1-170)
    printed=$((printed + ${#line} + 1))
    if [ "$printed" -le "$most_printed" ]; then
        printf '%s\n' "$line" | tee -a "$out/summary.txt"
    elif [ "${full:-0}" = 0 ]; then
        full=1
        printf '%s\n' "(more is in results.tar.gz)" | tee -a "$out/summary.txt"
    fi
}

# Packs what there is. The archive is whole at any moment.
pack() {
    cp "$out/summary.txt" "$results/summary.txt" 2>/dev/null
    tar -C "$work" -czf "$out/results.part" results && mv "$out/results.part" "$out/results.tar.gz"
}

# What a stage came to: its name, verdict (ok, partly, FAILED, cut, skipped), seconds and a reason.
note() {
    printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$results/stages.tsv"
    case "$2" in FAILED | cut) failed=1 ;; esac
    say "$(printf '%4ds  %-7s %s (%s s) %s' $(($(date +%s) - begun)) "$2" "$1" "$3" "$4")"
}

skip() {
    note "$1" skipped 0 "$2"
    pack
}

# Seconds that the stages still to come must have, of a budget of 570.
kept() {
    sum=0
    for stage in $after; do
        case $stage in
        benchmarks) sum=$((sum + 120)) ;;
        end-to-end) sum=$((sum + 30)) ;;
        ncu | sanitizers) sum=$((sum + 40)) ;;
        esac
    done
    echo $((sum * budget / 570))
}

# limit SECONDS: the limit of a command, in $limit: no more than what is left, less what is kept and some for packing.
limit() {
    limit=$(($1 * percent / 100))
    most=$(($(left) - $(kept) - 6))
    [ "$limit" -le "$most" ] || limit=$most
    [ "$limit" -ge 4 ]
}

# The first lines of a log that say how it ended.
reason() {
    grep -hE '^(test result|skipped|error|Error|ERROR|==ERROR|========= (ERROR|RACECHECK) SUMMARY|[A-Za-z.]*Error:)|panicked at|error while loading|libcuda stand-in|not found$' "$1" |
        sort -u | head -n 3 | cut -c 1-90 | tr '\n\t' '; '
}

# Long logs lose their middle.
shorten() {
    if [ "$(wc -c <"$1")" -gt 3000000 ]; then
        { head -c 1500000 "$1"; printf '\n... cut here ...\n'; tail -c 1000000 "$1"; } >"$1.short" && mv "$1.short" "$1"
    fi
}

# attempt NAME COMMAND...: runs it for at most $limit seconds, with a log of its own.
attempt() {
    name=$1
    shift
    start=$(date +%s)
    timeout -k 5 "$limit" "$@" >"$results/$name.log" 2>&1 &
    running="$running $!"
    wait $!
    code=$?
    verdict=ok
    detail=$(reason "$results/$name.log")
    case $code in
    # Tests that miss something say so, and pass.
    0) if grep -q '^skipped' "$results/$name.log"; then verdict=partly; fi ;;
    124 | 137) verdict=cut detail="at its limit of $limit s; $detail" ;;
    *) verdict=FAILED detail="code $code; $detail" ;;
    esac
    shorten "$results/$name.log"
    note "$name" "$verdict" $(($(date +%s) - start)) "$detail"
}

# run NAME SECONDS COMMAND...: one command of a stage.
run() {
    name=$1
    seconds=$2
    shift 2
    if ! limit "$seconds"; then
        note "$name" skipped 0 "no time is left"
    else
        attempt "$name" "$@"
    fi
    running=
    pack
}

# A call that is cut off from outside.
# shellcheck disable=SC2317 # the trap calls it
cut_off() {
    trap '' TERM INT HUP
    for pid in $running; do kill "$pid" 2>/dev/null; done
    note "${current:-run.sh}" cut 0 "the whole call was stopped from outside"
    pack
    exit 1
}
trap cut_off TERM INT HUP

# unpack ARCHIVE: once; the mark is what the archive ends with.
unpack() {
    [ -e "$folder/$1/whole" ] && return 0
    rm -rf "${folder:?}/$1" && mkdir -p "$folder/$1" || return 1
    case $1 in
    core) tar -C "$folder/core" -xzf "$here/core.tar.gz" || return 1 ;;
    candle)
        if command -v xz >/dev/null; then
            xz -dc "$here/candle.tar.xz"
        else
            python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$here/candle.tar.xz"
        fi | tar -C "$folder/candle" -xf - || return 1
        ;;
    esac
    : >"$folder/$1/whole"
}

echo unknown >"$results/COMMIT"
if ! unpack core 2>"$results/unpack.log"; then
    note unpack FAILED 0 "core.tar.gz: $(head -n 1 "$results/unpack.log")"
    pack
    exit 1
fi
core=$folder/core
candle=$folder/candle
TPGM_COMMIT=$(cat "$core/COMMIT")
TPGM_GOLDEN=$core/golden
# Tests that find no GPU fail.
TPGM_REQUIRE_GPU=1
TPGM_TEST_DEVICE=${TPGM_TEST_DEVICE:-cuda}
# What the driver compiles is kept for a second call.
CUDA_CACHE_PATH=$folder/jit
CUDA_CACHE_MAXSIZE=4294967296
export TPGM_COMMIT TPGM_GOLDEN TPGM_REQUIRE_GPU TPGM_TEST_DEVICE CUDA_CACHE_PATH CUDA_CACHE_MAXSIZE
printf '%s\n' "$TPGM_COMMIT" >"$results/COMMIT"
# Rows of a trial without a GPU are worth nothing.
[ -z "${TPGM_DRY_RUN:-}" ] || : >"$results/DRY_RUN"
PATH=$PATH:/usr/local/cuda/bin
export PATH
say "commit $TPGM_COMMIT; stages: $wanted; $budget s"

# Python with PyTorch: which one, and does it see the GPU? Importing it takes seconds, so it is asked meanwhile.
python=
for candidate in "${PYTHON:-}" python3 /opt/conda/bin/python3 /opt/venv/bin/python3 /usr/local/bin/python3 /usr/bin/python3 python; do
    if [ -n "$candidate" ] && timeout -k 1 20 "$candidate" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -n "$python" ]; then
    timeout -k 5 100 "$python" -c 'import torch; print(torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name(0))' \
        >"$results/torch.log" 2>&1 &
    asked=$!
fi
# Sets $torch to its version, or to nothing and $why to the reason.
torch() {
    [ -z "${torch_known:-}" ] || return 0
    torch_known=1
    torch=
    why="no Python with PyTorch"
    [ -n "$python" ] || return 0
    wait "$asked"
    torch=$(tail -n 1 "$results/torch.log" | grep -E '^[0-9]+\.[0-9]')
    why="PyTorch could not be imported: $(tail -n 1 "$results/torch.log")"
    case $torch in *False) why="PyTorch $torch: it sees no GPU" torch= ;; esac
}

# The programs with candle are linked with libraries of CUDA: those of PyTorch come first, which a child with PyTorch gets too.
libraries=$(
    {
        if [ -n "$python" ]; then
            timeout -k 1 20 "$python" - <<'PY'
import glob, importlib.util, os
site = os.path.dirname(os.path.dirname(importlib.util.find_spec("torch").origin))
found = glob.glob(site + "/nvidia/**/lib/lib*.so*", recursive=True)
print("\n".join(sorted({os.path.dirname(path) for path in found})))
PY
        fi
        for path in /usr/local/cuda/lib64 /usr/local/cuda-1*/lib64 /usr/local/cuda-1*/targets/x86_64-linux/lib; do
            [ -d "$path" ] && echo "$path"
        done
    } 2>/dev/null | tr '\n' ':'
)
with_libraries="env LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:-}"

# Unpacks the programs with candle; $why says what they miss.
candle_is_there() {
    if ! [ -e "$here/candle.tar.xz" ]; then
        why="candle was left out of this folder"
        return 1
    fi
    if ! unpack candle 2>"$results/unpack-candle.log"; then
        why="candle.tar.xz: $(head -n 1 "$results/unpack-candle.log")"
        return 1
    fi
    missing=$($with_libraries ldd "$candle/bin/$1" 2>/dev/null | sed -n 's/^[[:space:]]*\([^ ]*\) => not found.*/\1/p' | tr '\n' ' ')
    why="no ${missing}here, which come with CUDA 13 or PyTorch"
    [ -z "$missing" ]
}

facts() {
    # Its libraries are looked at too.
    candle_is_there test-tpgm-candle || say "       candle: $why"
    # shellcheck disable=SC2016 # the inner shell expands these
    run facts 40 sh -c '
        try() { echo; echo "== $*"; timeout -k 1 8 "$@" 2>&1; }
        try uname -a; try nproc; try free -g; try df -h .; try cat /proc/driver/nvidia/version
        try nvidia-smi
        try nvidia-smi -q -d CLOCK,PERFORMANCE,ECC,MEMORY,POWER,TEMPERATURE
        for tool in nvcc ncu nsys compute-sanitizer xz zstd; do try command -v $tool; done
        try nvcc --version; try ncu --version; try compute-sanitizer --version
        echo; echo "== python: $1"; echo "== libraries: $2"
        for program in "$3"/core/bin/* "$3"/candle/bin/*; do try env LD_LIBRARY_PATH="$2${LD_LIBRARY_PATH:-}" ldd "$program"; done
        true' facts "$python" "$libraries" "$folder"
    say "$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory --format=csv,noheader 2>/dev/null | head -n 1)"
}

warm_up() {
    # shellcheck disable=SC2086 # several names
    run warm-up 60 "$core/bin/test-tpgm-cuda" --exact $warm_up --nocapture
}

correctness() {
    run correctness 90 "$core/bin/test-tpgm-cuda" --skip "$golden" --test-threads 8 --show-output
    failures correctness
}

parity() {
    run parity 45 "$core/bin/test-tpgm-cuda" --exact "$golden" --nocapture
}

candle() {
    if ! candle_is_there test-tpgm-candle; then
        skip candle "$why"
        return
    fi
    # shellcheck disable=SC2086 # a command
    run candle 75 $with_libraries "$candle/bin/test-tpgm-candle" --test-threads 4 --show-output
    failures candle
}

# Names of the tests that failed.
failures() {
    grep -h '^test .*FAILED' "$results/$1.log" 2>/dev/null | head -n 12 | while read -r line; do echo "       $line"; done >"$work/failures"
    while read -r line; do say "       $line"; done <"$work/failures"
}

anchors() {
    torch
    if [ -z "$torch" ]; then
        skip anchors "$why"
        return
    fi
    run anchors 70 "$python" "$core/peers/torch_anchors.py" --shapes "$core/peers/shapes.json" --out "$results/rows.jsonl"
    show anchors '^[a-z]' 24
}

# show NAME PATTERN COUNT: lines of a log, for the summary.
show() {
    grep -hE "$2" "$results/$1.log" 2>/dev/null | head -n "$3" >"$work/shown"
    while read -r line; do say "       $line"; done <"$work/shown"
}

benchmarks() {
    torch
    [ -n "$torch" ] || say "       without PyTorch: $why"
    list=$benchmarks
    [ -z "$model" ] || list="$model:f32 $model:bf16"
    for benchmark in $list; do
        net=${benchmark%:*}
        dtype=${benchmark#*:}
        set -- --backend cuda --model "$net" --dtype "$dtype" --parts
        seconds=50
        case $net in
        tiny) set -- "$@" --no-rows --rounds 1 --method adamw --method adamw+ftp --method project-mars ;;
        llama-*) set -- "$@" --method adamw-trusted --method adamw --method adamw+ftp --method project-mars --method project-l2 ;;
        *)
            if [ -n "$torch" ]; then
                set -- "$@" --vs torch --python "$python"
                [ ! -d "$core/published/FTP" ] || set -- "$@" --ftp "$core/published/FTP"
                [ ! -d "$core/published/TPGM" ] || set -- "$@" --tpgm "$core/published/TPGM"
            fi
            ;;
        esac
        [ "$net" = tiny ] || set -- "$@" --out "$results/rows.jsonl"
        # The program ends by itself, with the rows it has, before it is ended.
        if limit "$seconds" && [ "$limit" -gt 15 ]; then
            set -- "$@" --time-limit $((limit - 10))
        fi
        run "bench-$net-$dtype" "$seconds" "$core/bin/side_by_side" "$@"
        show "bench-$net-$dtype" '^(method +who|(adamw|adamw-trusted|adamw\+ftp|project-mars|project-l2) +(ours|torch_adamw_fused_graph)) ' 7
    done
}

end_to_end() {
    if ! candle_is_there end_to_end; then
        skip end-to-end "$why"
        return
    fi
    torch
    set -- --device "${DEVICE:-cuda:0}"
    if [ "$model" = tiny ]; then
        set -- "$@" --network mini --rounds 1 --no-rows
    else
        set -- "$@" --network minilm --network mini --out "$results/rows.jsonl"
        if [ -n "$torch" ]; then
            set -- "$@" --vs torch --python "$python"
            [ ! -d "$core/published/FTP" ] || set -- "$@" --ftp "$core/published/FTP"
            [ ! -d "$core/published/TPGM" ] || set -- "$@" --tpgm "$core/published/TPGM"
        fi
    fi
    # shellcheck disable=SC2086 # a command
    run end-to-end 50 $with_libraries "$candle/bin/end_to_end" "$@"
    show end-to-end '^train [a-z+]+ +(ours|torch|published_[a-z]+) ' 8
}

ncu_stage() {
    if ! command -v ncu >/dev/null; then
        skip ncu "no ncu here, which comes with the CUDA toolkit"
        return
    fi
    for kernel in $kernels; do
        method=${kernel#*:}
        kernel=${kernel%:*}
        # The third launch: the first ones are colder than a step of a training. The base clock would not be that of the
        # benchmarks.
        run "ncu-$kernel" 20 ncu --clock-control none --target-processes application-only --csv --page raw \
            --section SpeedOfLight --section MemoryWorkloadAnalysis --section Occupancy --section LaunchStats \
            --section WarpStateStats --section SchedulerStats --kernel-name "$kernel" --launch-skip 2 --launch-count 1 \
            "$core/bin/side_by_side" --backend cuda --model "${model:-vit-b-16}" --dtype "${kernel##*_}" --method "$method" \
            --rounds 1 --no-rows
    done
}

sanitizers() {
    if ! command -v compute-sanitizer >/dev/null; then
        skip sanitizers "no compute-sanitizer here, which comes with the CUDA toolkit"
        return
    fi
    if ! limit 90; then
        skip sanitizers "no time is left"
        return
    fi
    # At once: each is slow by itself, and the tests are small.
    workers=
    for tool in memcheck racecheck synccheck; do
        # shellcheck disable=SC2086 # several names
        timeout -k 5 "$limit" compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 "$core/bin/test-tpgm-cuda" \
            --exact $sanitized --test-threads 1 >"$results/sanitizer-$tool.log" 2>&1 &
        workers="$workers $tool:$!"
        running="$running $!"
    done
    start=$(date +%s)
    for worker in $workers; do
        wait "${worker#*:}"
        code=$?
        name=sanitizer-${worker%:*}
        detail=$(reason "$results/$name.log")
        shorten "$results/$name.log"
        case $code in
        0) note "$name" ok $(($(date +%s) - start)) "$detail" ;;
        124 | 137) note "$name" cut $(($(date +%s) - start)) "at its limit of $limit s; $detail" ;;
        *) note "$name" FAILED $(($(date +%s) - start)) "code $code; $detail" ;;
        esac
        pack
    done
    running=
}

after=$wanted
for current in $wanted; do
    # The stages behind this one.
    after=$(printf '%s' "$after " | sed "s/^ *$current //")
    case $current in
    facts) facts ;;
    warm-up) warm_up ;;
    correctness) correctness ;;
    parity) parity ;;
    candle) candle ;;
    anchors) anchors ;;
    benchmarks) benchmarks ;;
    end-to-end) end_to_end ;;
    ncu) ncu_stage ;;
    sanitizers) sanitizers ;;
    esac
done
say "$(cut -f 2 "$results/stages.tsv" | sort | uniq -c | awk '{ printf "%s%d %s", (NR > 1 ? ", " : ""), $1, $2 }') after $(($(date +%s) - begun)) s; results in $out"
pack
rm -rf "$work"
exit $failed
