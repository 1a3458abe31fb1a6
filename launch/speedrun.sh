#!/usr/bin/env bash
# The same as launch/reproduce.sh with the modern recipe: 1.7B tokens of FineWeb (docs/modern.md).
#
#   launch/speedrun.sh [SETTINGS]
set -euo pipefail
# shellcheck source=/dev/null
. "$(dirname "$0")/common.sh"
show_help_if_asked "$@"
# 20 shards of 100M tokens; the run reads 1.7B tokens, each once.
RECIPE="${RECIPE:-modern_124m}" DATA="${DATA-fineweb --shards 20}" exec "$(dirname "$0")/reproduce.sh" "$@"
