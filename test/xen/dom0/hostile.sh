# A frontend that breaks the protocol, on the same backend as a guest at work.
. test/xen/dom0/lib.sh
modprobe tun
echo 4096 > /sys/module/xen_gntalloc/parameters/limit
start_backend --bridge pvbr0 || exit 1
ip addr del 10.77.0.1/24 dev xenbr0; ip addr add 10.77.0.1/24 dev pvbr0; ip link set pvbr0 up
check 'a guest' xenlab-domu create --ip 10.77.0.2/24 --vif bridge=pvbr0,script=vif-xenlab || exit 1
check 'ping before' ping_guest 10.77.0.2
before=$(held)
timeout 240 node test/xen/dom0/hostile.mjs 2>/tmp/hostile.err || { result FAIL 'the hostile frontend ends' "$(tail -1 /tmp/hostile.err)"; cat /tmp/hostile.err >&2; }
same() { local after; after=$(held); echo "$after"; [ "$after" = "$before" ]; }
check 'the backend has what it had before' same
check 'ping after' ping_guest 10.77.0.2
check 'lines in the log' bash -c 'wc -l < /tmp/backend.err'
check 'SIGTERM ends the backend' stop_backend TERM
cat /tmp/backend.err >&2
