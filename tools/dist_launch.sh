#!/usr/bin/env bash
# Shared by dist_train.sh and dist_test.sh: tools/dist_launch.sh SCRIPT NUM_PROCESSES CONFIG [ARGUMENTS]
# NNODES, NODE_RANK, MASTER_ADDR and PORT specify the other machines.
set -eu
script=$1
processes=$2
config=$3
shift 2

if [ ! -f "$config" ]; then
    echo "$script: there is no config file '$config': specify one, such as configs/mask_rcnn/focalnet_t_1x.py." >&2
    exit 2
fi
case $processes in
    '' | *[!0-9]* | 0)
        echo "$script: the number of processes is '$processes': specify an integer from 1 on." >&2
        exit 2
        ;;
esac

exec "${PYTHON:-$(command -v python || command -v python3)}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$(dirname "$0")/$script" "$@" --launcher pytorch
