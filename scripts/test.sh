#!/usr/bin/env bash
# Makes the environment if need be and runs the tests, one process per core with one compute thread each; arguments go to
# pytest (-n 0: all tests in one process).
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(bash scripts/environment.sh)
unset PYTHONDONTWRITEBYTECODE  # tests start many interpreters, which would all compile the same files
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
exec "$python" -m pytest -n auto --dist worksteal "$@"
