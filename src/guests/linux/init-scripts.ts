/**
 * PID 1 of our Linux guests: mounts what a system needs, loads the frontend, lets the agent configure vifs,
 * and keeps a shell on the console.
 *
 * Of the kernel command line it takes `pvnet.modules=a,b`: what to load in place of xen-netfront.
 */
export const INIT = `#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=vt100 PS1='\\h:\\w# '
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
echo 3 4 1 7 > /proc/sys/kernel/printk
echo 1 > /proc/sys/kernel/sysrq
ip link set lo up
modules=xen-netfront
for word in $(cat /proc/cmdline); do
  case $word in pvnet.modules=*) modules=$(echo "\${word#pvnet.modules=}" | tr , ' ') ;; esac
done
for module in $modules; do modprobe $module; done
cd /root
vif-agent &
exec 0</dev/console 1>/dev/console 2>&1
echo "pvnet: up after $(cut -d ' ' -f 1 /proc/uptime) s"
while :; do setsid -c sh -i; done
`;

/**
 * "xs read PATH…", "xs list PATH", "xs watch PATH": XenStore through /dev/xen/xenbus, as Debian has no i386
 * package of xenstore-utils. A message is a header of four little-endian words (type, request, transaction,
 * length) and a body (xen/include/public/io/xs_wire.h). "watch" prints a line for each event, and one at once.
 */
export const XS = `#!/bin/sh
octets() { printf '\\\\%03o\\\\%03o\\\\%03o\\\\%03o' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) 0; }
request() {
  printf "$(octets $1)$(octets 1)$(octets 0)$(octets $3)$2" | dd bs=4096 iflag=fullblock of=/dev/fd/3 2>/dev/null
}
# The reply's type is its first byte; 16 is XS_ERROR.
reply() {
  dd bs=4096 count=1 <&3 2>/dev/null > /tmp/xs.$$
  type=$(od -An -tu1 -N1 /tmp/xs.$$)
  tail -c +17 /tmp/xs.$$
  rm -f /tmp/xs.$$
  [ $type -ne 16 ]
}
exec 3<>/dev/xen/xenbus
command=$1
shift
case $command in
  read) for path; do request 2 "$path\\\\0" $((\${#path} + 1)); reply; echo; done ;;
  list) request 1 "$1\\\\0" $((\${#1} + 1)); reply | tr '\\0' '\\n' ;;
  watch)
    request 4 "$1\\\\0w\\\\0" $((\${#1} + 3))
    while dd bs=4096 count=1 <&3 2>/dev/null > /dev/null; do echo; done ;;
esac
`;

/**
 * Gives each vif the addresses that the toolstack wrote for it (the key "ip" of its backend), and takes
 * it up, whenever something under device/vif changes.
 */
export const VIF_AGENT = `#!/bin/sh
name=$(xs read name) && [ -n "$name" ] && hostname "$name"
xs watch device/vif | while read line; do
  for devid in $(xs list device/vif 2>/dev/null); do
    interface=$(ls /sys/bus/xen/devices/vif-$devid/net 2>/dev/null) || continue
    [ -e /run/vif-$devid-$interface ] && continue
    : > /run/vif-$devid-$interface
    backend=$(xs read device/vif/$devid/backend)
    for address in $(xs read $backend/ip); do
      case $address in */*) ;; *:*) address=$address/64 ;; *) address=$address/24 ;; esac
      ip addr add $address dev $interface
    done
    ip link set $interface up
  done
  for mark in /run/vif-*; do
    [ -e /sys/class/net/\${mark##*-} ] || rm -f $mark
  done
done
`;

/** What the kernel runs when the toolstack asks for it through control/shutdown. */
export const POWEROFF = `#!/bin/sh
exec busybox poweroff -f
`;

export const REBOOT = `#!/bin/sh
exec busybox reboot -f
`;
