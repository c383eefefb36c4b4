#!/usr/bin/env bash
# IWSLT 2014 German-English, from the official archive to the score table.
# IWSLT14=DIR: the folder de-en of the archive, unpacked; the README says where to get it.
# Arguments are overrides: bash recipes/iwslt14_de_en/run.sh trainer.max_steps=1000
set -euo pipefail
. "$(dirname "$0")/../common.sh"
begin iwslt14_de_en "$@"

# The sentences of a file with tags, as fairseq's script takes them: titles and descriptions are sentences too.
sentences() { sed -E '/<(url|talkid|keywords)>/d; s/<\/?(title|description)>//g' "$1"; }
# Those of a test set; its apostrophes are not the ones of the training text.
segments() { sed -nE "/<seg id/ { s/<seg id=\"[0-9]+\">[[:space:]]*//; s/[[:space:]]*<\/seg>.*//; s/’/'/g; p; }" "$1"; }

text=$run/text
if [ ! -d "$text" ]; then
  if [ ! -f "${IWSLT14:-}/train.tags.de-en.de" ]; then
    echo "IWSLT14=${IWSLT14:-}: no train.tags.de-en.de there; recipes/iwslt14_de_en/README.md says where to get it" >&2
    exit 2
  fi
  rm -rf "$text.partial"
  mkdir -p "$text.partial"
  for side in de en; do
    sentences "$IWSLT14/train.tags.de-en.$side" | awk 'NR % 23' >"$text.partial/train.$side"
    sentences "$IWSLT14/train.tags.de-en.$side" | awk 'NR % 23 == 0' >"$text.partial/valid.$side"
    for part in TED.dev2010 TEDX.dev2012 TED.tst2010 TED.tst2011 TED.tst2012; do
      segments "$IWSLT14/IWSLT14.$part.de-en.$side.xml"
    done >"$text.partial/test.$side"
  done
  mv "$text.partial" "$text"
fi

local_files "$text" train valid test
train
score test --output "$run/test.hypotheses"
score test.lowercase --lowercase --paper-bleu
table tokenised_bleu=34.5
