#!/usr/bin/env bash
# WMT 2014 English-French, base, by the script of the base model, English-German.
set -euo pipefail
RECIPE=wmt14_en_fr PUBLISHED=38.1 exec bash "$(dirname "$0")/../wmt14_en_de/run.sh" "$@"
