#!/usr/bin/env bash
# Installs the Debian packages whose programs the tests use, or those of the programs that are named, as far as they are
# missing; what benchmarks compare with only when it is named. Needs root and apt; without them it says what is missing, and
# what needs it does without or is skipped.
set -u
declare -A package_of=(
  [ip]=iproute2 [ping]=iputils-ping [iperf3]=iperf3 [curl]=curl [tcpdump]=tcpdump [tshark]=tshark
  [ethtool]=ethtool [python3]=python3 [xenstore-ls]=xenstore-utils [cc]=gcc [make]=make [nsenter]=util-linux
)
# C xenstored, whose answers ours are compared with, and what compiles its client.
declare -A package_with=(
  [/usr/lib/xen-4.17/bin/xenstored]=xen-utils-4.17 [/usr/include/xenstore.h]=libxen-dev [/usr/include/stdlib.h]=libc6-dev
)
if [ $# -gt 0 ]; then package_with=(); else set -- "${!package_of[@]}"; fi
package_of+=([vde_switch]=vde2 [ovs-vswitchd]=openvswitch-switch [socat]=socat)
missing=()
for program; do
  if [ -z "${package_of[$program]-}" ]; then
    echo "usage: scripts/install-tools.sh [PROGRAM…], of: ${!package_of[*]}" >&2
    exit 2
  fi
  command -v "$program" >/dev/null 2>&1 || [ -x "/usr/sbin/$program" ] || missing+=("${package_of[$program]}")
done
for file in "${!package_with[@]}"; do
  [ -e "$file" ] || missing+=("${package_with[$file]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "not installed, and only root can do it with apt-get: ${missing[*]}" >&2
  exit 0
fi

# What apt says matters only when it fails.
apt() {
  local said
  said=$(DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" 2>&1) && return
  printf 'apt-get %s failed:\n%s\n' "$*" "$said" >&2
  exit 1
}
echo "installing by apt-get: ${missing[*]}" >&2
apt update
available=()
for package in "${missing[@]}"; do
  if apt-cache show "$package" >/dev/null 2>&1; then available+=("$package")
  else echo "no package $package in this distribution: the tests that need it are skipped" >&2
  fi
done
[ ${#available[@]} -eq 0 ] || apt install -y --no-install-recommends "${available[@]}"
