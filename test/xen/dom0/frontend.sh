# Our frontend in dom0, for a vif of dom0's own: against our backend, then against the kernel's.
. test/xen/dom0/lib.sh
modprobe tun
cat > /tmp/add-vif <<'S'
front=/local/domain/0/device/vif/0 back=/local/domain/0/backend/vif/0/0
xenstore-write $back/frontend-id 0 $back/frontend $front $back/online 1 $back/handle 0 $back/mac 00:16:3e:01:02:03 \
	$back/script /bin/true $back/hotplug-status connected \
	$front/backend-id 0 $front/backend $back $front/handle 0 $front/mac 00:16:3e:01:02:03 $front/state 1 $back/state 1
S
start_frontend() {
	node src/cli/main.js frontend >/tmp/frontend.out 2>/tmp/frontend.err & frontend=$!
	until_true 60 grep -q ready /tmp/frontend.out && until_true 30 test -e /sys/class/net/pvnet0
}
# The TAP moves to a namespace, so that packets do take the long way.
face() { ip netns add face; ip link set pvnet0 netns face && ip -n face addr add 10.78.0.2/24 dev pvnet0 && ip -n face link set pvnet0 up; }
run() {
	bash /tmp/add-vif
	check "our frontend connects to $1" start_frontend || { cat /tmp/frontend.err; return 1; }
	face
	until_true 20 test "$(xenstore-read /local/domain/0/device/vif/0/state)" = 4
	until_true 20 test -e /sys/class/net/vif0.0
	ip addr add 10.78.0.1/24 dev vif0.0; ip link set vif0.0 up
	check "ping through our frontend and $1" ping_guest 10.78.0.2
	iperf3 -s -D -B 10.78.0.1 -I /tmp/iperf.pid; sleep 1
	check "TCP our frontend → $1" bash -c '. test/xen/dom0/lib.sh; ip netns exec face iperf3 -c 10.78.0.1 -t 5 -f m | mbits | grep .'
	check "TCP $1 → our frontend" bash -c '. test/xen/dom0/lib.sh; ip netns exec face iperf3 -c 10.78.0.1 -t 5 -f m -R | mbits | grep .'
	kill "$(tr -d '\0' < /tmp/iperf.pid)"
	kill -TERM $frontend; wait $frontend
	check "our frontend closes" test "$(xenstore-read /local/domain/0/device/vif/0/state)" = 6
	cat /tmp/frontend.err >&2
	ip netns del face
	xenstore-rm /local/domain/0/device/vif; xenstore-rm /local/domain/0/backend/vif
}
start_backend --tap || exit 1
run 'our backend'
stop_backend TERM
sleep 1
rm -f /etc/modprobe.d/no-netback.conf; modprobe xen-netback
run 'the kernel’s xen-netback'
cat /tmp/backend.err >&2
