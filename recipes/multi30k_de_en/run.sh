#!/usr/bin/env bash
# Multi30k German-English, by the script of English-German; no figure published for it is comparable.
set -euo pipefail
RECIPE=multi30k_de_en PUBLISHED='' exec bash "$(dirname "$0")/../multi30k_en_de/run.sh" "$@"
