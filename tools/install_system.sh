#!/bin/sh
# Installs with apt what pip cannot bring: `install_system.sh python` what the demo needs, `install_system.sh tests` also
# the real programs that the tests run. Nothing is installed, and root is not needed, where it is there already.
# These lists are the whole of it; no daemon is started, now or at boot.
PYTHON="python3 python3-venv"
SERVERS="postgresql redis-server openssh-server openssh-client curl debootstrap"
BROWSER="chromium chromium-driver"
IMAGES="docker-registry skopeo umoci buildah runc"
COMPILERS="gcc libc6-dev musl-tools busybox-static"
set -eu

here=$(dirname "$0")
what=${1:-tests}

has_python() { "$here/find_python.sh" >/dev/null; }
has_servers() {
    [ -n "$(find /usr/lib/postgresql -name initdb 2>/dev/null)" ] &&
        [ -x /usr/bin/redis-server ] && [ -x /usr/sbin/sshd ] && [ -x /usr/bin/ssh ] && [ -x /usr/bin/curl ] &&
        [ -x /usr/sbin/debootstrap ]
}
has_images() {
    for program in docker-registry skopeo umoci buildah runc; do
        [ -x "/usr/bin/$program" ] || [ -x "/usr/sbin/$program" ] || return 1
    done
}
has_compilers() { command -v gcc >/dev/null && [ -x /usr/bin/musl-gcc ] && [ -x /bin/busybox ] && [ -e /usr/include/stdio.h ]; }
has_browser() { command -v chromium >/dev/null && command -v chromedriver >/dev/null; }

missing=""
has_python || missing="$PYTHON"
if [ "$what" = tests ]; then
    has_servers || missing="$missing $SERVERS"
    has_images || missing="$missing $IMAGES"
    has_compilers || missing="$missing $COMPILERS"
    has_browser || missing="$missing $BROWSER"
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "This machine lacks some of: $missing. Run this once as root:  make deps" >&2
    exit 1
fi
if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    if [ "$what" = tests ]; then
        # Packages start their daemons unless this forbids it; and PostgreSQL's makes a cluster unless its settings say no.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
            trap 'rm -f "$policy"' EXIT
        fi
        if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
            mkdir -p /etc/postgresql-common
            echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
        fi
    fi
    apt-get update -qq
    # shellcheck disable=SC2086 # one word for each package
    apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold $missing >/dev/null
fi
if ! has_python; then
    echo "sandbox-aio needs CPython 3.11 or later with venv, and this system's packages do not have it." >&2
    echo "On Ubuntu 22.04: add-apt-repository ppa:deadsnakes/ppa && apt-get install python3.11-venv, then try again." >&2
    exit 1
fi
if [ "$what" = tests ] && ! { has_servers && has_images && has_compilers && has_browser; }; then
    echo "The tests need the programs of these packages, and this system does not have them all:" >&2
    echo "$SERVERS $IMAGES $COMPILERS $BROWSER." >&2
    echo "On Ubuntu, chromium is a snap and not among its packages: test on Debian, or install a chromium and its driver." >&2
    exit 1
fi
