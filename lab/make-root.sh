#!/bin/sh
# Makes the root of a small Debian host to boot in a container, with what the README has one install:
#   make-root.sh DIR     needs root; DIR appears whole or not at all
set -eu
# shellcheck source=lab/debian.sh
. "$(dirname "$0")/debian.sh"
release=bookworm
packages=systemd,systemd-sysv,libpam-systemd,dbus,dbus-user-session,udev,polkitd,python3,python3-venv,iproute2,iputils-ping
packages=$packages,openssl,openssh-client,qemu-system-x86,qemu-utils

whole_begin "$1"
mirror=$(debian_mirror)
keyring=$(debian_keyring)
debootstrap --variant=minbase --keyring="$keyring" --include="$packages" "$release" "$work/new" "$mirror" \
  || { tail -n 20 "$work/new/debootstrap/debootstrap.log" >&2; exit 1; }
rm -rf "$work/new/var/cache/apt/archives"/*.deb "$work/new/var/lib/apt/lists"/*
rm -f "$work/new/etc/machine-id" "$work/new/etc/hostname"
whole_end
