#!/bin/sh
# Installs Debian packages by name; run by make for what is missing.
set -eu
run=
[ "$(id -u)" -eq 0 ] || run=sudo
echo "installing $*"
$run apt-get update -qq
DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends "$@" >/dev/null
