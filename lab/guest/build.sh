#!/bin/sh
# Builds the lab guest: build.sh PARTS DIR makes DIR/vmlinuz and DIR/initrd.gz from what fetch.sh put in PARTS.
# Needs gcc with a static libc, cpio and gzip. DIR appears whole or not at all.
set -eu
here=$(dirname "$0")
parts=$1 target=$(realpath -m "$2")
mkdir -p "$(dirname "$target")"
work=$(mktemp -d "$target.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

mkdir -p "$work/new" "$work/root/proc" "$work/root/dev" "$work/root/disk0" "$work/root/disk1"
cp -r "$parts/modules" "$work/root/modules"
gcc -Wall -Wextra -O2 -static -pthread -s -o "$work/root/init" "$here/init.c" "$here/service.c"
# The same parts make the same guest, byte for byte.
find "$work/root" -exec touch -h -d @0 {} +
(cd "$work/root" && find . | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0) > "$work/initrd"
gzip -1 -n < "$work/initrd" > "$work/new/initrd.gz"
cp "$parts/vmlinuz" "$work/new/vmlinuz"
[ ! -e "$target" ] || mv "$target" "$work/old"
mv "$work/new" "$target"
