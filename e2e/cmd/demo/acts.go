package main

import "context"

// act is what the story of policies is followed by.
type act struct {
	title, about string
	run          func(*cluster, context.Context, *result) error
	// step, in place of all that, is one more step like those of the story.
	step *step
}

// acts are about the bandwidth of the pod admin on node-b, which talks with stats on
// node-a, about pools of addresses, and about what agents can be asked.
func acts() []act {
	return []act{{
		title: "Bandwidth",
		about: "admin is held to what its annotations say, in both directions; measured with one TCP flow.",
		run:   (*cluster).measureLimits,
	}, {
		title: "A limit that changes in mid-transfer",
		about: "The annotations change while stats sends to admin, and then they go. The flow lives on.",
		run:   (*cluster).changeLimits,
	}, {
		title: "Address pools: natOutgoing",
		about: "The IPPools west and east have the addresses of node-a's and node-b's pods. natOutgoing of west\n" +
			"goes on: from then on places outside of the pools see the node as the source.",
		run: (*cluster).masquerade,
	}, {
		step: &step{
			title:   "A pool as a peer",
			about:   "stats takes connections from pods of the pool east alone, wherever they are.",
			add:     []string{"stats-east"},
			columns: []string{"stats:8080", "admin:8080"},
			claims: []row{
				{"web", "xo"},
				{"web2", "oo"},
				{"db", "xo"},
				{"admin", "o."},
				{"client", "xo"},
				{"node-a", "oo"},
				{"node-b", "xo"},
			},
		},
	}, {
		title: "What selvage pools shows",
		about: "The same binary reads the same manifests, and needs no privileges for that.",
		run:   (*cluster).showPools,
	}, {
		title: "A drop that is named, explained and mended",
		about: "admin is meant to be open to app=web of the shop, but that is mistyped in the policy admin-web.\n" +
			"The commands run on node-b and ask its agent.",
		run: (*cluster).explainDrop,
	}}
}

func (a act) name() string {
	if a.step != nil {
		return a.step.title
	}
	return a.title
}

// perform does one act and reports it.
func (c *cluster) perform(ctx context.Context, r *report, i int, a act) error {
	if a.step != nil {
		return c.walk(ctx, r, len(story)+i, a.step)
	}
	r.heading(len(story)+i, a.title, a.about)
	res := &result{Title: a.title}
	if err := a.run(c, ctx, res); err != nil {
		return err
	}
	r.act(res)
	return nil
}
