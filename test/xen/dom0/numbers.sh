# The same measurements with our backend and with the kernel's, one after the other in one boot.
. test/xen/dom0/lib.sh
secs=${SECS:-3}
modprobe tun
iperf3 -s -D >/dev/null
vif() { echo "bridge=$1,script=vif-xenlab"; }
# Grant operations are counted where both backends make them: in the kernel, on their way to the hypervisor.
tracing=/sys/kernel/tracing
[ -d $tracing/events ] || mount -t tracefs tracefs $tracing
count_calls() {
	echo "p:$1 $2 count=%$3:u32" >> $tracing/kprobe_events && echo 'hist:keys=common_cpu:vals=count' > $tracing/events/kprobes/$1/trigger
}
count_calls copy gnttab_batch_copy si && count_calls map gnttab_map_refs cx && count_calls unmap gnttab_unmap_refs cx || result FAIL 'kprobes on grant operations' ''
# Calls and operations of copy, map and unmap so far: six numbers.
grant_ops() {
	local probe
	for probe in copy map unmap; do
		sed -n 's/.*hitcount: *\([0-9]*\).* count: *\([0-9]*\).*/\1 \2/p' $tracing/events/kprobes/$probe/hist | awk '{ c += $1; n += $2 } END { printf "%d %d ", c, n }'
	done
}
dom0_seconds() { xl list 0 | awk 'END { print $6 }'; }
packets() { guest a 'cat /sys/class/net/eth0/statistics/[rt]x_packets' | awk '/^[0-9]/ { n += $1 } END { print n }'; }
guests() {
	xenlab-domu create --name a --ip 10.77.0.2/24 --vif "$(vif $1)" && xenlab-domu create --name b --ip 10.77.0.3/24 --vif "$(vif $1)" &&
		guest b 'iperf3 -s -D'
}
no_guests() { xenlab-domu destroy --name a; xenlab-domu destroy --name b; }
# What JavaScript compiles late is compiled then.
warm_up() { local i; for i in 1 2; do tcp a "$1" $secs; [ "$1" = 10.77.0.3 ] || tcp a "$1" $secs -R; done >/dev/null; }
# measure BACKEND WHAT ADDRESS [-R]
declare -A mbit ops
measure() {
	local backend=$1 what=$2 to=$3 before after p0 p1 c0 c1 rate each text; shift 3
	p0=$(packets); before=$(grant_ops); c0=$(dom0_seconds)
	rate=$(tcp a $to $secs "$@")
	c1=$(dom0_seconds); after=$(grant_ops); p1=$(packets)
	mbit[$backend $what]=${rate%% *}
	read -r each text <<<"$(echo "$before $after $p0 $p1 $c0 $c1 ${rate%% *} $secs" | awk '{
		p = $14 - $13; calls = $7 - $1 + $9 - $3 + $11 - $5; copies = $8 - $2; maps = $10 - $4; unmaps = $12 - $6; gb = $17 * $18 / 8000
		printf "%.2f %.1f packets/s of %.1f KB; a packet: %.2f grant operations (%.2f copies, %.2f maps, %.2f unmaps) by %.2f hypercalls; dom0: %.1f CPU s/GB", (copies + maps + unmaps) / p, p / $18, gb * 1e6 / p, (copies + maps + unmaps) / p, copies / p, maps / p, unmaps / p, calls / p, ($16 - $15) / gb }')"
	ops[$backend $what]=$each
	result - "$backend: TCP $what" "$rate; $text"
}
ping_time() { result - "$1: ping, ms (min/avg/max/mdev)" "$(ping -q -c 20 -i 0.2 10.77.0.2 | tail -1 | sed 's/.*= //')"; }
events() {
	local n r u p; read -r n r u <<<"$(counters notifies reads unmaskWrites)"; p=$(packets)
	echo "$n $r $u $p"
}
pvnet_events() {
	result - "pvnet: events, $1" "$(echo "$2 $(events)" | awk '{ p = $8 - $4; printf "a packet: %.2f notifies, %.2f reads, %.2f unmasks", ($5 - $1) / p, ($6 - $2) / p, ($7 - $3) / p }')"
}
start_backend --tap || exit 1
guests xenbr0 || exit 1
warm_up 10.77.0.1
before=$(events)
ping_time pvnet
measure pvnet 'guest → dom0' 10.77.0.1
measure pvnet 'dom0 → guest' 10.77.0.1 -R
pvnet_events 'guest ↔ dom0' "$before"
no_guests; stop_backend TERM
start_backend --bridge pvbr0 || exit 1
guests pvbr0 || exit 1
warm_up 10.77.0.3
before=$(events)
measure pvnet 'guest → guest' 10.77.0.3
pvnet_events 'guest → guest' "$before"
no_guests; stop_backend TERM
rm -f /etc/modprobe.d/no-netback.conf; modprobe xen-netback
guests xenbr0 || exit 1
ping_time kernel
measure kernel 'guest → dom0' 10.77.0.1
measure kernel 'dom0 → guest' 10.77.0.1 -R
measure kernel 'guest → guest' 10.77.0.3
# goal WHAT SHARE: our throughput in the kernel's
goal() {
	echo "${mbit[pvnet $1]} ${mbit[kernel $1]} $2 ${ops[pvnet $1]} ${ops[kernel $1]}" | awk '{ r = $1 / $2
		printf "%.2f of the throughput (goal %.1f), %.2f of the grant operations a packet\n", int(r * 100) / 100, $3, $4 / $5; exit r < $3 || $4 > $5 }'
}
for row in 'guest → dom0:0.5' 'dom0 → guest:0.5' 'guest → guest:1.0'; do check "pvnet in proportion to the kernel, ${row%:*}" goal "${row%:*}" "${row##*:}"; done
