package observe

import "github.com/grafana/grafana-foundation-sdk/go/units"

// onNode selects the node that was chosen.
const onNode = `node=~"$node"`

// nodeBoard is about one agent and its kernel.
func nodeBoard() board {
	return board{
		file: "node", title: "Selvage / Node",
		help:      "What the agent of a node does, and what is in its kernel.",
		variables: []variable{{name: "node", metric: "selvage_in_sync", single: true}},
		sections: []section{
			{"Now", nodeState()},
			{"Syncs", nodeSyncs()},
			{"Kernel", nodeKernel()},
			{"API server", nodeSource()},
			{"Process", nodeProcess()},
		},
	}
}

func nodeState() []panel {
	return []panel{
		{
			kind: number, title: "State", unit: units.Short, wide: 4, names: inSync(),
			help:    "Whether everything desired is in the kernel. If it is not, curl http://127.0.0.1:9470/readyz on the node says what is missing.",
			queries: []query{{`max(selvage_in_sync{` + onNode + `})`, ""}},
		},
		{
			kind: number, title: "Since the last sync", unit: units.Seconds, wide: 4, above: []limit{{900, orange}},
			help:    "A full comparison takes place every 5 minutes (--resync-interval), even if nothing changes. Longer than that: syncs fail, or the agent hangs.",
			queries: []query{{`time() - max(selvage_last_sync_timestamp_seconds{` + onNode + `})`, ""}},
		},
		{
			kind: number, title: "Since the API server answered", unit: units.Seconds, wide: 4, above: []limit{{300, orange}}, empty: "never",
			help:    "When the agent has last heard from the API server: about once a minute, while that answers. The agent goes on enforcing what it knows. See SelvageSourceNotConnected in the runbook.",
			queries: []query{{`time() - (max(selvage_source_last_contact_timestamp_seconds{` + onNode + `}) > 0)`, ""}},
		},
		{
			kind: number, title: "Pods without policy", unit: units.Short, wide: 4, above: bad(red),
			help:    "Pods of this node whose packets do not pass its hooks. An Event PodsNotEnforced on the Node says which, and why.",
			queries: []query{{`sum(selvage_unenforceable_pods{` + onNode + `})`, ""}},
		},
		{
			kind: number, title: "Conditions", unit: units.Short, wide: 4, above: bad(orange),
			help:    "Things that somebody should put right. kubectl describe node shows an Event for each that says what to do; the table beside the ruleset has their reasons.",
			queries: []query{{`sum(selvage_conditions{` + onNode + `})`, ""}},
		},
		{
			kind: number, title: "Version", unit: units.String, wide: 4, labelled: true,
			help:    "The agent's version. All nodes should have the same, but for the time of an update.",
			queries: []query{{`selvage_build_info{` + onNode + `}`, "{{version}}"}},
		},
	}
}

func nodeSyncs() []panel {
	return []panel{
		{
			kind: graph, title: "Time until in force, 99th percentile", unit: units.Seconds, wide: 8, above: []limit{{1, red}},
			help:    "From the arrival of an event at the agent until the kernel enforces it, by the kind of object. Events wait while syncs fail: compare with errors.",
			queries: []query{{programming(`{` + onNode + `}`), "{{kind}}"}},
		},
		{
			kind: graph, title: "Duration of a sync", unit: units.Seconds, wide: 8,
			help: "Compiling the changes and sending them to the kernel: half of the syncs, and 99 of 100, take no longer. It grows with the size of changes, not with that of the cluster.",
			queries: []query{
				{`histogram_quantile(0.5, sum by (le) (rate(selvage_sync_duration_seconds_bucket{` + onNode + `}[$__rate_interval])))`, "50 %"},
				{`histogram_quantile(0.99, sum by (le) (rate(selvage_sync_duration_seconds_bucket{` + onNode + `}[$__rate_interval])))`, "99 %"},
			},
		},
		{
			kind: graph, title: "Syncs, transactions and messages", unit: units.CountsPerSecond, wide: 8,
			help: "How often something was put in force, in how many transactions, and of how many netlink messages these were made.",
			queries: []query{
				{`sum(rate(selvage_sync_duration_seconds_count{` + onNode + `}[$__rate_interval]))`, "syncs"},
				{`sum(rate(selvage_sync_batches_total{` + onNode + `}[$__rate_interval]))`, "transactions"},
				{`sum(rate(selvage_sync_messages_total{` + onNode + `}[$__rate_interval]))`, "messages"},
			},
		},
		{
			kind: graph, title: "Failed syncs", unit: units.CountsPerSecond, wide: 8, above: bad(red),
			help: "Syncs that failed, by reason, and how often one was tried again. The agent's log has the kernel's error; see SelvageSyncErrors in the runbook.",
			queries: []query{
				{`sum by (reason) (rate(selvage_sync_errors_total{` + onNode + `}[$__rate_interval]))`, "{{reason}}"},
				{`sum(rate(selvage_sync_retries_total{` + onNode + `}[$__rate_interval]))`, "tried again"},
			},
		},
		{
			kind: graph, title: "Changes repaired", unit: units.CountsPerSecond, wide: 8, above: bad(orange),
			help: "What somebody else had changed in the tables or in pods' queues and the agent put right. The log says what; nft monitor on the node shows who, while it happens.",
			queries: []query{
				{`sum(rate(selvage_drift_repaired_total{` + onNode + `}[$__rate_interval]))`, "policy"},
				{`sum(rate(selvage_shaping_repaired_total{` + onNode + `}[$__rate_interval]))`, "bandwidth"},
			},
		},
		{
			kind: graph, title: "Restrictive changes", unit: units.CountsPerSecond, wide: 8,
			help: "Changes that deny something: each has every flow on the node judged once more. Reclaim errors are old generations that conntrack could not be rid of; they must stay at 0.",
			queries: []query{
				{`sum(rate(selvage_generation_changes_total{` + onNode + `}[$__rate_interval]))`, "changes"},
				{`sum(rate(selvage_reclaim_errors_total{` + onNode + `}[$__rate_interval]))`, "reclaim errors"},
			},
		},
	}
}

