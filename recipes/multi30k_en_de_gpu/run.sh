#!/usr/bin/env bash
# Multi30k on a GPU, by the script of the CPU recipe.
set -euo pipefail
RECIPE=multi30k_en_de_gpu exec bash "$(dirname "$0")/../multi30k_en_de/run.sh" "$@"
