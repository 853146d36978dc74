#!/usr/bin/env bash
# gpu_check.py, whose --help says all, by $PYTHON or else python3: 3.9 or newer, with torch unless --python names one.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
