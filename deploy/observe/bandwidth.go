package observe

import "github.com/grafana/grafana-foundation-sdk/go/units"

// ofShaped selects the shaped pods that were chosen.
const ofShaped = onNode + `, namespace=~"$namespace"`

// bandwidthBoard is about pods that are held to a limit.
func bandwidthBoard() board {
	return board{
		file: "bandwidth", title: "Selvage / Bandwidth",
		help: "Pods that are held to a bandwidth, and those that should be. Directions are the pods': ingress is what they get, egress what they send.",
		variables: []variable{
			{name: "node", metric: "selvage_in_sync"},
			{name: "namespace", metric: "selvage_bandwidth_bytes_total"},
		},
		sections: []section{
			{"Is every limit in force?", bandwidthState()},
			{"Traffic of pods with a limit", bandwidthTraffic()},
			{"Queues", bandwidthQueues()},
		},
	}
}

// canBeRead is what values of metrics about reading counters mean.
func canBeRead() map[int]name { return map[int]name{0: {"no", red}, 1: {"yes", green}} }

func bandwidthState() []panel {
	return []panel{
		{
			kind: number, title: "Shaped pods", unit: units.Short, wide: 4,
			help:    "Pods that are held to a limit in at least one direction.",
			queries: []query{{`sum(selvage_shaped_pods{` + onNode + `})`, ""}},
		},
		{
			kind: number, title: "Pods whose limit is not in force", unit: units.Short, wide: 4, above: bad(orange),
			help:    "kubectl describe pod shows an Event BandwidthNotShaped that says why. The table below has the reasons; docs/troubleshooting.md says what to do about each.",
			queries: []query{{`sum(selvage_unshaped_pods{` + onNode + `})`, ""}},
		},
		{
			kind: number, title: "Annotations that cannot be used", unit: units.Short, wide: 4, above: bad(orange),
			help:    "Of pods and their namespaces. The last usable value stays in force, or else the default. An Event InvalidBandwidth on the object says what would be accepted.",
			queries: []query{{`sum(selvage_invalid_bandwidth_annotations{` + onNode + `})`, ""}},
		},
		{
			kind: number, title: "Refusals in 1 h", unit: units.Short, wide: 4, above: bad(orange),
			help:    "How often the kernel refused to shape a pod. Each is tried again. The agent's log has the kernel's error.",
			queries: []query{{`round(sum(increase(selvage_shaping_errors_total{` + onNode + `}[1h])))`, ""}},
		},
		{
			kind: number, title: "Repairs in 1 h", unit: units.Short, wide: 4, above: bad(orange),
			help:    "How often somebody else had changed the queues of a pod. The log names the netlink port, which is the process in most cases.",
			queries: []query{{`round(sum(increase(selvage_shaping_repaired_total{` + onNode + `}[1h])))`, ""}},
		},
		{
			kind: number, title: "Counters can be read", unit: units.Short, wide: 4, names: canBeRead(),
			help:    "Whether the kernel's counters of all chosen nodes could be read at the last scrape. If not, the graphs below lack data; the agent's log has the error.",
			queries: []query{{`min(selvage_bandwidth_scrape_success{` + onNode + `})`, ""}},
		},
	}
}

func bandwidthTraffic() []panel {
	rate := func(direction string) []query {
		selector := `direction="` + direction + `", ` + ofShaped
		return []query{
			{`8 * sum by (namespace) (rate(selvage_bandwidth_bytes_total{` + selector + `}[$__rate_interval]))`, "{{namespace}}"},
			{`8 * sum by (namespace) (selvage_bandwidth_limit_bytes_per_second{` + selector + `})`, "{{namespace}}, limits added up"},
		}
	}
	return []panel{
		{
			kind: graph, title: "What pods get (ingress)", unit: units.BitsPerSecondSI, wide: 8,
			help:    "In whole frames, and what the pods are limited to, added up.",
			queries: rate("ingress"),
		},
		{
			kind: graph, title: "What pods send (egress)", unit: units.BitsPerSecondSI, wide: 8,
			help:    "In whole frames, and what the pods are limited to, added up.",
			queries: rate("egress"),
		},
		{
			kind: bars, title: "Share of the limits in use", unit: units.PercentUnit, wide: 8, high: 8, max: 1, above: []limit{{0.8, yellow}, {0.95, orange}},
			help:    "Traffic as a share of the limits, by namespace and direction. Near 100 % pods want more than they may have: raise their annotations if they should have it.",
			queries: []query{{`sum by (namespace, direction) (rate(selvage_bandwidth_bytes_total{` + ofShaped + `}[$__rate_interval])) / sum by (namespace, direction) (selvage_bandwidth_limit_bytes_per_second{` + ofShaped + `})`, "{{namespace}} {{direction}}"}},
		},
	}
}

func bandwidthQueues() []panel {
	by := func(metric string) []query {
		return []query{{`sum by (namespace, direction) (rate(` + metric + `{` + ofShaped + `}[$__rate_interval]))`, "{{namespace}} {{direction}}"}}
	}
	return []panel{
		{
			kind: graph, title: "Waiting", unit: units.BytesIEC, wide: 8,
			help:    "Bytes in the queues. A queue holds 20 ms of its rate (30 KiB at least): one that is always full belongs to a pod that wants more than its limit.",
			queries: []query{{`sum by (namespace, direction) (selvage_bandwidth_backlog_bytes{` + ofShaped + `})`, "{{namespace}} {{direction}}"}},
		},
		{
			kind: graph, title: "Packets", unit: units.PacketsPerSecond, wide: 8,
			help:    "Packets that shaped pods got and sent.",
			queries: by("selvage_bandwidth_packets_total"),
		},
		{
			kind: graph, title: "Dropped since the queue was full", unit: units.PacketsPerSecond, wide: 8,
			help:    "A few are how TCP learns of the limit. Many, for long: the sender does not slow down, as with UDP.",
			queries: by("selvage_bandwidth_drops_total"),
		},
		{
			kind: graph, title: "Times that a packet had to wait", unit: units.CountsPerSecond, wide: 8, high: 7,
			help:    "How often the queue held something back. 0: the limit does nothing now.",
			queries: by("selvage_bandwidth_overlimits_total"),
		},
		{
			kind: rows, title: "Limits that are not in force, by reason", unit: units.Short, wide: 16, high: 7, order: "-pods", empty: "There is none.",
			help:    "docs/troubleshooting.md says what to do about each reason.",
			queries: []query{{`sum by (node, reason) (selvage_unshaped_pods{` + onNode + `}) > 0`, ""}},
			columns: []column{
				{label: "node", link: "/d/selvage-node?var-node=${__value.text}"}, {label: "reason"}, {query: 1, label: "pods", above: bad(orange)},
			},
		},
	}
}
