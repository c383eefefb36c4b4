#!/usr/bin/env bash
# WMT 2014 English-French, big, by the script of the base model, English-German.
set -euo pipefail
RECIPE=wmt14_en_fr_big PUBLISHED=41.8 exec bash "$(dirname "$0")/../wmt14_en_de/run.sh" "$@"
