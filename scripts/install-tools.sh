#!/usr/bin/env bash
# Installs the Debian packages whose programs the tests use, as far as they are missing. Needs root and apt;
# without them it says what is missing, and the tests that need it skip with the same words.
set -u
declare -A package_of=(
  [ip]=iproute2 [ping]=iputils-ping [iperf3]=iperf3 [curl]=curl [tcpdump]=tcpdump [tshark]=tshark
  [ethtool]=ethtool [python3]=python3 [xenstore-ls]=xenstore-utils [cc]=gcc [make]=make [nsenter]=util-linux
)
# C xenstored, whose answers ours are compared with, and what compiles its client.
declare -A package_with=(
  [/usr/lib/xen-4.17/bin/xenstored]=xen-utils-4.17 [/usr/include/xenstore.h]=libxen-dev [/usr/include/stdlib.h]=libc6-dev
)
missing=()
for program in "${!package_of[@]}"; do
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
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || exit 1
available=()
for package in "${missing[@]}"; do
  if apt-cache show "$package" >/dev/null 2>&1; then available+=("$package")
  else echo "no package $package in this distribution: the tests that need it are skipped" >&2
  fi
done
[ ${#available[@]} -eq 0 ] || apt-get install -y -qq --no-install-recommends "${available[@]}"
