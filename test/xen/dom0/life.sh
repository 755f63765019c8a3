# A PV guest with one queue on TAPs and a Linux bridge, through its whole life.
. test/xen/dom0/lib.sh
file_mb=${FILE_MB:-20} secs=${SECS:-5}
modprobe tun
iperf3 -s -D >/dev/null
start_backend --tap || exit 1
check 'PV guest, 1 queue: xl create, libxl handshake' xenlab-domu create --vif bridge=xenbr0 || { cat /tmp/backend.err; exit 1; }
check 'vif-bridge has put the TAP into the Linux bridge' test -e /sys/class/net/xenbr0/brif/vif1.0
check 'ping dom0 ↔ guest' ping_guest 10.77.0.2
offloads() { guest domu 'ethtool -k eth0' | grep -E '^(tcp-segmentation-offload|scatter-gather|tx-checksumming|generic-segmentation-offload): on' | wc -l | grep -q 4 && echo 'SG, TSO and checksum offload are on'; }
check 'offloads of the guest' offloads
split() { guest domu 'grep -c "vif0-q0-[tr]x" /proc/interrupts' | grep -q 2 && echo 'tx and rx have a channel each'; }
check 'split event channels' split
check 'TCP guest → dom0' tcp domu 10.77.0.1 $secs
check 'TCP dom0 → guest' tcp domu 10.77.0.1 $secs -R
mkdir -p /tmp/www; head -c ${file_mb}M /dev/urandom > /tmp/www/f; want=$(sha256sum < /tmp/www/f)
busybox httpd -p 8000 -h /tmp/www
download() { [ "$(guest domu 'wget -q -O - http://10.77.0.1:8000/f | sha256sum' | grep -- -)" = "$want" ] && echo "$file_mb MB, same SHA-256"; }
check 'file dom0 → guest' download
upload() {
	guest domu 'mkdir /www; wget -q -O /www/f http://10.77.0.1:8000/f && httpd -p 8000 -h /www'
	[ "$(busybox wget -q -O - http://10.77.0.2:8000/f | sha256sum)" = "$want" ] && echo "$file_mb MB, same SHA-256"
}
check 'file guest → dom0' upload
check 'pvnet vif-list' pvnet vif-list
check 'pvnet dump' pvnet dump

detach() { xl network-detach domu 0 && until_true 10 test ! -e /sys/class/net/vif1.0 && ! xenstore-exists /local/domain/0/backend/vif/1/0 && vif_gone domu; }
attach() { xenlab-domu attach --name domu bridge=xenbr0 && until_true 30 ping -c 1 -W 1 10.77.0.2 && ping_guest 10.77.0.2; }
check 'xl network-detach' detach
nothing_left() {
	local m e; read -r m e <<<"$(counters grantsMapped eventChannels)"
	echo "$m grants mapped, $e event channels, $(xenstore-list /local/domain/0/backend/vif/1 2>/dev/null | wc -l) vifs in XenStore"
	[ "$m$e" = 00 ]
}
check 'nothing is left after it' nothing_left
check 'xl network-attach' attach

check 'xl destroy' xenlab-domu destroy
until_true 15 nothing_left
check 'nothing is left after it' nothing_left
check 'no TAP is left' bash -c '! ls /sys/class/net | grep vif'
check 'SIGTERM ends the backend' stop_backend TERM
cat /tmp/backend.err >&2
