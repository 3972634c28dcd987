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
if [ ! -f "$config" ]; then
    echo "$0: there is no config file '$config': give the path of one, such as configs/mask_rcnn/focalnet_t_1x.py." >&2
    exit 2
fi
case $processes in
    '' | *[!0-9]* | 0)
        echo "$0: the number of processes is '$processes': give a number, 1 or more." >&2
        exit 2
        ;;
esac

exec "${PYTHON:-$(command -v python || command -v python3)}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$processes" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
