package observe

import "github.com/grafana/grafana-foundation-sdk/go/units"

// ofPool selects the pools that were chosen. All agents count the whole cluster, so
// that any of them will do.
const ofPool = `{pool=~"$pool"}`

// poolsBoard is about pools of addresses.
func poolsBoard() board {
	return board{
		file: "pools", title: "Selvage / Pools",
		help:      "How full the pools of addresses are, and what is wrong with them. Without IPPools the nodes' podCIDRs are shown, as (podCIDRs).",
		variables: []variable{{name: "pool", metric: "selvage_pool_addresses"}},
		sections: []section{
			{"Now", []panel{
				{
					kind: number, title: "Pools in force", unit: units.Short, wide: 8,
					help:    "By origin: IPPools of selvage.dev, those of Calico, or nodes' podCIDRs, which count as long as there are no others.",
					queries: []query{{`max by (origin) (selvage_pools)`, "{{origin}}"}},
				},
				{
					kind: number, title: "Problems", unit: units.Short, wide: 5, above: bad(orange),
					help:    "What is wrong with pools. The table below has the reasons; an Event on the pool says more, and so does selvage pools.",
					queries: []query{{`sum(max by (reason) (selvage_pool_problems))`, ""}},
				},
				{
					kind: number, title: "Pods outside of all pools", unit: units.Short, wide: 5, above: bad(orange),
					help:    "They have none of what pools give: no masquerading, no default bandwidth. Give their addresses a pool, or find out who gives such addresses out: selvage pools lists them.",
					queries: []query{{`max(selvage_pods_outside_pools)`, ""}},
				},
				{
					kind: number, title: "Fullest pool", unit: units.PercentUnit, wide: 6, above: fullness(),
					help:    "Of the chosen ones. Give the base CNI more addresses while some are left.",
					queries: []query{{`max(max by (pool, family) (selvage_pool_allocated_addresses` + ofPool + `) / max by (pool, family) (selvage_pool_addresses` + ofPool + `))`, ""}},
				},
			}},
			{"Use", poolsUse()},
			{"What is wrong", poolsProblems()},
		},
	}
}

// fullness colours shares of a pool's addresses.
func fullness() []limit { return []limit{{0.8, yellow}, {0.9, red}} }

func poolsUse() []panel {
	return []panel{
		{
			kind: bars, title: "Share of the addresses in use", unit: units.PercentUnit, wide: 12, high: 8, max: 1, above: fullness(),
			help:    "Addresses that pods of the whole cluster have. From 90 % on the pool is nearly full. Capacity includes addresses that the base CNI keeps for itself.",
			queries: []query{{`max by (pool, family) (selvage_pool_allocated_addresses` + ofPool + `) / max by (pool, family) (selvage_pool_addresses` + ofPool + `)`, "{{pool}} {{family}}"}},
		},
		{
			kind: graph, title: "Addresses in use", unit: units.Short, wide: 12,
			help:    "Addresses that pods have. One that only ever grows may be a leak of the base CNI: compare with the number of pods.",
			queries: []query{{`max by (pool, family) (selvage_pool_allocated_addresses` + ofPool + `)`, "{{pool}} {{family}}"}},
		},
		{
			kind: rows, title: "Pools", unit: units.Short, wide: 24, high: 8, order: "-in use",
			help: "Pools and families. (others) are those beyond the first hundred.",
			queries: []query{
				{`max by (pool, family) (selvage_pool_addresses` + ofPool + `)`, ""},
				{`max by (pool, family) (selvage_pool_allocated_addresses` + ofPool + `)`, ""},
				{`max by (pool, family) (selvage_pool_addresses` + ofPool + `) - max by (pool, family) (selvage_pool_allocated_addresses` + ofPool + `)`, ""},
				{`max by (pool, family) (selvage_pool_allocated_addresses` + ofPool + `) / max by (pool, family) (selvage_pool_addresses` + ofPool + `)`, ""},
			},
			columns: []column{
				{label: "pool"}, {label: "family"}, {query: 1, label: "addresses"}, {query: 2, label: "with pods"}, {query: 3, label: "free"},
				{query: 4, label: "in use", unit: units.PercentUnit, above: fullness()},
			},
		},
	}
}

func poolsProblems() []panel {
	return []panel{
		{
			kind: rows, title: "Problems by reason", unit: units.Short, wide: 8, high: 7, order: "-pools", empty: "There is none.",
			help:    "docs/pools.md says what is in force instead. An Event on the pool names what it contradicts.",
			queries: []query{{`max by (reason) (selvage_pool_problems) > 0`, ""}},
			columns: []column{{label: "reason"}, {query: 1, label: "pools", above: bad(orange)}},
		},
		{
			kind: graph, title: "Pods outside of all pools", unit: units.Short, wide: 8, high: 7,
			help:    "If it grows with the pods, a range is missing: give it a pool.",
			queries: []query{{`max(selvage_pods_outside_pools)`, "pods"}},
		},
		{
			kind: rows, title: "Others who masquerade", unit: units.Short, wide: 8, high: 7, order: "by", empty: "Nobody else does.",
			help:    "Who, besides pools, masquerades what pods send, on how many nodes. Where the base CNI does, natOutgoing: false has no effect; docs/pools.md says how to leave it to the pools.",
			queries: []query{{`sum by (by, family) (selvage_base_masquerade)`, ""}},
			columns: []column{{label: "by"}, {label: "family"}, {query: 1, label: "nodes"}},
		},
	}
}
