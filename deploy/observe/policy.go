package observe

import "github.com/grafana/grafana-foundation-sdk/go/units"

// ofPolicies selects the policies that were chosen.
const ofPolicies = `namespace=~"$namespace", policy=~"$policy"`

// policyBoard is about what single policies do: which of them let something through,
// and which deny.
func policyBoard() board {
	return board{
		file: "policy", title: "Selvage / Policy",
		help: "What each NetworkPolicy lets through and what it takes part in denying. At most 1000 policies have series of their own, the others are (others).",
		variables: []variable{
			{name: "namespace", metric: "selvage_policy_denied_packets_total"},
			{name: "policy", metric: `selvage_policy_denied_packets_total{namespace=~"$namespace"}`},
		},
		sections: []section{
			{"Now", policyState()},
			{"By policy", []panel{policyTable(), {
				kind: graph, title: "Allowed connections", unit: units.CountsPerSecond, wide: 12,
				help:    "The ten policies whose rules let through the most new connections. One that several policies allow counts for each of them.",
				queries: []query{{`topk(10, sum by (namespace, policy, direction) (rate(selvage_policy_allowed_connections_total{` + ofPolicies + `}[$__rate_interval])))`, "{{namespace}}/{{policy}} {{direction}}"}},
			}, {
				kind: graph, title: "Denied packets", unit: units.PacketsPerSecond, wide: 12,
				help:    "The ten policies that isolate the pods of most denied packets. A packet that several policies deny together counts for each of them. Which connections these are: selvage drops -f; why: selvage explain.",
				queries: []query{{`topk(10, sum by (namespace, policy, direction) (rate(selvage_policy_denied_packets_total{` + ofPolicies + `}[$__rate_interval])))`, "{{namespace}}/{{policy}} {{direction}}"}},
			}}},
			{"Denied packets", []panel{{
				kind: graph, title: "By namespace", unit: units.PacketsPerSecond, wide: 8, stacked: true,
				help:    "Each denied packet once, by the namespace of the isolated pod; (unknown) are addresses that no pod is known to have.",
				queries: []query{{deniedPackets(`{namespace=~"$namespace"}`), "{{namespace}} {{direction}}"}},
			}, {
				kind: graph, title: "By node", unit: units.PacketsPerSecond, wide: 8, stacked: true,
				help:    "Where they were denied. One node alone: a client or a server there is misconfigured, or its agent does not know of a change (see its dashboard).",
				queries: []query{{`sum by (node) (rate(selvage_denied_packets_total{namespace=~"$namespace"}[$__rate_interval]))`, "{{node}}"}},
			}, {
				kind: graph, title: "In the log", unit: units.PacketsPerSecond, wide: 8,
				help:    logHelp(),
				queries: inTheLog(""),
			}}},
		},
	}
}

// inTheLog are the denied packets that the log tells of, and those that it should.
func inTheLog(of string) []query {
	return []query{
		{`sum(rate(selvage_drops_logged_total` + of + `[$__rate_interval]))`, "in the log"},
		{`sum(rate(selvage_drops_left_out_total` + of + `[$__rate_interval]))`, "left out"},
	}
}

func logHelp() string {
	return "The kernel's rules pass some of the denied packets to the agent, two a second of each pod at most. Lines in the log tell of these, unless there are too many lines (--drop-log-rate): then they are left out. selvage drops shows more than the log."
}

func policyState() []panel {
	return []panel{
		{
			kind: number, title: "Policies", unit: units.Short, wide: 3,
			help:    "NetworkPolicies of the cluster, as the agents know them.",
			queries: []query{{`max(selvage_objects{kind="networkpolicies"})`, ""}},
		},
		{
			kind: number, title: "Policies with pods", unit: units.Short, wide: 3,
			help:    "Policies of the chosen namespaces that isolate at least one pod. A policy that is missing here selects no pod that runs.",
			queries: []query{{`count(count by (namespace, policy) (selvage_policy_denied_packets_total{` + ofPolicies + `}))`, ""}},
		},
		{
			kind: number, title: "Policies that allowed nothing", unit: units.Short, wide: 4,
			help:    "Policies of which no rule let a connection through, in the time that is shown, and those that have no rules and are there to deny. Choose a week or more before you take one for dead: the table below names them.",
			queries: []query{{`count(sum by (namespace, policy) (increase(selvage_policy_allowed_connections_total{` + ofPolicies + `}[$__range])) == 0) or vector(0)`, ""}},
		},
		{
			kind: number, title: "Invalid policies", unit: units.Short, wide: 3, above: bad(orange),
			help:    "Policies that cannot be compiled as they are written. What is wrong matches nothing, and the pods stay isolated. An Event NotCompiled on each says what is wrong.",
			queries: []query{{`max(selvage_invalid_policies)`, ""}},
		},
		{
			kind: number, title: "Denied packets", unit: units.PacketsPerSecond, wide: 4,
			help:    "Denied now, for pods of the chosen namespaces. selvage drops -f shows them.",
			queries: []query{{`sum(rate(selvage_denied_packets_total{namespace=~"$namespace"}[$__rate_interval]))`, ""}},
		},
		{
			kind: number, title: "Time until in force", unit: units.Seconds, wide: 4, above: []limit{{1, red}},
			help:    "99 of 100 changes of policies were enforced by the kernel within this time, on the slowest node, in the last hour.",
			empty:   "no change",
			queries: []query{{`max(histogram_quantile(0.99, sum by (node, le) (rate(selvage_policy_programming_duration_seconds_bucket{kind="networkpolicies"}[1h]))) > 0)`, ""}},
		},
		{
			kind: number, title: "Counters can be read", unit: units.Short, wide: 3, names: canBeRead(),
			help:    "Whether the kernel's counters could be read on all nodes at the last scrape. If not, all that is below lacks data; the agent's log has the error.",
			queries: []query{{`min(selvage_policy_scrape_success)`, ""}},
		},
	}
}

func policyTable() panel {
	return panel{
		kind: rows, title: "Policies", unit: units.Short, wide: 24, order: "allowed connections",
		help: "What each policy did in the time that is shown, those first that let nothing through. One that allows nothing for weeks is dead, unless it is there to deny. One that allows something may still be: policies of the same pods that allow the same ports share a counter.",
		queries: []query{
			{`round(sum by (namespace, policy) (increase(selvage_policy_allowed_connections_total{` + ofPolicies + `}[$__range])))`, ""},
			{`round(sum by (namespace, policy) (increase(selvage_policy_denied_packets_total{` + ofPolicies + `}[$__range])))`, ""},
			{`sum by (namespace, policy) (rate(selvage_policy_denied_packets_total{` + ofPolicies + `}[$__rate_interval]))`, ""},
		},
		columns: []column{
			{label: "namespace"}, {label: "policy"},
			{query: 1, label: "allowed connections"}, {query: 2, label: "denied packets"},
			{query: 3, label: "denied now", unit: units.PacketsPerSecond},
		},
	}
}
