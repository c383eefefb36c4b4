#!/usr/bin/env bash
# All checks and measurements that need a GPU, in one call of under ten minutes; results into the folder $1.
# Each line has its own limit in seconds, and none runs past GPU_SECONDS: what comes last gets what is left.
# GPU_PARTS="base decode multi30k" asks for some of the parts. Those with text need $SEQ2SEQ_SHARED_DATA.
# GPU_SMOKE=1 runs every line at reduced size, on whatever device there is, to see that the script itself works.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-build/gpu}")
rm -rf "$out/logs" "$out"/tests*.log
mkdir -p "$out/logs"
export GOMP_SPINCOUNT=10000 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
total=${GPU_SECONDS:-580}
minutes=${GPU_MULTI30K_MINUTES:-2.5}
small=()
rounds=5
train=(--batch-tokens 25000 --formats bfloat16)
few=(--updates 4 --warm 36 --seconds 100)
decode=(--device cuda)
if [ -n "${GPU_SMOKE:-}" ]; then
  total=${GPU_SECONDS:-7200}
  small=(trainer.max_steps=4 trainer.validate_every=4 trainer.save_every=2 search.max_length_offset=3)
  rounds=1
  train=(--set model.d_model=64 model.encoder.d_ff=128 model.decoder.d_ff=128 --vocab-size 500 --batch-tokens 500)
  few=()
  decode=()
fi
parts="tests base big"
[ -z "${SEQ2SEQ_SHARED_DATA:-}" ] || parts+=" multi30k decode ende"
for part in ${GPU_PARTS:-}; do
  [[ " $parts " == *" $part "* ]] || { echo "GPU_PARTS: $part is none of: $parts" >&2; exit 2; }
