#!/usr/bin/env bash
# Makes the Python environment once for each content of the requirements, outside the checkout, and prints
# its python. Usage: python=$(bash scripts/environment.sh)
# STCN_HOME chooses the place (default: ~/.cache/stcn-pytorch), PYTHON the interpreter (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || { echo "error: Python 3.11 or newer is needed; set PYTHON to one" >&2; exit 1; }
hash=$( { "$python" -VV; cat requirements*.txt scripts/environment.sh; } | sha256sum | cut -c1-16)
home=${STCN_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/stcn-pytorch}
environment=$home/$hash
mkdir -p "$home"

exec 9> "$environment.lock"
flock 9                                     # two runs at once make one environment
if [ ! -f "$environment/complete" ]; then
    echo "making the environment in $environment (some minutes, once)" >&2
    rm -rf "$environment"
    "$python" -m venv "$environment" >&2 \
        || { echo "error: no venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
    "$environment/bin/python" -m pip install --quiet -r requirements-dev.txt >&2
    # opencv-python needs libGL, which a machine without a screen may lack; the headless build is the same
    # cv2 without windows.
    if ! "$environment/bin/python" -c 'import cv2' 2> /dev/null; then
        echo "cv2 does not import (no libGL?): taking opencv-python-headless" >&2
        version=$("$environment/bin/python" -m pip show opencv-python | sed -n 's/^Version: //p')
        "$environment/bin/python" -m pip uninstall --quiet --yes opencv-python >&2
        "$environment/bin/python" -m pip install --quiet "opencv-python-headless==$version" >&2
        "$environment/bin/python" -c 'import cv2'
    fi
    touch "$environment/complete"
fi
echo "$environment/bin/python"
