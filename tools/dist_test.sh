#!/usr/bin/env bash
# Test with several processes, one per GPU, or on the CPU (gloo) where there is none:
#   [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500] tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [FLAGS]
set -eu
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT NUM_PROCESSES [flags of tools/test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
processes=$3
shift 3
exec "$(dirname "$0")/dist_launch.sh" test.py "$processes" "$config" "$checkpoint" "$@"
