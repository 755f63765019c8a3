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

/** All bytes but 0, in order, as printf takes them: a shell finds a byte's number by its place. */
const BYTES = Array.from({ length: 255 }, (_, i) => `\\${(i + 1).toString(8)}`).join('');

/**
 * "xs read PATH…", "xs list PATH", "xs write PATH VALUE", and the same as functions for scripts:
 * XenStore through /dev/xen/xenbus, as Debian has no i386 package of xenstore-utils. A message is a header of
 * four little-endian words (type, request, transaction, length) and a body (xen/include/public/io/xs_wire.h).
 *
 * It does with what the shell itself can: a process more is milliseconds in an emulator. The shell's "read" leaves
 * bytes of 0 out. So a header that answers us is its type, our request's number, which is 1, and its length, which is
 * below 255.
 */
export const XS = `#!/bin/sh
bytes=$(printf '${BYTES}')
last=\${bytes#"\${bytes%?}"}
# request TYPE LENGTH BODY; a length below 255 and a body in printf's format
request() {
  printf "\\\\$(($1 / 8))$(($1 % 8))\\\\0\\\\0\\\\0\\\\1\\\\0\\\\0\\\\0\\\\0\\\\0\\\\0\\\\0\\\\$(($2 / 64))$(($2 / 8 % 8))$(($2 % 8))\\\\0\\\\0\\\\000$3" >&$to
}
to=3
# The header of an answer: sets length. Takes the body of an error, and fails.
answer() {
  IFS= read -r -n 16 -d "$last" header <&3
  length=\${header#??}
  [ -n "$length" ] && before=\${bytes%%"$length"*} && length=$((\${#before} + 1))
  length=\${length:-0}
  case $header in "$error"*) body; return 1 ;; esac
}
error=\${bytes%"\${bytes#????????????????}"}
error=\${error#???????????????}
body() {
  value=
  [ $length = 0 ] || IFS= read -r -n $length -d "$last" value <&3
}
# One connection for requests, one for events.
xs_open() { exec 3<>/dev/xen/xenbus 4<>/dev/xen/xenbus; }
# The value of a node in "value".
xs_read() {
  request 2 $((\${#1} + 1)) "$1\\\\0"
  answer && body
}
# The names of children in "value", with spaces between.
xs_list() {
  request 1 $((\${#1} + 1)) "$1\\\\0"
  answer || return 1
  value=
  while [ $length -gt 0 ] && IFS= read -r -d '' name <&3; do
    length=$((length - \${#name} - 1))
    value="$value $name"
  done
}
xs_write() {
  request 11 $((\${#1} + \${#2} + 1)) "$1\\\\000$2"
  answer && body
}
# The first event comes at once.
xs_watch() {
  to=4
  request 4 $((\${#1} + 3)) "$1\\\\0!\\\\0"
  to=3
}
# Waits for an event of the watch on $1: the path that changed in "path". The watch's token ends it, which is in no
# path; before it are its header, of which kernels leave parts unset, and what the request was answered.
xs_event() {
  IFS= read -r -d ! path <&4 && path=$1\${path##*"$1"}
}
case \${0##*/} in xs)
  xs_open
  command=$1
  shift
  case $command in
    read) for path; do xs_read "$path" && echo "$value" || exit 1; done ;;
    list) xs_list "$1" && for name in $value; do echo "$name"; done ;;
    write) xs_write "$1" "$2" ;;
  esac ;;
esac
`;

/**
 * Gives each vif the addresses that the toolstack wrote for it (the key "ip" of its backend), and takes
 * it up, whenever one has connected.
 */
export const VIF_AGENT = `#!/bin/sh
. /bin/xs
set_name() { xs_read name && echo "$value" > /proc/sys/kernel/hostname; }
configure() {
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
  set_name
  xs_list device/vif || return
  for devid in $value; do
    [ -e /sys/bus/xen/devices/vif-$devid ] && continue
    xs_read device/vif/$devid/state && [ "$value" = 1 ] && xs_write device/vif/$devid/state 1
  done
}
configured=
look() {
  for path in /sys/bus/xen/devices/vif-*/net/*; do
    # By its index: a module that is loaded again brings another interface of the same name.
    read -r index < $path/ifindex || continue
    case " $configured " in *" $index "*) continue ;; esac
    configured="$configured $index"
    devid=\${path#*vif-}
    configure \${devid%%/*} \${path##*/}
  done
} 2>/dev/null
xs_open
xs_watch device/vif
while xs_event device/vif; do
  case $path in
    device/vif) announce; look ;;
    device/vif/*/state) look ;;
  esac
  [ "$up" ] && continue
  up=1
  read -r seconds rest < /proc/uptime
  echo "pvnet: up after $seconds s" > /dev/console
done
`;

/** In a driver domain: puts each backend's interface on its bridge, and says so in hotplug-status, as "xl devd" does. */
export const BACKEND_AGENT = `#!/bin/sh
. /bin/xs
connect() {
  # InitWait is said just before the interface comes.
  for try in 1 2 3 4 5 6 7 8 9; do [ -e /sys/class/net/$1 ] && break; sleep 0.1; done
  [ -e /sys/class/net/$1 ] || return
  if [ ! -e /sys/class/net/$1/brport ]; then
    xs_read backend/vif/$2/$3/bridge && bridge=$value || bridge=xenbr0
    [ -e /sys/class/net/$bridge ] || ip link add $bridge type bridge
    ip link set $bridge up
    ip link set $1 master $bridge
    ip link set $1 up
  fi
  # Of a vif that was detached and attached again at once, the kernel may not have seen that it was gone.
  xs_read backend/vif/$2/$3/hotplug-status && [ "$value" = connected ] && return
  xs_write backend/vif/$2/$3/hotplug-status connected
}
# Backends that came while this kernel was being restored from a snapshot: the bus has not heard of them.
announce() {
  xs_list backend/vif || return
  for domid in $value; do
    xs_list backend/vif/$domid || continue
    for devid in $value; do
      [ -e /sys/bus/xen-backend/devices/vif-$domid-$devid ] && continue
      xs_read backend/vif/$domid/$devid/state && [ "$value" = 1 ] && xs_write backend/vif/$domid/$devid/state 1
    done
  done
}
# InitWait, or what a frontend that was quicker than we has made of it.
serve() {
  xs_read backend/vif/$1/$2/state || return
  case $value in 2|3|4) connect vif$1.$2 $1 $2 ;; esac
}
xs_open
xs_watch backend/vif
while xs_event backend/vif; do
  case $path in
    backend/vif)
      announce
      # What came before the watch was there.
      for path in /sys/bus/xen-backend/devices/vif-*; do
        ids=\${path##*vif-}
        serve \${ids%-*} \${ids#*-}
      done ;;
    backend/vif/*/*/state)
      ids=\${path#backend/vif/}
      ids=\${ids%/state}
      serve \${ids%/*} \${ids#*/} ;;
  esac
done
`;

/** What the kernel runs when the toolstack asks for it through control/shutdown. */
export const POWEROFF = `#!/bin/sh
exec busybox poweroff -f
`;

export const REBOOT = `#!/bin/sh
exec busybox reboot -f
`;
