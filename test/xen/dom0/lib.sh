# Helpers of the scenarios; sourced in dom0 with pvnet's files, unpacked from the share, as the working directory.
pvnet() { node src/cli/main.js "$@"; }
# A line for the report: RESULT <tab> ok|FAIL|- <tab> what <tab> detail
result() { printf 'RESULT\t%s\t%s\t%s\n' "$1" "$2" "$3"; }
# check WHAT COMMAND...: ok when the command succeeds; the last line of its output is the detail. Runs in this shell,
# whose variables the command may set.
check() {
	local what=$1 rc last; shift
	"$@" >/tmp/check.out 2>&1; rc=$?
	last=$(grep -a . /tmp/check.out | tail -n 1)
	if [ $rc = 0 ]; then result ok "$what" "$last"
	else result FAIL "$what" "status $rc: $last"; cat /tmp/check.out >&2; fi
	return $rc
}
# until_true SECONDS COMMAND...
until_true() {
	local end=$((SECONDS + $1)); shift
	until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}
start_backend() {
	: > /tmp/backend.out
	node src/cli/main.js backend "$@" >/tmp/backend.out 2>>/tmp/backend.err &
	backend=$!
	until_true 60 grep -q ready /tmp/backend.out || { cat /tmp/backend.err >&2; return 1; }
}
stop_backend() { kill "-$1" "$backend"; wait "$backend"; }
guest() { local name=$1; shift; xenlab-domu exec --name "$name" --timeout 300 "$@"; }
# vif_gone GUEST: waits until the guest's kernel has let go of a detached vif. Linux's netfront waits in its removal for
# the old backend's Closed or absence; when a vif of the same number is attached first, it waits for ever.
vif_gone() { until_true 60 guest "$1" '! test -e /sys/class/net/eth0'; }
ping_guest() { ping -q -c 10 -i 0.2 -W 5 "$1" | tail -n 1 | grep rtt; }
mbits() { grep receiver | sed 's/.* \([0-9.]* [MK]bits\/sec\).*/\1/'; }
# tcp GUEST ADDRESS SECONDS [-R]
tcp() { local name=$1 to=$2 secs=$3; shift 3; guest "$name" "iperf3 -c $to -t $secs -f m $*" | mbits | grep .; }
# counters NAME...: counters of the backend's calls into Xen
counters() {
	local name; pvnet stats xen --json > /tmp/stats.json || return
	for name; do sed -n "s/.*\"$name\": \([0-9]*\),\{0,1\}$/\1/p" /tmp/stats.json; done | tr '\n' ' '
}
# What the backend holds of Xen.
held() { local m e; read -r m e <<<"$(counters grantsMapped eventChannels)"; echo "$m grants mapped, $e event channels"; }
