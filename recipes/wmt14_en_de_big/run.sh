#!/usr/bin/env bash
# WMT 2014 English-German, big, by the script of the base model, English-German.
set -euo pipefail
RECIPE=wmt14_en_de_big PUBLISHED=28.4 exec bash "$(dirname "$0")/../wmt14_en_de/run.sh" "$@"
