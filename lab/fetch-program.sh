#!/bin/sh
# Unpacks one program of a Debian package, without installing it, which would start services on this machine:
#   fetch-program.sh DIR PACKAGE PROGRAM    makes DIR/PROGRAM; no root needed
# DIR appears whole or not at all.
set -eu
package=$2 wanted=$3
# shellcheck source=lab/debian.sh
. "$(dirname "$0")/debian.sh"

whole_begin "$1"

debian_open "$work/area"
mkdir "$work/new" "$work/download"
(cd "$work/download" && debian_apt download "$package")
dpkg -x "$work"/download/*.deb "$work/root"
mv "$work/root/usr/bin/$wanted" "$work/new/$wanted"
"$work/new/$wanted" --version
whole_end
