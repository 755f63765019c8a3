# What happens to a PV guest's vif when the backend, the guest or the toolstack does something sudden; after each, what
# is held must be what was held before.
. test/xen/dom0/lib.sh
modprobe tun
iperf3 -s -D >/dev/null
start_backend --tap || exit 1
channels() { /usr/lib/xen-4.17/bin/lsevtchn 0 | wc -l; }
nodes() { xenstore-ls /local/domain/0/backend/vif 2>/dev/null | wc -l; }
before="$(held), $(nodes) nodes in XenStore" channels_before=$(channels)
check 'a PV guest' xenlab-domu create --vif bridge=xenbr0 || { cat /tmp/backend.err >&2; exit 1; }
answers() { until_true 120 ping -c 1 -W 1 10.77.0.2 && ping_guest 10.77.0.2; }
answers >/dev/null
with_guest=$(held)
same_held() { local after; after=$(held); echo "$after"; [ "$after" = "$with_guest" ]; }
nothing_left() { local after; after="$(held), $(nodes) nodes in XenStore"; echo "$after"; [ "$after" = "$before" ] && ! ls /sys/class/net | grep '^vif'; }
same_channels() { echo "$(channels) event channels in dom0, $channels_before before the guest"; [ "$(channels)" -le "$channels_before" ]; }
traffic() { guest domu "iperf3 -c 10.77.0.1 -t 8 >/tmp/iperf.log 2>&1 &" >/dev/null; sleep 3; }

killed() { traffic; kill -9 $backend; wait $backend 2>/dev/null; start_backend --tap && answers && sleep 5 && tcp domu 10.77.0.1 2; }
for i in 1 2 3; do
	check "kill -9 under traffic and start ($i of 3): the guest goes on by itself" killed
	check '… with as much held as before' same_held
done
hand_over() { traffic; stop_backend USR2; start_backend --tap && answers; }
check 'SIGUSR2 under traffic and start: the guest stays connected' hand_over
check '… with as much held as before' same_held
check 'pvnet vif-list' pvnet vif-list
check 'pvnet stats' pvnet stats
check 'pvnet dump' pvnet dump

reboots() {
	local id; id=$(xl domid domu); xenlab-domu exec --timeout 5 'reboot -f'
	until_true 60 sh -c "[ \"\$(xl domid domu)\" -gt $id ]" && answers && tcp domu 10.77.0.1 2
}
check 'the guest reboots' reboots
check '… with as much held as before' same_held
save() { xl save domu /tmp/saved >/dev/null && xl restore /tmp/saved >/dev/null && rm /tmp/saved && answers && tcp domu 10.77.0.1 2; }
check 'xl save and restore' save
check '… with as much held as before' same_held
destroyed() { traffic; xenlab-domu destroy && until_true 15 nothing_left; }
check 'xl destroy under traffic' destroyed
check 'nothing is left of it' nothing_left
check '… in Xen either' same_channels
check 'SIGTERM ends the backend' stop_backend TERM
cat /tmp/backend.err >&2
