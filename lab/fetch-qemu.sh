#!/bin/sh
# Unpacks a QEMU of Debian's beside the system's, without installing it:
#   fetch-qemu.sh DIR SUITE VERSION    makes DIR/qemu-system-x86_64 and DIR/qemu-img; no root needed
# SUITE is a release (bookworm), or its backports (trixie-backports); VERSION is what it must begin with (11.).
# DIR appears whole or not at all, and may not be moved into another file system's root.
set -eu
suite=$2 wanted=$3
COLOHA_RELEASE=${suite%-backports} COLOHA_BACKPORTS=
[ "$suite" = "$COLOHA_RELEASE" ] || COLOHA_BACKPORTS=$suite
# shellcheck source=lab/debian.sh
. "$(dirname "$0")/debian.sh"

whole_begin "$1"

mkdir -p "$work/new/root"
debian_open "$work/area"
debian_apt -y --no-install-recommends -t "$suite" --download-only install qemu-system-x86 qemu-utils
for package in "$work"/area/archives/*.deb; do
  dpkg -x "$package" "$work/new/root"
done
# Releases before trixie have libraries in /lib, too.
if [ -d "$work/new/root/lib" ] && [ ! -L "$work/new/root/lib" ]; then
  cp -a "$work/new/root/lib/." "$work/new/root/usr/lib/"
  rm -rf "$work/new/root/lib"
fi
rm -rf "$work/new/root/usr/share/doc" "$work/new/root/usr/share/man" "$work/new/root/usr/share/locale"

# The programs run on their own release's C library, so they do not mind this machine's. exec all the way:
# the process id that the caller sees is QEMU's.
for program in qemu-system-x86_64 qemu-img; do
  # shellcheck disable=SC2016  # expanded when the program is started
  {
    echo '#!/bin/sh'
    echo 'root=$(dirname "$(realpath "$0")")/root lib=$root/usr/lib/x86_64-linux-gnu'
    printf '%s' 'QEMU_MODULE_DIR=$lib/qemu exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib"'
    printf ' --argv0 "$0" "$root/usr/bin/%s"' "$program"
    [ "$program" = qemu-img ] || printf ' -L "$root/usr/share/qemu" -L "$root/usr/share/seabios"'
    echo ' "$@"'
  } > "$work/new/$program"
  chmod +x "$work/new/$program"
done

# Accelerators are modules; a machine that reaches its monitor has them, its firmware and its libraries. Debian's
# builds before 11 have no qtest.
accelerators=tcg
[ "${wanted%%.*}" -lt 11 ] || accelerators="tcg qtest"
for accelerator in $accelerators; do
  echo quit | timeout 60 "$work/new/qemu-system-x86_64" -accel "$accelerator" -S -nodefaults \
    -no-user-config -display none -monitor stdio > "$work/check" 2>&1 || {
    cat "$work/check" >&2
    echo "the unpacked QEMU does not start with -accel $accelerator" >&2
    exit 1
  }
done
version=$("$work/new/qemu-system-x86_64" --version | sed -n '1s/.*version \([0-9.]*\).*/\1/p')
case $version in
  "$wanted"*) ;;
  *)
    echo "$suite has QEMU ${version:-of no known version}; $wanted is needed" >&2
    exit 1
    ;;
esac
whole_end
