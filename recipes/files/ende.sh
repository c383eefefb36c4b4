#!/usr/bin/env bash
# The recipe at work: 375,000 noisy English-German pairs of eight kinds, validated on newstest2013, scored on newstest2012.
# SEQ2SEQ_SHARED_DATA=DIR: a folder with ende/*.en.xz and *.de.xz, and newstest/newstest2013.en and .de.
# Arguments are overrides: bash recipes/files/ende.sh model=base trainer.max_steps=50000
set -euo pipefail
shared=${SEQ2SEQ_SHARED_DATA:?set it to a folder with ende/ and newstest/}
run=${RUN_DIR:-runs/ende}
text=$run/text
mkdir -p "$text"
sources=() targets=()
for file in "$shared"/ende/*.en.xz; do
  name=$(basename "$file" .en.xz)
  if [ "$name" = newstest2008-2012 ]; then
    # newstest2012, its last 3,003 lines, is the test set and must not be trained on.
    for side in en de; do
      xz -dc "$shared/ende/$name.$side.xz" | head -n -3003 >"$text/newstest2008-2011.$side"
      xz -dc "$shared/ende/$name.$side.xz" | tail -n 3003 >"$text/newstest2012.$side"
    done
    file=$text/newstest2008-2011.en
  fi
  sources+=("$file")
  targets+=("$(sed -E 's/\.en(\.xz)?$/.de\1/' <<<"$file")")
done
list() { local IFS=,; echo "[$*]"; }
seq2seq-train +recipe=files "run_dir=$run" \
  "data.train.source=$(list "${sources[@]}")" "data.train.target=$(list "${targets[@]}")" \
  "data.valid.source=$shared/newstest/newstest2013.en" "data.valid.target=$shared/newstest/newstest2013.de" \
  "data.test.source=$text/newstest2012.en" "data.test.target=$text/newstest2012.de" "$@"
seq2seq-evaluate --model "$run/model" --paper-bleu --output "$run/newstest2012.hypotheses" | tee "$run/scores.json"
