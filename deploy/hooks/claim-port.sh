#!/bin/sh
# A hook for a script that starts a worker by itself; prints the port: PORT=$(claim-port.sh PLUGIN ORG [KEY])
#
# The lease is bound to the process that called this hook. Each host has an instance of its own of this plugin and
# organisation, the same at every start; several workers of one host give a KEY each.
set -eu
exec allocator claim "$1" --org "$2" --instance auto ${3:+--key "$3"} --pid "$PPID" --pre-start --wait 30s
