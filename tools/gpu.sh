#!/usr/bin/env bash
# All checks and measurements that want a GPU, in one call of under ten minutes; results into the folder $1.
# Each line has its own limit in seconds, and none runs past GPU_SECONDS: what comes last gets what is left.
# GPU_SMOKE=1 runs every line in small, on whatever device there is, to see that the script itself works.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-build/gpu}")
mkdir -p "$out"
export GOMP_SPINCOUNT=10000 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
total=${GPU_SECONDS:-580}
small=()
rounds=5
models=(small base big)
decode=(--device cuda --rows beam product greedy base latency)
peer=(--device cuda --rows base)
if [ -n "${GPU_SMOKE:-}" ]; then
  total=${GPU_SECONDS:-3600}
  small=(trainer.max_steps=4 trainer.validate_every=4 trainer.save_every=2 search.max_length_offset=3)
  rounds=1
  models=(small)
  decode=(--rows greedy)
  peer=(--rows greedy)
fi
failed=0
# step SECONDS COMMAND…
step() {
  local limit=$1 left=$((total - SECONDS - 10))
  shift
  [ -z "${GPU_SMOKE:-}" ] || limit=$total
  [ "$limit" -le "$left" ] || limit=$left
  echo "== ${SECONDS} s: $*" >&2
  if [ "$limit" -lt 10 ]; then
    echo "== left out: the time is up" >&2
    failed=1
  else
    timeout -k 10 "$limit" "$@" || { echo "== failed ($?; limit $limit s): $*" >&2; failed=1; }
  fi
}

step 120 python3 -m pytest -m gpu tests >"$out/tests.log" 2>&1
cat "$out/tests.log"
for model in "${models[@]}"; do
  size=(--batch-tokens 25000 --updates 4)
  [ -z "${GPU_SMOKE:-}" ] || size=()
  step 75 python3 tools/bench_train.py --model "$model" --formats bfloat16 --rounds "$rounds" \
    ${size[@]+"${size[@]}"} --output "$out/bench-train-$model.json"
done
if [ -n "${SEQ2SEQ_SHARED_DATA:-}" ]; then
  data=$SEQ2SEQ_SHARED_DATA/multi30k
  run=$out/multi30k_en_de_gpu
  step 200 python3 -m seq2seq.cli.train +recipe=multi30k_en_de_gpu "run_dir=$run" trainer.max_minutes=2.5 \
    "data.train.source=$data/train.en" "data.train.target=$data/train.de" \
    "data.valid.source=$data/valid.en" "data.valid.target=$data/valid.de" \
    "data.test.source=$data/test_2016.en" "data.test.target=$data/test_2016.de" ${small[@]+"${small[@]}"}
  step 20 python3 -m seq2seq.cli.evaluate --model "$run/model" >"$out/scores.json"
  step 20 python3 -m seq2seq.cli.evaluate --model "$run/model" --lowercase --paper-bleu >"$out/scores.lowercase.json"
  step 60 python3 tools/bench_decode.py "$run/model" "$data/test_2016.en" "$data/test_2016.de" \
    --contestants "ours bfloat16" "ours float32" "${decode[@]}" --rounds "$rounds" --output "$out/bench-decode.json"
  if python3 -c 'import transformers' 2>/dev/null; then
    step 60 python3 tools/bench_decode.py "$run/model" "$data/test_2016.en" "$data/test_2016.de" --rounds "$rounds" \
      --contestants "ours bfloat16" "transformers bfloat16" "${peer[@]}" --output "$out/bench-decode-peer.json"
  fi
  # The base model on eight noisy corpora, for as many minutes as GPU_MINUTES says.
  export PATH=$out/bin:$PATH
  mkdir -p "$out/bin"
  for command in train evaluate; do
    printf '#!/bin/sh\nexec python3 -m seq2seq.cli.%s "$@"\n' "$command" >"$out/bin/seq2seq-$command"
  done
  chmod +x "$out"/bin/*
  ende=(model=base tokenizer.vocab_size=16000 data.batch_tokens=25000 model.dropout=0.2 trainer.save_every=500)
  [ -z "${GPU_SMOKE:-}" ] || ende=(model=tiny data.batch_tokens=2000)
  RUN_DIR=$out/ende step 600 bash recipes/files/ende.sh "${ende[@]}" "trainer.max_minutes=${GPU_MINUTES:-1.5}" \
    ${small[@]+"${small[@]}"}
fi
exit $failed
