#!/usr/bin/env bash
# Multi30k (task 1), from nothing to the score table: test_2016, cased and lowercased.
# MULTI30K=DIR: a folder with train, valid, test_2016 .en and .de; else they come from the Hugging Face Hub.
# Arguments are overrides: bash recipes/multi30k_en_de/run.sh trainer.max_steps=1000
set -euo pipefail
. "$(dirname "$0")/../common.sh"
begin "${RECIPE:-multi30k_en_de}" "$@"
files=${MULTI30K:-${SEQ2SEQ_SHARED_DATA:+$SEQ2SEQ_SHARED_DATA/multi30k}}
if [ -n "$files" ]; then local_files "$files" train valid test_2016; fi
train
score test_2016 --output "$run/test_2016.hypotheses"
score test_2016.lowercase --lowercase --paper-bleu
table "tokenised_bleu=${PUBLISHED-41.02}"
