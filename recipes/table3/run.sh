#!/usr/bin/env bash
# The paper's ablations on WMT 2014 English-German, one run after another, each scored on newstest2013.
# Arguments are overrides: bash recipes/table3/run.sh data.micro_batches=8
set -euo pipefail
. "$(dirname "$0")/../common.sh"
if [ "${NODES:-1}" != 1 ]; then
  echo "NODES=$NODES: the rows of table 3 are trained on one machine; type them on several, such as +ablation=A_heads_1" >&2
  exit 2
fi
begin table3 "$@"
train
for row in "$run"/*/model; do
  seq2seq-evaluate --model "$row" --paper-bleu | tee "${row%model}scores.json"
done
