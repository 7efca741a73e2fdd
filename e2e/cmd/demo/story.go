package main

import "embed"

// manifests are the cluster and the policies of the story.
//
//go:embed story/*.yaml
var manifests embed.FS

// step is one step of the story: what changes, and who reaches whom after it.
type step struct {
	title string
	// about says in one line what the change means.
	about string
	// add and remove are names of manifests.
	add, remove []string
	// act does what is more than a change of manifests.
	act action
	// columns are what is tried: pod:port, or svc/name:port.
	columns []string
	// claims say of each row, a pod or a host, what the story claims.
	claims []row
}

// row is the claim for one source: a letter for each column.
//
//	o  open, over IPv4 and IPv6
//	x  dropped, over both
//	6  open over IPv6 alone
//	.  not tried: the same pod, or a place that has no route there
type row struct {
	from   string
	claims string
}

// action is what happens in a step besides manifests.
type action int

const (
	// cutLive holds TCP connections over the change.
	cutLive action = iota + 1
	// killAgents kills all agents with SIGKILL.
	killAgents
	// restartAgents starts them again.
	restartAgents
)

// What runs at the end must hold as well with the agents dead, and after.
var (
	finalColumns = []string{"web:8080", "web2:8080", "api:8080", "db:5432", "stats:8080", "svc/web:80"}
	finalClaims  = []row{
		{"web", ".xoxoo"},
		{"web2", "x.oxox"},
		{"api", "xx.oxx"},
		{"db", "xxx.ox"},
		{"stats", "xxox.x"},
		{"admin", "66xxo6"},
		{"client", "ooxxo."},
		{"scanner", "xxxxo."},
		{"node-a", "oooooo"},
		{"node-b", "ooxxoo"},
	}
)

var (
	everyone = []string{"web:8080", "web2:8080", "api:8080", "db:5432", "stats:8080", "admin:8080"}

	story = []step{{
		title:   "No policy",
		about:   "Without a policy every pod reaches every other, and so does the world outside.",
		columns: everyone,
		claims: []row{
			{"web", ".ooooo"},
			{"web2", "o.oooo"},
			{"api", "oo.ooo"},
			{"db", "ooo.oo"},
			{"stats", "oooo.o"},
			{"admin", "ooooo."},
			{"client", "oooooo"},
			{"node-a", "oooooo"},
		},
	}, {
		title:   "Default deny",
		about:   "Nothing gets into the namespace shop, but for a node that reaches its own pods (its probes).",
		add:     []string{"default-deny"},
		columns: everyone,
		claims: []row{
			{"web", ".xxxoo"},
			{"web2", "x.xxoo"},
			{"api", "xx.xoo"},
			{"db", "xxx.oo"},
			{"stats", "xxxx.o"},
			{"admin", "xxxxo."},
			{"client", "xxxxoo"},
			{"node-a", "oxoooo"},
		},
	}, {
		title:   "Allow by pod and by namespace selector",
		about:   "api takes connections from pods app=web, and from app=stats in namespaces team=ops.",
		add:     []string{"api-clients"},
		columns: everyone,
		claims: []row{
			{"web", ".xoxoo"},
			{"web2", "x.oxoo"},
			{"api", "xx.xoo"},
			{"db", "xxx.oo"},
			{"stats", "xxox.o"},
			{"admin", "xxxxo."},
			{"client", "xxxxoo"},
			{"node-a", "oxoooo"},
		},
	}, {
		title:   "A named port that differs between pods",
		about:   "api may use the port http of app=web, which is 8080 in web and 9090 in web2.",
		add:     []string{"web-http"},
		columns: []string{"web:8080", "web:9090", "web2:8080", "web2:9090"},
		claims: []row{
			{"api", "oxxo"},
			{"db", "xxxx"},
			{"stats", "xxxx"},
		},
	}, {
		title:   "A range of ports (endPort)",
		about:   "api may use the ports 5432 to 5434 of db, the pod that is not on the bridge.",
		add:     []string{"db-range"},
		columns: []string{"db:5431", "db:5432", "db:5433", "db:5434", "db:5435"},
		claims: []row{
			{"api", "xooox"},
			{"web", "xxxxx"},
			{"stats", "xxxxx"},
		},
	}, {
		title:   "A block of addresses with an exception (ipBlock, except)",
		about:   "app=web serves port 8080 to the network of the nodes, but not to the scanner in it.",
		add:     []string{"web-public"},
		columns: []string{"web:8080", "web:9090", "web2:8080", "web2:9090"},
		claims: []row{
			{"client", "oxox"},
			{"scanner", "xxxx"},
			{"admin", "xxxx"},
			{"api", "oxxo"},
			{"node-a", "ooox"},
			{"node-b", "oxoo"},
		},
	}, {
		title:   "Egress",
		about:   "api itself may only connect to db and to version v1. Who connects to api still gets answers.",
		add:     []string{"api-egress"},
		columns: []string{"web:8080", "web2:9090", "db:5432", "stats:8080", "admin:8080", "client:8080", "api:8080"},
		claims: []row{
			{"api", "oxoxxx."},
			{"web", ".xxoooo"},
			{"web2", "x.xoooo"},
			{"stats", "xxx.ooo"},
		},
	}, {
		title:   "IPv6 by itself",
		about:   "app=web is open to the IPv6 address of admin; its IPv4 address stays outside.",
		add:     []string{"web-ipv6"},
		columns: []string{"web:8080", "web:9090", "web2:8080", "web2:9090"},
		claims: []row{
			{"admin", "6666"},
			{"stats", "xxxx"},
			{"client", "oxox"},
		},
	}, {
		title:   "Through a Service",
		about:   "The Service web is rewritten to web:8080. What counts is the pod behind it, not its address.",
		columns: []string{"svc/web:80", "web:8080"},
		claims: []row{
			{"api", "oo"},
			{"web", "o."},
			{"web2", "xx"},
			{"db", "xx"},
			{"stats", "xx"},
			{"admin", "66"},
			{"node-a", "oo"},
			{"node-b", "oo"},
		},
	}, {
		title:   "A tightened policy ends live connections",
		about:   "The policy web-http goes away while api and client are talking to web.",
		remove:  []string{"web-http"},
		act:     cutLive,
		columns: []string{"web:8080", "svc/web:80"},
		claims: []row{
			{"api", "xx"},
			{"client", "o."},
		},
	}, {
		title:   "The agents are killed (SIGKILL)",
		about:   "The kernel goes on enforcing what it was told.",
		act:     killAgents,
		columns: finalColumns,
		claims:  finalClaims,
	}, {
		title:   "The agents start again",
		about:   "They find in the kernel what they want to see, and change nothing.",
		act:     restartAgents,
		columns: finalColumns,
		claims:  finalClaims,
	}}
)
