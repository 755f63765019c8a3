# The backend's options: which vifs, a filter, XenStore through the kernel's device; and the end of xenstored.
. test/xen/dom0/lib.sh
modprobe tun
iperf3 -s -D >/dev/null
vif=bridge=xenbr0,script=vif-xenlab
start_backend --tap --match 'a*' || exit 1
check 'a guest that --match selects' xenlab-domu create --name a1 --ip 10.77.0.2/24 --vif $vif || exit 1
check '… has a network' ping_guest 10.77.0.2
xenlab-domu create --name b --ip 10.77.0.3/24 --no-vif
refused() { ! xl network-attach b bridge=xenbr0 script=vif-xenlab; }
check 'one that it does not select is left alone: libxl gives up' refused
# libxl leaves what it has given up: a second backend would serve it, with no script run for it.
xl network-detach b 0
other_backend() {
	node src/cli/main.js backend --tap --match b --socket /tmp/b.sock >/tmp/other.out 2>/tmp/other.err & other=$!
	until_true 60 grep -q ready /tmp/other.out
}
check 'a second backend beside the first, for that guest' other_backend
attached() { xl network-attach b bridge=xenbr0 script=vif-xenlab && until_true 60 ping -c 1 -W 1 10.77.0.3 && ping_guest 10.77.0.3; }
check '… serves it' attached
only() { pvnet vif-list "$@" | tail -n +2 | awk '{ print $1 }' | xargs; }
each() { local own; own=$(only) other_own=$(only --socket /tmp/b.sock); echo "$own / $other_own"; [ "$own/$other_own" = a1/b ]; }
check 'each shows its own vifs' each
kill -TERM $other; wait $other

cat > /tmp/filter.mjs <<'S'
// No ICMP from or to the guest.
export function filter(packet) {
	return packet.u16(12) === 0x0800 && packet.u8(23) === 1 ? 1 : 0;
}
S
filtered() { stop_backend USR2; start_backend --tap --match 'a*' --filter /tmp/filter.mjs && until_true 60 tcp a1 10.77.0.1 2 && tcp a1 10.77.0.1 2; }
check '--filter that drops ICMP: TCP passes' filtered
check '… and ping does not' bash -c '! ping -c 3 -W 2 10.77.0.2'
check '… which stats tell' bash -c 'node src/cli/main.js stats | grep filterDrops'

held_to_address() {
	stop_backend USR2; start_backend --tap --match 'a*' --antispoof && until_true 60 ping -c 1 -W 1 10.77.0.2 &&
		xl network-detach a1 0 && vif_gone a1 && xenlab-domu attach --name a1 "$vif,ip=10.77.0.2" &&
		until_true 60 ping -c 1 -W 1 10.77.0.2 && ping_guest 10.77.0.2
}
check '--antispoof: a guest has a network with the address of its vif' held_to_address
from() { guest a1 "ip addr add $1/24 dev eth0; ping -q -c 2 -W 2 -I $1 10.77.0.1 | grep loss; ip addr del $1/24 dev eth0"; }
check '… and none with another one' bash -c "$(declare -f from guest); from 10.77.0.9 | tee /dev/stderr | grep '100% packet loss'"

through_device() { stop_backend USR2; XENSTORED_PATH=/dev/xen/xenbus start_backend --tap && until_true 60 ping -c 1 -W 1 10.77.0.2 && ping_guest 10.77.0.2; }
check 'XenStore through /dev/xen/xenbus, as in a driver domain' through_device
check '… where nothing holds the guest to its address' bash -c "$(declare -f from guest); from 10.77.0.9 | tee /dev/stderr | grep ' 0% packet loss'"
reattached() { xl network-detach a1 0 && vif_gone a1 && xenlab-domu attach --name a1 $vif && until_true 60 ping -c 1 -W 1 10.77.0.2 && ping_guest 10.77.0.2; }
check '… network-detach and network-attach' reattached

own_backend() {
	: > /tmp/own.out
	node examples/backend.js lib >/tmp/own.out 2>>/tmp/backend.err & backend=$!
	until_true 60 grep -q serving /tmp/own.out || return 1
	ip link set lib master xenbr0 up
}
by_library() { stop_backend USR2; own_backend && until_true 60 ping -c 1 -W 1 10.77.0.2 && ping_guest 10.77.0.2; }
check 'examples/backend.ts, a program that uses the library, takes the guest over' by_library
connected() { [ "$(xenstore-read "/local/domain/0/backend/vif/$(xl domid a1)/0/state")" = 4 ]; }
check '… as a port of its bridge, for which no script is run: the backend is Connected' until_true 60 connected
iperf3 -s -D -p 23 >/dev/null
no_telnet() { tcp a1 10.77.0.1 2 && ! guest a1 'iperf3 -c 10.77.0.1 -p 23 -t 1 --connect-timeout 3000'; }
check '… its filter drops TCP to port 23 and nothing else' no_telnet
counted() { until_true 60 grep '[1-9][0-9]* dropped' /tmp/own.out; tail -n 1 /tmp/own.out | grep '[1-9][0-9]* dropped'; }
check '… and it prints its counters' counted
second() {
	local status; node examples/backend.js lib >/tmp/second.out 2>&1; status=$?
	cat /tmp/second.out; [ $status = 1 ] && [ "$(wc -l </tmp/second.out)" = 1 ]
}
check 'a second one of the same bridge says why it cannot be, and ends' second
again() { kill -USR2 $backend; wait $backend || return 1; own_backend && until_true 60 connected && until_true 60 ping -c 1 -W 1 10.77.0.2; }
check 'SIGUSR2 ends it with status 0, and the next one goes on' again

through_socket() { stop_backend USR2; start_backend --tap && until_true 60 ping -c 1 -W 1 10.77.0.2; }
check 'through the socket again' through_socket
lost() {
	kill -9 "$(cat /run/xenstored.pid)"
	until_true 20 sh -c "! kill -0 $backend"
	wait $backend; local status=$?
	echo "status $status: $(grep 'xenstored is lost' /tmp/backend.err | tail -1)"; [ $status = 1 ]
}
check 'xenstored dies: the backend says so and ends' lost
cat /tmp/backend.err >&2
