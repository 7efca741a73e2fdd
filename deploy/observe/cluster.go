package observe

import "github.com/grafana/grafana-foundation-sdk/go/units"

// inSync is what values of selvage_in_sync mean.
func inSync() map[int]name { return map[int]name{0: {"not in sync", red}, 1: {"in sync", green}} }

// deniedPackets are the denied packets per second of the chosen series, as in
// {node="n1"}. The pods of unknown addresses get a name.
func deniedPackets(of string) string {
	return `label_replace(sum by (namespace, direction) (rate(selvage_denied_packets_total` + of + `[$__rate_interval])), "namespace", "(unknown)", "namespace", "")`
}

// programming is the 99th percentile of the time from an event until the kernel enforces
// it, by kind of object. Kinds without an event have no number, and are left out.
func programming(of string) string {
	return `histogram_quantile(0.99, sum by (le, kind) (rate(selvage_policy_programming_duration_seconds_bucket` + of + `[$__rate_interval]))) >= 0`
}

// clusterBoard is where one begins: is all well, and if not, where.
func clusterBoard() board {
	return board{
		file: "cluster", title: "Selvage / Cluster",
		help: "Is what the policies say in force on every node, and what do they deny?",
		sections: []section{
			{"Is everything in force?", clusterState()},
			{"Policy", []panel{
				{
					kind: graph, title: "Denied packets", unit: units.PacketsPerSecond, wide: 8,
					help:    "Packets of isolated pods that policy dropped, by the pod's namespace and the direction from its view; (unknown) are addresses that no pod is known to have. Who sends them: selvage drops -f -n NAMESPACE. The dashboard Policy shows which policies isolate the pods.",
					queries: []query{{deniedPackets(""), "{{namespace}} {{direction}}"}},
				},
				{
					kind: graph, title: "Allowed connections", unit: units.CountsPerSecond, wide: 8,
					help:    "New connections that the rules of policies let through, and those judged again after a restrictive change. One that several policies allow counts for each of them. Connections of pods that nothing isolates are not counted.",
					queries: []query{{`sum by (namespace, direction) (rate(selvage_policy_allowed_connections_total[$__rate_interval]))`, "{{namespace}} {{direction}}"}},
				},
				{
					kind: graph, title: "Time until in force, 99th percentile", unit: units.Seconds, wide: 8, above: []limit{{1, red}},
					help:    "From the arrival of an event at the agent until the kernel enforces it, by the kind of object. Where it stays above a second, the dashboard Node shows whether syncs fail or are large.",
					queries: []query{{programming(""), "{{kind}}"}},
				},
			}},
			{"Nodes", append([]panel{nodesTable()}, clusterLoad()...)},
		},
	}
}

func clusterState() []panel {
	return []panel{
		{
			kind: number, title: "Nodes", unit: units.Short, wide: 4,
			help:    "Nodes of the cluster, as the agents know them.",
			queries: []query{{`max(selvage_objects{kind="nodes"})`, ""}},
		},
		{
			kind: number, title: "Nodes not in sync", unit: units.Short, wide: 4, above: bad(red),
			help:    "Nodes that have no agent, or whose kernel lacks something that is desired. What was in force there still is, but changes are not. See the table below, and SelvageNotInSync in the runbook.",
			queries: []query{{`max(selvage_objects{kind="nodes"}) - (count(selvage_in_sync == 1) or vector(0))`, ""}},
		},
		{
			kind: number, title: "Agents that do not answer", unit: units.Short, wide: 4, above: bad(red),
			help:    "Agents that Prometheus knows of and cannot scrape. Their nodes go on enforcing what they have. See SelvageAgentDown in the runbook.",
			queries: []query{{`count(up{job="selvage"} == 0) or vector(0)`, ""}},
		},
		{
			kind: number, title: "Pods without policy", unit: units.Short, wide: 4, above: bad(red),
			help:    "Pods whose packets do not pass the node's hooks, so that nothing is enforced for them. kubectl describe node shows an Event PodsNotEnforced that says which, and why.",
			queries: []query{{`sum(selvage_unenforceable_pods)`, ""}},
		},
		{
			kind: number, title: "Nodes with uncovered bridges", unit: units.Short, wide: 4, above: bad(red),
			help:    "Nodes where packets between two pods on a bridge may pass without meeting the rules. /readyz of the agent says why; br_netfilter is missing in most cases.",
			queries: []query{{`sum(selvage_same_bridge_uncovered)`, ""}},
		},
		{
			kind: number, title: "Firing alerts", unit: units.Short, wide: 4, above: bad(orange),
			help:    "Alerts of Selvage that fire now. The table below names them; docs/runbook.md says what to do about each.",
			queries: []query{{`count(ALERTS{alertname=~"Selvage.+", alertstate="firing"}) or vector(0)`, ""}},
		},
		{
			kind: states, title: "In sync", unit: units.Short, wide: 12, names: inSync(),
			help:    "Whether everything desired is in the kernel of each node. A short gap after the start of an agent is normal: it has to read the cluster's objects first.",
			queries: []query{{`max by (node) (selvage_in_sync)`, "{{node}}"}},
		},
		{
			kind: rows, title: "Alerts", unit: units.Short, wide: 12, high: 7, empty: "No alert fires.", order: "severity",
			help:    "Alerts of Selvage that fire now. docs/runbook.md has a section for each.",
			queries: []query{{`max by (alertname, severity, node, namespace) (ALERTS{alertname=~"Selvage.+", alertstate="firing"})`, ""}},
			columns: []column{{label: "alertname"}, {label: "severity"}, {label: "node"}, {label: "namespace"}},
		},
	}
}