done
parts=${GPU_PARTS:-$parts}
[[ " $parts " != *" decode "* || " $parts " == *" multi30k "* ]] || { echo "decode needs multi30k" >&2; exit 2; }
failed=0
wants() {
  [[ " $parts " == *" $1 "* ]]
}
# step SECONDS COMMAND…
step() {
  local limit=$1 left=$((total - SECONDS - 10))
  shift
  [ -z "${GPU_SMOKE:-}" ] || limit=$total
  [ "$limit" -le "$left" ] || limit=$left
  echo "== ${SECONDS} s: $*" >&2
  if [ "$limit" -lt 10 ]; then
    echo "== left out: the time is up" >&2
    return 1
  fi
  timeout -k 10 "$limit" "$@" || { echo "== failed ($?; limit $limit s): $*" >&2; return 1; }
}
# Our commands from this checkout; `commands PREPARE`: to prepare the data alone.
commands() {
  mkdir -p "$out/runs/bin"
  for command in train evaluate; do
    printf '#!/bin/sh\nexec python3 -m seq2seq.cli.%s "$@"\n' "$command" >"$out/runs/bin/seq2seq-$command"
  done
  if [ -n "${1:-}" ]; then
    printf '#!/bin/sh\nexec python3 -m seq2seq.cli.prepare "$@"\n' >"$out/runs/bin/seq2seq-train"
    printf '#!/bin/sh\n' >"$out/runs/bin/seq2seq-evaluate"
  fi
  chmod +x "$out"/runs/bin/*
}
# The base model on eight noisy corpora.
ende() {
  local of_model=(model=base tokenizer.vocab_size=16000 data.batch_tokens=25000 model.dropout=0.2)
  [ -z "${GPU_SMOKE:-}" ] || of_model=(model=tiny data.batch_tokens=2000)
  RUN_DIR=$out/runs/ende PATH=$out/runs/bin:$PATH bash recipes/files/ende.sh "${of_model[@]}" trainer.save_every=500 "$@"
}
export -f ende
export out
# First what measures no speed, all at once; the compiler keeps what it makes for the benchmarks after it.
jobs=()
if wants tests; then
  kernels=$(grep -rl 'tests.kernels import' tests --include='*.py')
  parallel=()
  ! python3 -c 'import xdist' 2>/dev/null || parallel=(-n 4)
  check() {
    step 150 python3 -m pytest ${parallel[@]+"${parallel[@]}"} "${@:2}" >"$out/tests-$1.log" 2>&1
  }
  check kernels $kernels tests/ops/test_linear.py & jobs+=($!)
  for file in $(grep -rl 'mark.gpu' tests --include='*.py' | grep -vxF "$kernels"); do
    name=${file#tests/} name=${name//\//-}
    check "${name%.py}" "$file" & jobs+=($!)
  done
fi
for model in base big; do
  wants "$model" || continue
  { step 120 env -u SEQ2SEQ_SHARED_DATA python3 tools/bench_train.py --model "$model" "${train[@]}" --rounds 1 --peers \
      >/dev/null 2>"$out/logs/compile-$model"; } & jobs+=($!)
done
if wants multi30k; then
  data=$SEQ2SEQ_SHARED_DATA/multi30k
  run=$out/runs/multi30k_en_de_gpu
  { step 250 python3 -m seq2seq.cli.train +recipe=multi30k_en_de_gpu "run_dir=$run" "trainer.max_minutes=$minutes" \
      "data.train.source=$data/train.en" "data.train.target=$data/train.de" \
      "data.valid.source=$data/valid.en" "data.valid.target=$data/valid.de" \
      "data.test.source=$data/test_2016.en" "data.test.target=$data/test_2016.de" ${small[@]+"${small[@]}"} \
      2>"$out/logs/multi30k"; } & jobs+=($!)
fi
if wants ende; then
  commands PREPARE
  { step 120 bash -c ende >"$out/logs/ende-data" 2>&1; } & jobs+=($!)
fi
for job in ${jobs[@]+"${jobs[@]}"}; do
  wait "$job" || failed=1
done
tail -n 8 "$out"/tests*.log "$out"/logs/* 2>/dev/null

bench_train() {
  local model=$1
  shift
  wants "$model" || return 0
  step 180 env -u SEQ2SEQ_SHARED_DATA python3 tools/bench_train.py --model "$model" "${train[@]}" ${few[@]+"${few[@]}"} \
    --rounds "$rounds" --output "$out/bench-train-$model.json" --peers "$@" >/dev/null || failed=1
}
bench_train base nn.Transformer "Marian, sdpa"
bench_train big "Marian, sdpa"
if wants multi30k; then
  step 25 python3 -m seq2seq.cli.evaluate --model "$run/model" >"$out/scores.json" || failed=1
fi
if wants decode; then
  contestants=("ours bfloat16")
  ! python3 -c 'import transformers' 2>/dev/null || contestants+=("transformers bfloat16")
  if python3 -c 'import ctranslate2' 2>/dev/null; then
    contestants+=("ctranslate2 float16")
    # It asks for CUDA 12's library of matrix products; that of CUDA 13 serves.
    library=$(python3 -c 'import glob, site; print(*glob.glob(site.getsitepackages()[0] + "/nvidia/**/libcublas.so.13",
      recursive=True)[:1])')
    if [ -n "$library" ]; then
      mkdir -p "$out/runs/lib"
      ln -sf "$library" "$out/runs/lib/libcublas.so.12"
      export LD_LIBRARY_PATH=$out/runs/lib:$(dirname "$library")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    fi
  fi
  bench_decode() {
    local row=$1
    shift
    step 75 python3 -m tools.bench_decode "$run/model" "$data/test_2016.en" "$data/test_2016.de" --rows "$row" \
      --contestants "$@" ${decode[@]+"${decode[@]}"} --rounds "$rounds" \
      --output "$out/bench-decode-$row.json" >/dev/null || failed=1
  }
  bench_decode base "${contestants[@]}"
fi
if wants base; then
  step 60 env -u SEQ2SEQ_SHARED_DATA python3 tools/bench_train.py --model base "${train[@]}" --parts --warm 36 --updates 4 \
    --rounds "$rounds" --output "$out/bench-parts-base.json" --peers >/dev/null || failed=1
fi
if wants decode; then
  # Transformers takes too long to find its best batch to be in all rows.
  quick=("ours float32" "ours bfloat16" "ctranslate2 float16")
  bench_decode product "${quick[@]}"
fi
if wants ende; then
  commands
  step 600 bash -c 'ende "$@"' ende "trainer.max_minutes=${GPU_MINUTES:-1.5}" ${small[@]+"${small[@]}"} \
    >"$out/scores-ende.txt" || failed=1
fi
if wants decode; then
  bench_decode latency "${quick[@]}"
  bench_decode greedy "${quick[@]}"
fi
exit $failed
