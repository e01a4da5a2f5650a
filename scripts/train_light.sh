#!/usr/bin/env bash
# Trains stcn_light, the network in weights/stcn_light.pth, on a CPU in about two hours:
#
#     scripts/train_light.sh STATIC DAVIS [BACKBONE]
#
# STATIC: folders of image and mask pairs (SOD, coco128, ...); DAVIS: with 2017/trainval; BACKBONE: torchvision's
# ImageNet weights of MobileNetV2 (downloaded if not given). The runs are saves/light_s0, light_s01 and light_s012;
# the same command again continues where it stopped. The videos held aside are for selection, see the model card.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
static=$(realpath "$1") davis=$(realpath "$2") backbone=${3:+$(realpath "$3")}
python=${PYTHON:-python}
held_aside=(dance-jump drift-turn horsejump-low)

pairs=saves/light_data
mkdir -p "$pairs"
for folder in "$static"/*/; do
    ln -sfn "${folder%/}" "$pairs/$(basename "$folder")"
done
"$python" scripts/convert.py stills --root "$davis" --output "$pairs/davis" --every 10 --hold_aside "${held_aside[@]}"

stage() {   # number, run, run before, flags
    local weights=saves/$2/$2.pth start=(--arch stcn_light)
    if [ -f "$weights" ]; then echo "$2: finished" >&2; return; fi
    if [ -n "$3" ]; then
        start+=(--load_network "saves/$3/$3.pth")
    elif [ -n "$backbone" ]; then
        start+=(--backbone_weights "$backbone")
    fi
    "$python" train.py --stage "$1" --id "$2" --resume "${start[@]}" --static_root "$pairs" --synthetic_root "$pairs" \
        --davis_root "$davis" --yv_root none --hold_aside "${held_aside[@]}" --seed 0 --amp_dtype bfloat16 \
        --clip_norm 1 --warmup 50 --num_workers 1 --save_every 100 --log_every 20 "${@:4}"
}

stage 0 light_s0 '' --crop_size 192 -b 8 -i 500 --steps 400 --lr 3e-4 --bootstrap 250 500
stage 1 light_s01 light_s0 --crop_size 192 -b 4 -i 900 --steps 800 --lr 3e-4 --bootstrap 300 700
stage 2 light_s012 light_s01 --crop_size 256 --crop_scale 0.15 1 -b 4 -i 2250 --lr 2e-4 --steps 1450 1850 2100 \
    --gamma 0.3 --bootstrap 300 1200

"$python" - <<'END'
import torch
from model import load_network, save_network
network = load_network('saves/light_s012/light_s012.pth')
save_network('saves/light_s012/stcn_light.pth', network, dtype=torch.half, recommended={'mem_every': 2})
END
echo "finished: saves/light_s012/stcn_light.pth" >&2
