#!/bin/sh
# Installs with apt what pip cannot bring. Nothing is installed, and root is not needed, where it is there already.
# This list is the whole of it:
PACKAGES="python3 python3-venv"
set -eu

here=$(dirname "$0")
if "$here/find_python.sh" >/dev/null; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "There is no Python 3.11 or later with venv on this machine. Run this once as root:  make deps" >&2
    exit 1
fi
if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086 # one word for each package
    apt-get install -y -qq --no-install-recommends $PACKAGES >/dev/null
fi
if ! "$here/find_python.sh" >/dev/null; then
    echo "sandbox-aio needs CPython 3.11 or later with venv, and this system's packages do not have it." >&2
    echo "On Ubuntu 22.04: add-apt-repository ppa:deadsnakes/ppa && apt-get install python3.11-venv, then try again." >&2
    exit 1
fi
