#!/bin/sh
# Reach a machine by ssh from wherever you are, without a forwarded port. The same goes for any other TCP service.
#
# On that machine (whoever is not on the list cannot even tell that it is there):
#
#   export NTCP_BROKER=ntcp://HOST:6060
#   sh examples/expose_ssh.sh box --allow laptop
#
# On your laptop:
#
#   ssh -o 'ProxyCommand=ntcp connect --name laptop %h:%p' me@box.ntcp
#
# or once and for all, in ~/.ssh/config, after which `ssh me@box.ntcp`, scp, sftp, rsync and git work:
#
#   Host *.ntcp
#       ProxyCommand ntcp connect --name laptop %h:%p
#
# For programs that can be told an address only: ntcp forward 2222 box:22
set -eu
name=${1:?usage: expose_ssh.sh NAME [OPTIONS OF NTCP EXPOSE]}
shift
exec ntcp expose "$name:22" --to "${SSH_ADDRESS:-127.0.0.1:22}" "$@"
