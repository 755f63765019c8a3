# A PVH guest with two queues and a PV guest on pvnet's own bridge.
. test/xen/dom0/lib.sh
secs=${SECS:-5}
modprobe tun
iperf3 -s -D >/dev/null
start_backend --bridge pvbr0 || exit 1
ip addr del 10.77.0.1/24 dev xenbr0; ip addr add 10.77.0.1/24 dev pvbr0; ip link set pvbr0 up
vif=bridge=pvbr0,script=vif-xenlab
check 'PVH guest, 2 vCPUs: xl create' xenlab-domu create --name a --type pvh --vcpus 2 --ip 10.77.0.2/24 --vif "$vif" || exit 1
queues() { guest a 'ls /sys/class/net/eth0/queues | grep -c tx' | grep -q 2 && echo '2 tx queues'; }
check 'two queues' queues
check 'ping dom0 ↔ PVH guest' ping_guest 10.77.0.2
check 'TCP PVH guest → dom0' tcp a 10.77.0.1 $secs
check 'TCP dom0 → PVH guest' tcp a 10.77.0.1 $secs -R
check 'second guest, PV' xenlab-domu create --name b --ip 10.77.0.3/24 --vif "$vif" || exit 1
guest b 'iperf3 -s -D'
check 'ping guest → guest' guest a 'ping -q -c 10 10.77.0.3 | tail -1'
read -r bytes grants calls maps <<<"$(counters copyBytes grantToGrant copyIoctls maps)"
check 'TCP guest → guest' tcp a 10.77.0.3 $secs
payload() {
	local b g c m; read -r b g c m <<<"$(counters copyBytes grantToGrant copyIoctls maps)"
	echo "$((g - grants)) copies from grant to grant, $(((b - bytes) >> 10)) KiB by $((c - calls)) ioctls, $((m - maps)) pages mapped"
	[ $g -gt $grants ] && [ $m = $maps ]
}
check 'payload goes from grant to grant, nothing is mapped' payload
closes() { stop_backend TERM; [ "$(xenstore-read /local/domain/$(xl domid b)/device/vif/0/state)" = 6 ]; }
check 'SIGTERM closes the vifs: frontends are in state 6' closes
xenlab-domu destroy --name a; xenlab-domu destroy --name b
cat /tmp/backend.err >&2
