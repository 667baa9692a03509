#!/usr/bin/env bash
# What is to be measured on a GPU, in order, at most 8 minutes a call: it goes on where the rows of results and the work
# folder stop. See benchmarks/gpu.py for the steps and options.
#
#   benchmarks/gpu.sh --data FOLDER --models FOLDER --work FOLDER      # on a GPU; again, until it says that all is done
#   benchmarks/gpu.sh --tiny                                           # all of it on a CPU, in some minutes
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
timeout --kill-after=15 "${GPU_SECONDS:-465}" "$python" benchmarks/gpu.py "$@"
code=$?
if [ $code -eq 124 ] || [ $code -eq 137 ]; then
  echo "time is up: call it again, and it goes on"
  exit 0
fi
exit $code
