#!/usr/bin/env bash
# Runs a command that downloads, and runs it again when it fails: a registry that cuts one file short must not end a
# build. Waits 10, 30, 60 and 120 seconds between the five attempts.
set -u
for pause in 10 30 60 120 0; do
    "$@" && exit 0
    code=$?
    # A mistake of the command itself (126, 127: it cannot be run) does not heal by waiting.
    if [ "$code" -ge 126 ] || [ "$pause" = 0 ]; then exit "$code"; fi
    echo "failed with exit code $code, runs again in $pause s: $*" >&2
    sleep "$pause"
done
