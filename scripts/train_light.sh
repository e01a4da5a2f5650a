#!/usr/bin/env bash
# Trains stcn_light, the network in weights/stcn_light.pth:
#
#     scripts/train_light.sh STATIC DAVIS VIDEOS [BACKBONE]
#
# STATIC: with the folders SOD, coco128, ccp, salient and voc of image and mask pairs; DAVIS: with 2017/trainval; VIDEOS: with
# JPEGImages and Annotations, eight clips of YouTubeVOS; BACKBONE: torchvision's ImageNet weights of MobileNetV2 (downloaded
# if not given). The first three stages took two hours on two cores of a CPU, the two wide ones nine minutes on an H100.
# The runs are saves/light_s0, _s01, _s012, _wide1 and _wide2; the same command again continues where it stopped. The videos
# held aside are for selection, see the model card.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 3 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
static=$(realpath "$1") davis=$(realpath "$2") videos=$(realpath "$3") backbone=${4:+$(realpath "$4")}
python=${PYTHON:-python}
held_aside=(dance-jump drift-turn horsejump-low)

few=saves/light_data/few all=saves/light_data/all
mkdir -p "$few" "$all"
for folder in SOD coco128 ccp salient voc; do
    ln -sfn "$static/$folder" "$all/$folder"
done
ln -sfn "$static/SOD" "$static/coco128" "$few"
"$python" scripts/convert.py stills --root "$davis" --output "$few/davis" --every 10 --hold_aside "${held_aside[@]}"

stage() {   # number, run, weights to start from, flags
    if [ -f "saves/$2/$2.pth" ]; then echo "$2: finished" >&2; return; fi
    local start=(--arch stcn_light)
    if [ -n "$3" ]; then
        start+=(--load_network "$3")
    elif [ -n "$backbone" ]; then
        start+=(--backbone_weights "$backbone")
    fi
    "$python" train.py --stage "$1" --id "$2" --resume "${start[@]}" --davis_root "$davis" --yv_root none \
        --amp_dtype bfloat16 --clip_norm 1 --save_every 100 --log_every 20 "${@:4}"
}

light=(--static_root "$few" --synthetic_root "$few" --hold_aside "${held_aside[@]}" --warmup 50 --num_workers 1)
stage 0 light_s0 '' "${light[@]}" --crop_size 192 -b 8 -i 500 --steps 400 --lr 3e-4 --bootstrap 250 500
stage 1 light_s01 saves/light_s0/light_s0.pth "${light[@]}" --crop_size 192 -b 4 -i 900 --steps 800 --lr 3e-4 \
    --bootstrap 300 700
stage 2 light_s012 saves/light_s01/light_s01.pth "${light[@]}" --crop_size 256 --crop_scale 0.15 1 -b 4 -i 2250 \
    --lr 2e-4 --steps 1450 1850 2100 --gamma 0.3 --bootstrap 300 1200

# From here on with large frames, more stills and several objects, and with the average of the weights.
wide=(--difficulty hard --crop_size 384 -b 16 --warmup 100 --average 0.998 --num_workers 14)
stage 1 light_wide1 saves/light_s012/light_s012.pth "${wide[@]}" --synthetic_root "$all" -i 2000 --lr 3e-4 \
    --steps 1800 --gamma 0.3 --bootstrap 1000000 2000000
ln -sfn ../few/davis "$all/davis"
stage 2 light_wide2 saves/light_wide1/light_wide1.pth "${wide[@]}" --synthetic_root "$all" --clip_frames 4 \
    --video_root "$videos" --video_repeat 8 --hold_aside "${held_aside[@]}" butterfly yt_camel \
    --crop_scale 0.15 1 -i 900 --lr 2e-4 --steps 450 675 810 --gamma 0.4 --bootstrap 300 1800 --seed 1

# On the videos held aside, this mean of their weights was better than any of the three.
"$python" - <<'END'
import torch
from model import load_network, save_network
shares = {'light_s012': 1 / 6, 'light_wide1': 2 / 6, 'light_wide2': 3 / 6}
networks = [load_network(f'saves/{run}/{run}.pth') for run in shares]
with torch.no_grad():
    for weights in zip(*(network.parameters() for network in networks), strict=True):
        mean = sum(share * weight for share, weight in zip(shares.values(), weights, strict=True))
        weights[0].copy_(mean)
save_network('saves/light_wide2/stcn_light.pth', networks[0], dtype=torch.half, recommended={'mem_every': 2})
END
echo "finished: saves/light_wide2/stcn_light.pth" >&2
