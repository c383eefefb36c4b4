#!/usr/bin/env bash
# Train on parallel text of your own: bash recipes/files/run.sh train.en train.de [key=value ...]
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: bash recipes/files/run.sh SOURCE TARGET [key=value ...]" >&2
  exit 2
fi
seq2seq-train +recipe=files "data.train.source=$1" "data.train.target=$2" "${@:3}"
