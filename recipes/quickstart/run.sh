#!/usr/bin/env bash
# Train on the embedded corpus and score 1,000 held-out phrases. Needs: pip install './[quickstart]'
set -euo pipefail
. "$(dirname "$0")/../common.sh"
begin quickstart "$@"
train
seq2seq-evaluate --model "$run/model"
