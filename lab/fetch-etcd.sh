#!/bin/sh
# Unpacks etcd from Debian, without installing it, which would start a service on this machine:
#   fetch-etcd.sh DIR        makes DIR/etcd; no root needed
# DIR appears whole or not at all.
set -eu
# shellcheck source=lab/debian.sh
. "$(dirname "$0")/debian.sh"

whole_begin "$1"

debian_open "$work/area"
mkdir "$work/new" "$work/download"
(cd "$work/download" && debian_apt download etcd-server)
dpkg -x "$work"/download/*.deb "$work/root"
mv "$work/root/usr/bin/etcd" "$work/new/etcd"
"$work/new/etcd" --version
whole_end
