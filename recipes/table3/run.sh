#!/usr/bin/env bash
# The paper's ablations on WMT 2014 English-German, one run after another, each scored on newstest2013.
# Arguments are overrides: bash recipes/table3/run.sh data.micro_batches=8
set -euo pipefail
seq2seq-train +recipe=table3 "$@"
for row in runs/table3/*/model; do
  seq2seq-evaluate --model "$row" --paper-bleu | tee "${row%model}scores.json"
done
