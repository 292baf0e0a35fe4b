#!/bin/sh
# A hook for a script that starts a worker by itself; prints the port: PORT=$(claim-port.sh PLUGIN ORG [KEY])
#
# The lease is bound to the process that called this hook. Where several hosts run the same plugin for the same
# organisation, give a KEY: each host then has an instance of its own for it, the same at every start.
set -eu
exec allocator claim "$1" --org "$2" ${3:+--instance auto --key "$3"} --pid "$PPID" --pre-start --wait 30s
