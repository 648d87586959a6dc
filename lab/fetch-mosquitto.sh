#!/bin/sh
# Unpacks Debian's Mosquitto beside the system's, without installing it, which would start a broker on this machine:
#   fetch-mosquitto.sh DIR    makes DIR/mosquitto, DIR/mosquitto_passwd and DIR/mosquitto_sub; no root needed
# DIR appears whole or not at all.
set -eu
COLOHA_BACKPORTS=
# shellcheck source=lab/debian.sh
. "$(dirname "$0")/debian.sh"

whole_begin "$1"

mkdir -p "$work/new/root"
debian_open "$work/area"
debian_apt -y --no-install-recommends --download-only install mosquitto mosquitto-clients
for package in "$work"/area/archives/*.deb; do
  dpkg -x "$package" "$work/unpacked"
done
cp -a "$work/unpacked/usr/lib/x86_64-linux-gnu" "$work/new/root/lib"
rm -rf "$work/new/root/lib/perl-base" "$work/new/root/lib/gconv"

# The programs run on their own release's C library, so they do not mind this machine's. exec: the process id that the
# caller sees is the program's.
for program in sbin/mosquitto bin/mosquitto_passwd bin/mosquitto_sub; do
  name=${program#*/}
  cp "$work/unpacked/usr/$program" "$work/new/root/$name"
  # shellcheck disable=SC2016  # expanded when the program is started
  {
    echo '#!/bin/sh'
    echo 'root=$(dirname "$(realpath "$0")")/root'
    printf 'exec "$root/lib/ld-linux-x86-64.so.2" --library-path "$root/lib" "$root/%s" "$@"\n' "$name"
  } > "$work/new/$name"
  chmod +x "$work/new/$name"
done
# Both say their version and end with 1.
for program in mosquitto mosquitto_sub; do
  "$work/new/$program" --help | grep version
done
whole_end
