#!/bin/sh
# Makes this checkout ready to run: Python environment, QEMU >= 11, etcd, the lab guest. Run it as often as you like:
# what is there is left alone, what an interrupted run left half-made is made again.
#
#   setup.sh          what the demonstration needs
#   setup.sh tests    and the root of a Debian that boots in a container, for tests of the service; needs root
#
# .venv           Python with everything in requirements.txt, and coloha itself
# .cache          (or $COLOHA_CACHE) QEMU, etcd, the guest, and lab.env, which says where they are
set -eu
here=$(dirname "$(realpath "$0")")
cd "$here/.."
PYTHON=${PYTHON:-python3}

say() { echo "setup: $*"; }

fail() { # WHAT HINT...
  echo "setup: $1 failed" >&2
  shift
  for line; do echo "  $line" >&2; done
  exit 1
}

logged() { # runs a command; its output is shown only if it fails
  "$@" > "$cache/setup.log" 2>&1 || {
    status=$?
    tail -n 25 "$cache/setup.log" >&2
    return $status
  }
}

digest() { cat -- "$@" | sha256sum | cut -d ' ' -f 1; }

has() { command -v "$1" > /dev/null 2>&1; }

missing_packages() {
  has python3 || echo python3
  "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null || echo python3-venv
  has gcc || echo gcc
  [ -e "$(gcc -print-file-name=libc.a 2> /dev/null)" ] || echo libc6-dev
  has make || echo make
  has cpio || echo cpio
  has gzip || echo gzip
  has ip || echo iproute2
  has nft || echo nftables
  has unshare || echo util-linux
  has openssl || echo openssl
  has mke2fs || echo e2fsprogs
  [ "$for_tests" = no ] || has systemd-nspawn || echo systemd-container
  [ "$for_tests" = no ] || has debootstrap || echo debootstrap
  [ "$for_tests" = no ] || has chromium || echo chromium
  [ "$for_tests" = no ] || has man || echo man-db
  [ "$for_tests" = no ] || has zsh || echo zsh
}

install_packages() {
  missing=$(missing_packages | xargs)
  [ -n "$missing" ] || return 0
  has apt-get || fail "finding $missing" "This machine has no apt-get: install these by its own means, then run again."
  [ "$(id -u)" -eq 0 ] || fail "finding $missing" "Ask the administrator to run: apt-get install $missing"
  say "installing $missing"
  logged apt-get -qq update || say "apt-get update failed: going on with the package lists that are here"
  # shellcheck disable=SC2086  # a list of names
  logged env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing \
    || fail "apt-get install $missing" "See the messages above; correct apt's sources or network, then run again."
}

make_environment() {
  stamp=.venv/.coloha-stamp
  wanted="$(digest requirements.txt pyproject.toml) $PWD" # an environment cannot be moved
  if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c '' 2> /dev/null; then
    return 0
  fi
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || fail "finding Python 3.11" "$PYTHON is older: install a newer one, then run PYTHON=/path/to/python make setup."
  say "installing Python packages into .venv"
  rm -f "$stamp"
  if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
    logged "$PYTHON" -m venv --clear .venv || fail "making .venv" "Remove the folder .venv, then run again."
  fi
  set -- .venv/bin/python -m pip install --disable-pip-version-check
  logged "$@" --require-hashes -r requirements.txt \
    || fail "installing requirements.txt" "See pip's messages above; check the network, then run again."
  logged "$@" --no-deps --no-build-isolation -e . \
    || fail "installing coloha into .venv" "See pip's messages above, then run again."
  echo "$wanted" > "$stamp"
}

is_new() { # PROGRAM: is it QEMU >= 11?
  version=$("$1" --version 2> /dev/null | sed -n '1s/.*version \([0-9]*\)\..*/\1/p')
  [ "${version:-0}" -ge 11 ]
}