func nodeKernel() []panel {
	return []panel{
		{
			kind: graph, title: "Ruleset", unit: units.Short, wide: 8,
			help:    "What the agent has in the kernel. Signatures are the distinct lists of policies that isolate pods; pods with the same list share a chain. Elements grow with peers.",
			queries: []query{{`sum by (kind) (selvage_ruleset{` + onNode + `})`, "{{kind}}"}},
		},
		{
			kind: graph, title: "Denied packets", unit: units.PacketsPerSecond, wide: 8,
			help:    "Packets of this node's isolated pods that policy dropped. Who sends them: selvage drops -f on the node.",
			queries: []query{{deniedPackets(`{` + onNode + `}`), "{{namespace}} {{direction}}"}},
		},
		{
			kind: graph, title: "Denied packets in the log", unit: units.PacketsPerSecond, wide: 8,
			help:    logHelp(),
			queries: inTheLog(`{` + onNode + `}`),
		},
		{
			kind: states, title: "Bridges", unit: units.Short, wide: 8,
			help:    "Whether packets between two pods on a bridge meet the rules. If they do not, /readyz says why; br_netfilter is missing in most cases.",
			names:   map[int]name{0: {"not covered", red}, 1: {"covered", green}},
			queries: []query{{`max by (bridge) (selvage_bridge_covered{` + onNode + `})`, "{{bridge}}"}},
		},
		{
			kind: rows, title: "Conditions by reason", unit: units.Short, wide: 8, high: 7, order: "-count", empty: "There is none.",
			help:    "docs/troubleshooting.md says what each reason means, and an Event on the Node what to do.",
			queries: []query{{`sum by (reason) (selvage_conditions{` + onNode + `}) > 0`, ""}},
			columns: []column{{label: "reason"}, {query: 1, label: "count", above: bad(orange)}},
		},
		{
			kind: states, title: "Other policy engines", unit: units.Short, wide: 8,
			help:    "Engines that have rules on this node, or have left some behind: a connection passes only if all allow it. Remove the other one as docs/migrate.md says.",
			names:   map[int]name{0: {"not there", green}, 1: {"found", orange}},
			queries: []query{{`max by (engine) (selvage_other_policy_engine{` + onNode + `})`, "{{engine}}"}},
		},
	}
}

func nodeSource() []panel {
	return []panel{
		{
			kind: states, title: "API server answers", unit: units.Short, wide: 12,
			help:    "Whether the last list or watch of a kind succeeded. Meanwhile the agent goes on enforcing what it knows. The log has the error.",
			names:   map[int]name{0: {"no answer", red}, 1: {"answers", green}},
			queries: []query{{`max by (kind) (selvage_source_connected{` + onNode + `})`, "{{kind}}"}},
		},
		{
			kind: graph, title: "Failed lists and watches", unit: units.CountsPerSecond, wide: 12, high: 7, above: bad(orange),
			help:    "By kind and cause. forbidden: apply the ClusterRole of deploy/ anew. unanswered: look at the API server, and at the network between it and the node. The log has the error.",
			queries: []query{{`sum by (kind, cause) (rate(selvage_source_errors_total{` + onNode + `}[$__rate_interval]))`, "{{kind}}: {{cause}}"}},
		},
	}
}

func nodeProcess() []panel {
	return []panel{
		{
			kind: graph, title: "Memory", unit: units.BytesIEC, wide: 8,
			help: "Resident memory, and what of it are objects of the program. It grows with the cluster's pods and policies, and must stay below the container's limit.",
			queries: []query{
				{`max(process_resident_memory_bytes{job="selvage", ` + onNode + `})`, "resident"},
				{`max(go_memstats_heap_inuse_bytes{job="selvage", ` + onNode + `})`, "heap"},
			},
		},
		{
			kind: graph, title: "Processor time", unit: units.PercentUnit, wide: 8,
			help:    "Share of one core. It is near 0 while nothing changes; if not, compare with syncs and with what is repaired.",
			queries: []query{{`sum(rate(process_cpu_seconds_total{job="selvage", ` + onNode + `}[$__rate_interval]))`, "agent"}},
		},
		{
			kind: graph, title: "Goroutines and open files", unit: units.Short, wide: 8,
			help: "Both must be steady. One that grows for hours is a mistake in the program: please report it.",
			queries: []query{
				{`max(go_goroutines{job="selvage", ` + onNode + `})`, "goroutines"},
				{`max(process_open_fds{job="selvage", ` + onNode + `})`, "open files"},
			},
		},
	}
}
