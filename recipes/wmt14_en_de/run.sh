#!/usr/bin/env bash
# Train on WMT 2014 English-German from the Hugging Face Hub and score its test split, newstest2014.
# Arguments are overrides: bash recipes/wmt14_en_de/run.sh data.micro_batches=8
set -euo pipefail
seq2seq-train +recipe=wmt14_en_de "$@"
seq2seq-evaluate --model runs/wmt14_en_de/model --paper-bleu | tee runs/wmt14_en_de/scores.json