find_qemu() {
  qemu=$(command -v qemu-system-x86_64 || true) qemu_img=$(command -v qemu-img || true)
  if [ -n "$qemu" ] && [ -n "$qemu_img" ] && is_new "$qemu"; then
    return 0
  fi
  qemu=$cache/qemu/qemu-system-x86_64 qemu_img=$cache/qemu/qemu-img
  if is_new "$qemu"; then
    return 0
  fi
  say "fetching QEMU >= 11 (40 MB)"
  logged "$here/fetch-qemu.sh" "$cache/qemu" trixie-backports 11. \
    || fail "fetching QEMU" "Correct what is said above and run again, or put a qemu-system-x86_64 >= 11 on PATH."
}

find_old_qemus() { # those of Debian 12 and 13, which coloha runs as well
  for old in bookworm:7.2 trixie:10.0; do
    suite=${old%:*} version=${old#*:}
    "$cache/qemu-$version/qemu-system-x86_64" --version > /dev/null 2>&1 && continue
    say "fetching QEMU $version (60 MB)"
    logged "$here/fetch-qemu.sh" "$cache/qemu-$version" "$suite" "$version." \
      || fail "fetching QEMU $version" "Correct what is said above, then run again."
  done
}

find_etcd() {
  etcd=$(command -v etcd || true)
  [ -z "$etcd" ] || return 0
  etcd=$cache/etcd/etcd
  if "$etcd" --version > /dev/null 2>&1; then
    return 0
  fi
  say "fetching etcd (10 MB)"
  logged "$here/fetch-program.sh" "$cache/etcd" etcd-server etcd \
    || fail "fetching etcd" "Correct what is said above and run again, or put etcd >= 3.4 on PATH."
}

find_promtool() {
  promtool=$(command -v promtool || true)
  [ -z "$promtool" ] || return 0
  promtool=$cache/promtool/promtool
  if "$promtool" --version > /dev/null 2>&1; then
    return 0
  fi
  say "fetching promtool (20 MB)"
  logged "$here/fetch-program.sh" "$cache/promtool" promtool promtool \
    || fail "fetching promtool" "Correct what is said above and run again, or put promtool on PATH."
}

find_prometheus() {
  prometheus=$(command -v prometheus || true)
  [ -z "$prometheus" ] || return 0
  prometheus=$cache/prometheus/prometheus
  if "$prometheus" --version > /dev/null 2>&1; then
    return 0
  fi
  say "fetching Prometheus (16 MB)"
  logged "$here/fetch-program.sh" "$cache/prometheus" prometheus prometheus \
    || fail "fetching Prometheus" "Correct what is said above and run again, or put prometheus on PATH."
}

find_mosquitto() {
  mosquitto=$(command -v mosquitto || true) mosquitto_passwd=$(command -v mosquitto_passwd || true)
  mosquitto_sub=$(command -v mosquitto_sub || true)
  if [ -n "$mosquitto" ] && [ -n "$mosquitto_passwd" ] && [ -n "$mosquitto_sub" ]; then
    return 0
  fi
  mosquitto=$cache/mosquitto/mosquitto mosquitto_passwd=$cache/mosquitto/mosquitto_passwd
  mosquitto_sub=$cache/mosquitto/mosquitto_sub
  if "$mosquitto" -h 2> /dev/null | grep -q version; then
    return 0
  fi
  say "fetching Mosquitto (20 MB)"
  logged "$here/fetch-mosquitto.sh" "$cache/mosquitto" \
    || fail "fetching Mosquitto" "Correct what is said above and run again, or put mosquitto and its tools on PATH."
}

make_guest() {
  wanted=$(digest "$here/guest/fetch.sh" "$here/guest/modules.py")
  if ! [ -s "$cache/kernel/vmlinuz" ] || [ "$(cat "$cache/kernel/stamp" 2> /dev/null)" != "$wanted" ]; then
    say "fetching the guest's kernel (35 MB)"
    logged "$here/guest/fetch.sh" "$cache/kernel" \
      || fail "fetching the guest's kernel" "Correct what is said above, then run again."
    echo "$wanted" > "$cache/kernel/stamp"
  fi
  wanted=$(digest "$here"/guest/*.[ch] "$here/guest/build.sh" "$cache/kernel/vmlinuz" "$cache/kernel/modules/order")
  if [ -e "$cache/guest/stamp" ] && [ "$(cat "$cache/guest/stamp")" = "$wanted" ]; then
    return 0
  fi
  say "building the guest"
  logged "$here/guest/build.sh" "$cache/kernel" "$cache/guest" \
    || fail "building the guest" "See the messages above, then run again."
  echo "$wanted" > "$cache/guest/stamp"
}

make_root() { # takes longest: beside all else
  wanted=$(digest "$here/make-root.sh" "$here/debian.sh")
  if [ -e "$cache/root/stamp" ] && [ "$(cat "$cache/root/stamp")" = "$wanted" ]; then
    return 0
  fi
  say "installing a Debian for containers (300 MB)"
  "$here/make-root.sh" "$cache/root" > "$cache/root.log" 2>&1 || return 1
  echo "$wanted" > "$cache/root/stamp"
}

make_wheels() { # what `pip install .` wants, for hosts without a network
  wanted=$(digest requirements.txt pyproject.toml)
  if [ -e "$cache/wheels/stamp" ] && [ "$(cat "$cache/wheels/stamp")" = "$wanted" ]; then
    return 0
  fi
  say "fetching wheels"
  rm -rf "$cache/wheels"
  logged .venv/bin/python "$here/wheels.py" "$cache/wheels" \
    || fail "fetching wheels" "See pip's messages above, then run again."
  echo "$wanted" > "$cache/wheels/stamp"
}

make_plugin() {
  wanted=$(digest "$here/tcg.c")
  if [ -e "$cache/plugin/stamp" ] && [ "$(cat "$cache/plugin/stamp")" = "$wanted" ]; then
    return 0
  fi
  mkdir -p "$cache/plugin"
  logged gcc -Wall -Wextra -O2 -fPIC -shared -nostdlib -o "$cache/plugin/tcg.so" "$here/tcg.c" \
    || fail "building the plugin" "See the messages above, then run again."
  echo "$wanted" > "$cache/plugin/stamp"
}

record() {
  wanted="qemu=$qemu
qemu_img=$qemu_img
qemu_10_0=$cache/qemu-10.0/qemu-system-x86_64
qemu_7_2=$cache/qemu-7.2/qemu-system-x86_64
etcd=$etcd
promtool=$promtool
prometheus=$prometheus
mosquitto=$mosquitto
mosquitto_passwd=$mosquitto_passwd
mosquitto_sub=$mosquitto_sub
kernel=$cache/guest/vmlinuz
initrd=$cache/guest/initrd.gz
plugin=$cache/plugin/tcg.so"
  if [ ! -e "$cache/lab.env" ] || [ "$(cat "$cache/lab.env")" != "$wanted" ]; then
    echo "$wanted" > "$cache/lab.env.new"
    mv "$cache/lab.env.new" "$cache/lab.env"
  fi
}

for_tests=no
[ "${1-}" != tests ] || for_tests=yes
if [ "$for_tests" = yes ] && [ "$(id -u)" -ne 0 ]; then
  fail "making the machine ready for tests" "They boot containers: run as root."
fi
[ "$(uname -m)" = x86_64 ] || fail "checking the machine" "The lab runs x86-64 guests; this machine is $(uname -m)."
mkdir -p "${COLOHA_CACHE:-.cache}" || fail "making the cache folder" "Set COLOHA_CACHE to a folder you may write to."
cache=$(realpath "${COLOHA_CACHE:-.cache}")
exec 9>> "$cache/setup.lock"
has flock && flock 9 # one setup at a time
rm -rf "$cache"/*.new.* # of interrupted runs
install_packages
root_made=
if [ "$for_tests" = yes ]; then
  make_root &
  root_made=$!
fi
make_environment
find_qemu
find_old_qemus
find_etcd
find_promtool
find_prometheus
find_mosquitto
make_guest
make_plugin
if [ "$for_tests" = yes ]; then
  make_wheels
  wait "$root_made" || { tail -n 25 "$cache/root.log" >&2; fail "installing a Debian" "See above, then run again."; }
fi
record
