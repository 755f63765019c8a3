#!/usr/bin/env bash
# Installs the Debian packages whose programs the tests use, as far as they are missing. Needs root and apt;
# without them it says what is missing, and the tests that need it skip with the same words.
set -u
declare -A package_of=(
  [ip]=iproute2 [ping]=iputils-ping [iperf3]=iperf3 [curl]=curl [tcpdump]=tcpdump [tshark]=tshark
  [ethtool]=ethtool [xenstore-ls]=xenstore-utils [cc]=gcc [nsenter]=util-linux
)
missing=()
for program in "${!package_of[@]}"; do
  command -v "$program" >/dev/null 2>&1 || [ -x "/usr/sbin/$program" ] || missing+=("${package_of[$program]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "not installed, and only root can do it with apt-get: ${missing[*]}" >&2
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || exit 1
apt-get install -y -qq --no-install-recommends "${missing[@]}"
