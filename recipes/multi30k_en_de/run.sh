#!/usr/bin/env bash
# Train on Multi30k (task 1, English-German) and score test_2016, cased and lowercased.
# MULTI30K=DIR: a folder with train, valid, test_2016 .en and .de; else they come from the Hugging Face Hub.
# Arguments are overrides: bash recipes/multi30k_en_de/run.sh trainer.max_steps=1000
set -euo pipefail
files=${MULTI30K:-${SEQ2SEQ_SHARED_DATA:+$SEQ2SEQ_SHARED_DATA/multi30k}}
recipe=${RECIPE:-multi30k_en_de}
run=runs/$recipe
data=()
if [ -n "$files" ]; then
  for split in train valid test:test_2016; do
    for side in source:en target:de; do
      data+=("data.${split%:*}.${side%:*}=$files/${split#*:}.${side#*:}")
    done
  done
fi
seq2seq-train "+recipe=$recipe" "run_dir=$run" ${data[@]+"${data[@]}"} "$@"
seq2seq-evaluate --model "$run/model" --output "$run/test_2016.hypotheses" | tee "$run/scores.json"
seq2seq-evaluate --model "$run/model" --lowercase --paper-bleu | tee "$run/scores.lowercase.json"
