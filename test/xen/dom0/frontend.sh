# Our frontend in dom0, for a vif of dom0's own: against our backend, then against the kernel's.
. test/xen/dom0/lib.sh
modprobe tun
# Each run has a vif of its own, number $1.
add_vif() {
	local front=/local/domain/0/device/vif/$1 back=/local/domain/0/backend/vif/0/$1 mac=00:16:3e:01:02:0$1
	xenstore-write $back/frontend-id 0 $back/frontend $front $back/online 1 $back/handle $1 $back/mac $mac \
		$back/script /bin/true $back/hotplug-status connected \
		$front/backend-id 0 $front/backend $back $front/handle $1 $front/mac $mac $front/state 1 $back/state 1
}
remove_vif() { xenstore-rm /local/domain/0/backend/vif/0/$1; xenstore-rm /local/domain/0/device/vif/$1; }
start_frontend() {
	: > /tmp/frontend.out
	node src/cli/main.js frontend >/tmp/frontend.out 2>/tmp/frontend.err & frontend=$!
	until_true 60 grep -q ready /tmp/frontend.out && until_true 60 test -e /sys/class/net/pvnet$1
}
state() { xenstore-read /local/domain/0/device/vif/$1/state; }
has_state() { [ "$(state $1)" = $2 ]; }
# The TAP moves to a namespace, so that packets do take the long way.
face() { ip netns add face; ip link set pvnet$1 netns face && ip -n face addr add 10.78.$1.2/24 dev pvnet$1 && ip -n face link set pvnet$1 up; }
iperf() { ip netns exec face iperf3 -c 10.78.$1.1 -t ${SECS:-5} -f m $2 | mbits | grep .; }
run() {
	local what=$1 n=$2
	add_vif $n
	check "our frontend connects to $what" start_frontend $n || { cat /tmp/frontend.err >&2; return 1; }
	face $n
	check "both ends of $what are Connected" until_true 30 has_state $n 4
	until_true 20 test -e /sys/class/net/vif0.$n
	ip addr add 10.78.$n.1/24 dev vif0.$n; ip link set vif0.$n up
	until_true 20 ping -c 1 -W 1 10.78.$n.2
	check "ping through our frontend and $what" ping_guest 10.78.$n.2
	iperf3 -s -D -B 10.78.$n.1 -I /tmp/iperf.pid; sleep 1
	check "TCP our frontend → $what" iperf $n
	check "TCP $what → our frontend" iperf $n -R
	kill "$(tr -d '\0' < /tmp/iperf.pid)"
	kill -TERM $frontend; wait $frontend
	check "our frontend closes" has_state $n 6
	cat /tmp/frontend.err >&2
	ip netns del face
	remove_vif $n
}
start_backend --tap || exit 1
run 'our backend' 0
stop_backend TERM
sleep 1
rm -f /etc/modprobe.d/no-netback.conf; modprobe xen-netback
run 'the kernel’s xen-netback' 1
cat /tmp/backend.err >&2
dmesg | tail -5 >&2
