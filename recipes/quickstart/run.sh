#!/usr/bin/env bash
# Train on the embedded corpus and score 1,000 held-out phrases. Needs: pip install './[quickstart]'
set -euo pipefail
seq2seq-train +recipe=quickstart "$@"
seq2seq-evaluate --model runs/quickstart/model