func nodesTable() panel {
	return panel{
		kind: rows, title: "Nodes", unit: units.Short, wide: 24, order: "node",
		help: "All nodes whose agent was scraped. A click on a node's name leads to its dashboard. Changes repaired are those that somebody else had made in the kernel.",
		queries: []query{
			{`max by (node) (selvage_in_sync)`, ""},
			{`max by (node, version) (selvage_build_info)`, ""},
			{`sum by (node) (selvage_conditions)`, ""},
			{`sum by (node) (selvage_ruleset{kind="rules"})`, ""},
			{`sum by (node) (selvage_ruleset{kind="elements"})`, ""},
			{`sum by (node) (rate(selvage_denied_packets_total[$__rate_interval]))`, ""},
			{`round(sum by (node) (increase(selvage_sync_errors_total[1h])))`, ""},
			{`round(sum by (node) (increase(selvage_drift_repaired_total[1h])))`, ""},
			{`sum by (node) (selvage_shaped_pods)`, ""},
			{`sum by (node) (process_resident_memory_bytes{job="selvage"})`, ""},
		},
		columns: []column{
			{label: "node", link: "/d/selvage-node?var-node=${__value.text}"},
			{query: 1, label: "state", names: inSync()},
			{label: "version"},
			{query: 3, label: "conditions", above: bad(orange)},
			{query: 4, label: "rules"},
			{query: 5, label: "elements"},
			{query: 6, label: "denied", unit: units.PacketsPerSecond},
			{query: 7, label: "sync errors in 1 h", above: bad(orange)},
			{query: 8, label: "repaired in 1 h", above: bad(orange)},
			{query: 9, label: "shaped pods"},
			{query: 10, label: "memory", unit: units.BytesIEC},
		},
	}
}

func clusterLoad() []panel {
	return []panel{
		{
			kind: graph, title: "Memory of the agents", unit: units.BytesIEC, wide: 8,
			help:    "Resident memory. The manifests limit it to 256 MiB; where it comes near, give more (resources.limits.memory): it grows with the cluster's pods.",
			queries: []query{{`max by (node) (process_resident_memory_bytes{job="selvage"})`, "{{node}}"}},
		},
		{
			kind: graph, title: "Processor time of the agents", unit: units.PercentUnit, wide: 8,
			help:    "Share of one core. An agent sleeps between events: one that is busy all the time has many changes to put in force, or repairs the same thing again and again.",
			queries: []query{{`sum by (node) (rate(process_cpu_seconds_total{job="selvage"}[$__rate_interval]))`, "{{node}}"}},
		},
		{
			kind: graph, title: "Objects known", unit: units.Short, wide: 8,
			help:    "Objects of the cluster that the agents know, by kind. All agents should know the same: the dashboard Node shows when each has last heard from the API server.",
			queries: []query{{`max by (kind) (selvage_objects{kind!="local_pods"})`, "{{kind}}"}},
		},
	}
}
