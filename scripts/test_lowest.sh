#!/usr/bin/env bash
# Runs the tests with the oldest minor versions that requirements.txt allows, and with the oldest av (for videos), in an
# environment of its own (5 GB, made once); arguments go to pytest. What needs the rest of requirements-extras.txt is
# skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
av=$(grep '^av>=' requirements-extras.txt)
pins=$(sed 's/^opencv-python/&-headless/; s/>=\(.*\)/==\1.*/' requirements.txt - <<< "$av")     # headless: it needs no libGL
hash=$(sha256sum <<< "$pins" | cut -c1-16)
environment=${STCN_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/stcn-pytorch}/lowest-$hash
if [ ! -f "$environment/complete" ]; then
    rm -rf "$environment"
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet -r /dev/stdin pytest hypothesis <<< "$pins"
    touch "$environment/complete"
fi
exec "$environment/bin/python" -m pytest "$@"
