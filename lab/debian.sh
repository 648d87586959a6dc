# Sourced: packages of one Debian release, whatever release this machine runs, without installing them.
#
#   debian_open DIR           makes a package area of its own in DIR; apt's state on this machine is left alone
#   debian_apt ARGUMENTS      apt-get in that area
#   debian_cache ARGUMENTS    apt-cache in that area
#   debian_mirror             says which mirror apt on this machine uses
#   debian_keyring            says where the keys are that sign what it has
#   whole_begin DIR           sets $target to DIR and $work to a folder beside it that goes away with the script
#   whole_end                 puts $work/new in DIR's place: it appears whole or not at all
#
# The mirror is the one that apt already uses here. apt keeps its signature checks.
# shellcheck shell=sh

release=${COLOHA_RELEASE:-trixie}

whole_begin() {
  target=$(realpath -m "$1")
  mkdir -p "$(dirname "$target")"
  work=$(mktemp -d "$target.new.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 1' INT TERM HUP
}

whole_end() {
  [ ! -e "$target" ] || mv "$target" "$work/old"
  mv "$work/new" "$target"
}

debian_mirror() {
  # shellcheck disable=SC2016  # the format is apt's, not the shell's
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null \
    | grep -m1 '/debian/\{0,1\}$' || {
    echo "apt on this machine knows no Debian mirror: add one that carries $release, or use Debian" >&2
    return 1
  }
}

debian_keyring() {
  keyring=
  for file in /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
    [ -z "$keyring" ] && [ -e "$file" ] && keyring=$file
  done
  if [ -z "$keyring" ]; then
    echo "Debian's signing keys are missing: install the package debian-archive-keyring" >&2
    return 1
  fi
  echo "$keyring"
}

debian_open() {
  area=$1
  mirror=$(debian_mirror)
  keyring=$(debian_keyring)
  mkdir -p "$area/lists/partial" "$area/archives/partial"
  : > "$area/status"
  for suite in $release ${COLOHA_BACKPORTS-$release-backports}; do
    echo "deb [arch=amd64 signed-by=$keyring] $mirror $suite main"
  done > "$area/sources.list"
  debian_apt update
}

# Locks and the _apt user need root; an area that nobody else knows needs neither.
debian_with() {
  program=$1
  shift
  "$program" -o Dir::Etc::SourceList="$area/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$area/lists" -o Dir::State::status="$area/status" \
    -o Dir::Cache="$area" -o Acquire::Languages=none \
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
    -o APT::Architecture=amd64 -o APT::Architectures::=amd64 \
    -o Debug::NoLocking=1 -o APT::Sandbox::User=root "$@"
}

debian_apt() { debian_with apt-get -qq "$@"; }

debian_cache() { debian_with apt-cache "$@"; }
