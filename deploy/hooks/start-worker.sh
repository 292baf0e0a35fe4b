#!/bin/sh
# Starts a worker on a leased port: start-worker.sh PLUGIN ORG COMMAND…
#
# The lease is bound to this process, which becomes the worker: the agent of this host renews it while the worker lives
# and releases it when the worker has ended. Started again, the worker has the same port. Each host has an instance of its
# own of this plugin and organisation.
set -eu
plugin=$1 org=$2
shift 2
variables=$(allocator claim "$plugin" --org "$org" --instance auto --pid $$ --pre-start --wait 30s --format shell)
eval "$variables"
exec "$@"
