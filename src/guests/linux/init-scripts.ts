/**
 * PID 1 of our Linux guests: mounts what a system needs, loads the frontend, lets the agent configure vifs,
 * and keeps a shell on the console.
 *
 * Of the kernel command line it takes `pvnet.modules=a,b`: what to load in place of xen-netfront.
 */
export const INIT = `#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb PS1='\\h:\\w# '
[ -e /bin/mount ] || /bin/busybox --install -s /bin
[ -e /bin/sh ] || ln -s busybox /bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
ln -s /proc/self/fd /dev/fd
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
echo 3 4 1 7 > /proc/sys/kernel/printk
echo 1 > /proc/sys/kernel/sysrq
ip link set lo up
modules=xen-netfront
read -r words < /proc/cmdline
for word in $words; do
  case $word in pvnet.modules=*) modules=$(echo "\${word#pvnet.modules=}" | tr , ' ') ;; esac
done
for module in $modules; do modprobe $module; done
cd /root
vif-agent &
case $modules in *xen-netback*) backend-agent & ;; esac
exec 0</dev/console 1>/dev/console 2>&1
while :; do setsid -c sh -i; done
`;

/**
 * "xs read PATH…", "xs list PATH", "xs write PATH VALUE", "xs watch PATH", and the same as functions for scripts:
 * XenStore through /dev/xen/xenbus, as Debian has no i386 package of xenstore-utils. A message is a header of
 * four little-endian words (type, request, transaction, length) and a body (xen/include/public/io/xs_wire.h).
 * It starts few processes: in an emulator each costs milliseconds.
 */
export const XS = `#!/bin/sh
# request TYPE LENGTH BODY; a length below 256 and a body in printf's format
request() {
  printf "\\\\$(($1 / 8))$(($1 % 8))\\\\0\\\\0\\\\0\\\\1\\\\0\\\\0\\\\0\\\\0\\\\0\\\\0\\\\0\\\\$(($2 / 64))$(($2 / 8 % 8))$(($2 % 8))\\\\0\\\\0\\\\000$3" >&3
}
reply() { dd bs=4096 count=1 <&3 2>/dev/null | tail -c +17; }
# As a value nobody writes these, so that the message's type need not be looked at.
failed() { case $1 in ENOENT|EACCES|EINVAL|EIO|EQUOTA|ENOSPC) return 0 ;; esac; return 1; }
xs_open() { exec 3<>/dev/xen/xenbus; }
xs_read() {
  request 2 $((\${#1} + 1)) "$1\\\\0"
  value=$(reply)
  ! failed "$value"
}
xs_list() {
  request 1 $((\${#1} + 1)) "$1\\\\0"
  value=$(reply | tr '\\0' '\\n')
  ! failed "$value"
}
xs_write() {
  request 11 $((\${#1} + \${#2} + 1)) "$1\\\\000$2"
  value=$(reply)
  ! failed "$value"
}
# A line for each event, and one at once.
xs_watch() {
  request 4 $((\${#1} + 3)) "$1\\\\0w\\\\0"
  while dd bs=4096 count=1 <&3 >/dev/null 2>&1; do echo; done
}
case \${0##*/} in xs)
  xs_open
  command=$1
  shift
  case $command in
    read) for path; do xs_read $path && echo "$value" || exit 1; done ;;
    list) xs_list $1 && echo "$value" ;;
    write) xs_write "$1" "$2" ;;
    watch) xs_watch $1 ;;
  esac ;;
esac
`;

/**
 * Gives each vif the addresses that the toolstack wrote for it (the key "ip" of its backend), and takes
 * it up, whenever something under device/vif changes.
 */
export const VIF_AGENT = `#!/bin/sh
. /bin/xs
xs_open
xs_read name && hostname "$value"
configure() {
  xs_read name && hostname "$value"
  xs_read device/vif/$1/backend && xs_read $value/ip || value=
  for address in $value; do
    case $address in */*) ;; *:*) address=$address/64 ;; *) address=$address/24 ;; esac
    ip addr add $address dev $2
  done
  ip link set $2 up
  echo "pvnet: vif $1 is $2" > /dev/console
}
# A vif that was there when this kernel was restored from a snapshot without it: the bus has not heard of it.
announce() {
  xs_list device/vif || return
  for devid in $value; do
    [ -e /sys/bus/xen/devices/vif-$devid ] && continue
    xs_read device/vif/$devid/state && [ "$value" = 1 ] && xs_write device/vif/$devid/state 1
  done
}
(xs_open; xs_watch device/vif) | while read line; do
  announce
  for path in /sys/bus/xen/devices/vif-*/net/*; do
    [ -e $path ] || continue
    interface=\${path##*/}
    devid=\${path#*vif-}
    devid=\${devid%%/*}
    [ -e /run/$interface-vif$devid ] && continue
    : > /run/$interface-vif$devid
    configure $devid $interface
  done
  for mark in /run/*-vif*; do
    interface=\${mark#/run/}
    [ -e /sys/class/net/\${interface%-vif*} ] || rm -f $mark
  done
  [ -e /run/up ] && continue
  : > /run/up
  read -r seconds rest < /proc/uptime
  echo "pvnet: up after $seconds s" > /dev/console
done
`;

/** In a driver domain: puts each backend's interface on its bridge, and says so in hotplug-status, as "xl devd" does. */
export const BACKEND_AGENT = `#!/bin/sh
. /bin/xs
xs_open
(xs_open; xs_watch backend/vif) | while read line; do
  for path in /sys/bus/xen-backend/devices/vif-*/net/*; do
    [ -e $path ] || continue
    interface=\${path##*/}
    [ -e /sys/class/net/$interface/brport ] && continue
    ids=\${interface#vif}
    node=backend/vif/\${ids%.*}/\${ids#*.}
    xs_read $node/bridge && bridge=$value || bridge=xenbr0
    [ -e /sys/class/net/$bridge ] || ip link add $bridge type bridge
    ip link set $bridge up
    ip link set $interface master $bridge
    ip link set $interface up
    xs_write $node/hotplug-status connected
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
