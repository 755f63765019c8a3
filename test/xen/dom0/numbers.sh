# The same measurements with our backend and with the kernel's, one after the other in one boot.
. test/xen/dom0/lib.sh
secs=${SECS:-8} rounds=${ROUNDS:-2}
modprobe tun
iperf3 -s -D >/dev/null
vif=bridge=xenbr0,script=vif-xenlab
ticks() { awk '/^cpu / { print $2 + $4 + $7 + $8 }' /proc/stat; }
measure() {
	xenlab-domu create --name a --ip 10.77.0.2/24 --vif $vif && xenlab-domu create --name b --ip 10.77.0.3/24 --vif $vif || return 1
	guest b 'iperf3 -s -D'
	for round in $(seq $rounds); do
		result - "$1: ping, ms (min/avg/max/mdev)" "$(ping -q -c 20 -i 0.2 10.77.0.2 | tail -1 | sed 's/.*= //')"
		result - "$1: TCP guest → dom0" "$(tcp a 10.77.0.1 $secs)"
		result - "$1: TCP dom0 → guest" "$(tcp a 10.77.0.1 $secs -R)"
		result - "$1: TCP guest → guest" "$(tcp a 10.77.0.3 $secs)"
	done
}
start_backend --tap || exit 1
measure pvnet
pvnet stats --json > /tmp/stats.json
result - 'pvnet: calls into Xen per packet' "$(node -e '
	const all = JSON.parse(require("fs").readFileSync("/tmp/stats.json"));
	const xen = all.pop().counters;
	let packets = 0;
	for (const { counters } of all) packets += counters.rxPackets + counters.txPackets;
	const per = n => (n / packets).toFixed(2);
	console.log(`${packets} packets: ${per(xen.copyIoctls)} copy ioctls (${(xen.copies / xen.copyIoctls).toFixed(1)} copies each), ` +
		`${per(xen.notifies)} notifies, ${per(xen.reads + xen.unmaskWrites)} reads and unmasks of events, ${xen.maps} pages mapped in all`);
')"
xenlab-domu destroy --name a; xenlab-domu destroy --name b
stop_backend TERM
rm -f /etc/modprobe.d/no-netback.conf; modprobe xen-netback
measure kernel
