#!/usr/bin/env bash
# Train with several processes, one per GPU, or on the CPU (gloo) where there is none:
#   [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500] tools/dist_train.sh CONFIG NUM_PROCESSES [FLAGS]
set -eu
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG NUM_PROCESSES [flags of tools/train.py]" >&2
    exit 2
fi
config=$1
processes=$2
shift 2
exec "$(dirname "$0")/dist_launch.sh" train.py "$processes" "$config" "$@"
