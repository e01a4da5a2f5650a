#!/usr/bin/env bash
# Trains several stages one after the other. Each starts from the weights of the stage before:
#
#     scripts/train_chain.sh s03 NAME [flags of train.py]     static images, DAVIS + YouTubeVOS
#     scripts/train_chain.sh s012 NAME [flags of train.py]    static images, BL30K, DAVIS + YouTubeVOS
#
# The runs are saves/NAME_s0, saves/NAME_s03 and so on; the flags go to all of them. The same command again
# continues where the chain stopped. The environment variable LAUNCH is the command that starts train.py (default:
# python), for example LAUNCH="torchrun --nproc_per_node=2".
set -euo pipefail

case "${1:-}" in
    s03) stages='0 3' ;;
    s012) stages='0 1 2' ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
name=${2:?expected a NAME for the runs}
shift 2

train=$(dirname "$0")/../train.py
chain=s
start=()
for stage in $stages; do
    chain=$chain$stage
    id=${name}_$chain
    weights=saves/$id/$id.pth
    if [ -f "$weights" ]; then
        echo "stage $stage: finished, $weights" >&2
    else
        ${LAUNCH:-python} "$train" "$@" --stage "$stage" --id "$id" --resume "${start[@]}"
    fi
    start=(--load_network "$weights")
done
