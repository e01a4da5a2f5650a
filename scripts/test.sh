#!/usr/bin/env bash
# Makes the environment if need be and runs the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(bash scripts/environment.sh)
exec "$python" -m pytest "$@"
