#!/usr/bin/env bash
# Segments the clip examples/blackswan with the network in weights/: makes the environment if need be, writes masks,
# an overlay video and a picture strip to output/quickstart (or the folder given), prints FPS, J and F.
set -euo pipefail
cd "$(dirname "$0")/.."
clip=examples/blackswan
output=${1:-output/quickstart}
python=$(bash scripts/environment.sh)
"$python" scripts/segment_video.py --input "$clip/JPEGImages" --mask "$clip/Annotations/00000.png" \
    --output "$output" --strip 5 --overwrite
echo "scores of these masks in percent, against those in $clip/truth:"
"$python" scripts/evaluate.py --results "$output/masks" --dataset folder --root "$clip/truth"
echo "look at $output/strip.png and $output/overlay.mp4"
echo "for your own videos: source $(dirname "$python")/activate; python scripts/segment_video.py --help"
