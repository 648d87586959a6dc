#!/bin/sh
# Fetches what the guest is built from: fetch.sh DIR makes DIR/vmlinuz and DIR/modules.
# Installs nothing and needs no root: the kernel's own scripts would rebuild this machine's initramfs.
# DIR appears whole or not at all.
set -eu
# shellcheck source=lab/debian.sh
. "$(dirname "$0")/../debian.sh"
release=bookworm # under TCG its kernel boots in 4 s, trixie's in 7

whole_begin "$1"

debian_open "$work/area"
# The package that names the newest kernel holds none itself.
kernel=$(debian_cache --no-all-versions show linux-image-cloud-amd64 | grep '^Depends:' \
  | grep -o 'linux-image-[0-9][^ ,]*' | head -n 1) || kernel=
if [ -z "$kernel" ]; then
  echo "linux-image-cloud-amd64 of $release names no kernel package" >&2
  exit 1
fi
mkdir -p "$work/debs" "$work/root" "$work/new/modules"
(cd "$work/debs" && debian_apt download "$kernel")
dpkg -x "$work"/debs/*.deb "$work/root"
cp "$work"/root/boot/vmlinuz-* "$work/new/vmlinuz"
python3 "$(dirname "$0")/modules.py" "$work/root" "$work/new/modules" virtio_pci virtio_net virtio_blk ext4 \
  button evdev
whole_end
