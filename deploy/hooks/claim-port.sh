#!/bin/sh
# A hook for a script that starts a worker by itself; prints the port: PORT=$(claim-port.sh PLUGIN ORG)
#
# The lease is tied to the process that called this hook.
set -eu
exec allocator claim "$1" --org "$2" --pid "$PPID" --pre-start --wait 30s
