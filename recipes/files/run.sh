#!/usr/bin/env bash
# Train on parallel text of your own: bash recipes/files/run.sh train.en train.de [key=value ...]
set -euo pipefail
. "$(dirname "$0")/../common.sh"
if [ $# -lt 2 ]; then
  echo "usage: bash recipes/files/run.sh SOURCE TARGET [key=value ...]" >&2
  exit 2
fi
begin files "${@:3}"
settings+=("data.train.source=$1" "data.train.target=$2")
train
