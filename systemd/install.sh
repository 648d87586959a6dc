#!/bin/sh
# Installs coloha from this tree, as root: sh systemd/install.sh
#
# Each version gets a folder of its own in /opt/coloha, and the link `current` changes at the end: what runs goes on
# undisturbed until `systemctl restart coloha`. The version before stays, to go back to:
#   ln -sfn "$(readlink /opt/coloha/previous)" /opt/coloha/current && systemctl restart coloha
set -eu
cd "$(dirname "$0")/.."
home=/opt/coloha
release=$home/$(date -u +%Y%m%dT%H%M%S)

python3 -m venv "$release"
trap 'rm -rf "$release"' EXIT
"$release/bin/pip" install --quiet --disable-pip-version-check .
"$release/bin/coloha" --version

for unit in coloha.service coloha-qemu@.service coloha.slice; do
  install -D -m 644 "systemd/$unit" "/etc/systemd/system/$unit"
done
install -D -m 644 systemd/coloha.sysusers /etc/sysusers.d/coloha.conf
install -D -m 644 systemd/coloha.tmpfiles /etc/tmpfiles.d/coloha.conf
install -D -m 644 systemd/coloha.polkit.rules /etc/polkit-1/rules.d/50-coloha.rules
install -D -m 644 systemd/coloha.udev.rules /etc/udev/rules.d/60-coloha.rules
install -D -m 644 etc/man/coloha.1 /usr/local/share/man/man1/coloha.1
install -D -m 644 etc/completion/coloha.bash /usr/share/bash-completion/completions/coloha
install -D -m 644 etc/completion/_coloha /usr/local/share/zsh/site-functions/_coloha
systemd-sysusers coloha.conf
systemd-tmpfiles --create coloha.conf
ln -sfn "$home/current/bin/coloha" /usr/bin/coloha
ln -sfn "$home/current/bin/coloha-launch" /usr/bin/coloha-launch
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  udevadm control --reload 2> /dev/null || true
  udevadm trigger --subsystem-match=watchdog 2> /dev/null || true
fi

trap - EXIT
previous=$(readlink "$home/current" || true)
[ -z "$previous" ] || ln -sfn "$previous" "$home/previous"
ln -sfn "$release" "$home/current"
for old in "$home"/2*; do
  case $old in "$release" | "$previous") ;; *) rm -rf "$old" ;; esac
done
