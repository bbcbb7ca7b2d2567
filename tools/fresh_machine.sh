#!/bin/sh
# Proves the two commands of the README: clones this checkout's last commit onto a fresh Debian that has only git and
# make, and runs `make demo` and `make test` there.
#
#   tools/fresh_machine.sh SUITE [--user] [TARGET...]      such as: tools/fresh_machine.sh bookworm --user demo
#
# Must be root, and needs debootstrap. The machine is a folder that becomes the root of mount, pid, uts and ipc namespaces
# of its own by pivot_root (in a chroot the kernel refuses to make user namespaces). With --user, root runs `make deps`,
# and an ordinary user all the rest. The suite's base is kept in build/fresh; the machine is removed.
set -eu

suite=$1
shift
user=""
if [ "${1:-}" = --user ]; then
    user=person
    shift
fi
[ $# -gt 0 ] || set -- demo test

checkout=$(cd "$(dirname "$0")/.." && pwd)
base=$checkout/build/fresh/$suite
machine=$checkout/build/fresh/machine-$suite-$$

if [ ! -d "$base" ]; then
    mkdir -p "$checkout/build/fresh"
    debootstrap --variant=minbase --include=git,make "$suite" "$base.part" >"$base.log"
    mv "$base.part" "$base"
fi

trap 'rm -rf --one-file-system "$machine"' EXIT
trap 'exit 1' INT TERM
cp -a "$base" "$machine"
cp -L /etc/resolv.conf "$machine/etc/resolv.conf"
printf '127.0.0.1 localhost fresh\n::1 localhost ip6-localhost\n' >"$machine/etc/hosts" # as every installer does
# Where a proxy has a certificate of its own, these variables name it.
for variable in PIP_CERT NODE_EXTRA_CA_CERTS; do
    file=$(printenv "$variable") || continue
    mkdir -p "$machine$(dirname "$file")"
    cp -L "$file" "$machine$file"
    set -- "$variable=$file" "$@"
done
home=/root
if [ -n "$user" ]; then
    chroot "$machine" useradd --create-home "$user"
    home=/home/$user
fi
git clone --quiet --no-hardlinks "file://$checkout" "$machine$home/sandbox-aio"
[ -z "$user" ] || chroot "$machine" chown -R "$user:" "$home"

cat >"$machine/make_targets" <<'RUN'
set -eu
user=$1 home=$2
shift 2
cd "$home/sandbox-aio"
while case "$1" in *=*) true ;; *) false ;; esac; do
    export "${1?}"
    shift
done
as_user=""
if [ -n "$user" ]; then
    make deps
    as_user="setpriv --reuid=$user --regid=$user --init-groups"
fi
for target in "$@"; do
    start=$(date +%s)
    # shellcheck disable=SC2086 # several words
    HOME=$home $as_user make "$target"
    echo "=== make $target took $(($(date +%s) - start)) s on $(sed -n 's/^PRETTY_NAME=//p' /etc/os-release) as $(id -un "${user:-root}")"
done
RUN

# shellcheck disable=SC2016 # what stands between the quotes runs inside
unshare --mount --pid --fork --kill-child --uts --ipc sh -euc '
    machine=$1
    shift
    mount --make-rprivate /
    mount --bind "$machine" "$machine"
    cd "$machine"
    mount -t proc proc proc
    mount --rbind /sys sys
    mount -t tmpfs -o mode=755 dev dev
    for node in null zero full random urandom tty; do
        touch "dev/$node"
        mount --bind "/dev/$node" "dev/$node"
    done
    mkdir dev/pts dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
    mount -t tmpfs -o mode=1777 shm dev/shm
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    ln -s fd/0 dev/stdin
    ln -s fd/1 dev/stdout
    ln -s fd/2 dev/stderr
    pivot_root . mnt
    umount -l /mnt
    hostname fresh
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 sh /make_targets "$@"
' fresh_machine "$machine" "$user" "$home" "$@"
