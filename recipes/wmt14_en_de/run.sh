#!/usr/bin/env bash
# WMT 2014, from nothing to the score table: data from the Hub, newstest2014 as sacreBLEU has it.
# WMT14=DIR: train, newstest2013 and test .en and .de (or .fr) from a folder instead.
# Arguments are overrides: bash recipes/wmt14_en_de/run.sh data.micro_batches=16
set -euo pipefail
. "$(dirname "$0")/../common.sh"
begin "${RECIPE:-wmt14_en_de}" "$@"
if [ -n "${WMT14:-}" ]; then
  local_files "$WMT14" train newstest2013 test
  train
  score test --paper-bleu --output "$run/test.hypotheses"
else
  train
  score newstest2014 --test-set wmt14,wmt14/full --paper-bleu
fi
table "paper_bleu=${PUBLISHED:-27.3}"
