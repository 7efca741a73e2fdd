package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
	"github.com/selvage-net/selvage/e2e/observe"
)

//go:embed trouble.yaml
var trouble string

// signalAgent sends a signal to the agent of the node that it runs on: to the selvage
// that lives in the node's own network namespace.
const signalAgent = `signal() {
	for d in /proc/[0-9]*; do
		[ "$(cat $d/comm 2>/dev/null)" = selvage ] || continue
		[ "$(readlink $d/ns/net)" = "$(readlink /proc/1/ns/net)" ] && kill -$1 ${d#/proc/}
	done; true
}
`

// agentProcess prints the process of a node's agent.
const agentProcess = `for d in /proc/[0-9]*; do
	[ "$(cat $d/comm 2>/dev/null)" = selvage ] || continue
	[ "$(readlink $d/ns/net)" = "$(readlink /proc/1/ns/net)" ] && pid=${d#/proc/}
done
`

// again runs a line of shell some times, with pauses in which agents put it right and
// Prometheus sees that.
func again(line string) string {
	return "for i in 1 2 3 4 5 6; do " + line + "; sleep 3.5; done"
}

// stages are what is provoked, in this order. The last ones leave the cluster without
// agents.
func (r *run) stages() []stage {
	return []stage{
		{"much is wrong with nodes, pods and pools", r.small(), true},
		{"the kernel refuses to change the tables", []provocation{r.refusal()}, false},
		{"the API server is away, and an agent hangs", []provocation{r.outage(), r.hang()}, false},
		{"a node has no agent", []provocation{r.missing()}, false},
		{"there is no agent", []provocation{r.absent()}, false},
	}
}

// small are those that a cluster goes on with.
func (r *run) small() []provocation {
	engine := provocation{how: "a table of kube-network-policies on n1", alerts: []string{"SelvageOtherPolicyEngine"}}
	engine.do, engine.undo = r.shell("n1", "nft add table inet kube-network-policies", "nft delete table inet kube-network-policies")

	drift := provocation{how: "somebody adds rules to a table on n1", alerts: []string{"SelvageDriftRepaired"}}
	drift.do, drift.undo = r.shell("n1", again("nft add rule ip selvage forward counter"), "")

	bridge := provocation{how: "br_netfilter cannot be seen on n2", alerts: []string{"SelvageBridgeUncovered"}}
	bridge.do, bridge.undo = r.shell("n2", agentProcess+"mount -N $pid -t tmpfs none /proc/sys/net/bridge", agentProcess+"umount -N $pid /proc/sys/net/bridge")

	return []provocation{engine, r.objects(), r.unenforceable(), bridge, r.flood(), drift, r.queues()}
}

// objects makes what trouble.yaml has.
func (r *run) objects() provocation {
	return provocation{
		how: "objects that contradict others, or cannot be used",
		alerts: []string{
			"SelvageBandwidthInvalid", "SelvagePodsUnshaped", "SelvagePoolNearlyFull", "SelvagePoolProblem", "SelvagePodsOutsidePools",
			"SelvageCondition", // flannel masquerades what these pools do not
		},
		do: func(ctx context.Context) error {
			web, _, err := r.pod(ctx, "shop", "web")
			if err != nil {
				return err
			}
			client, _, err := r.pod(ctx, "shop", "client")
			if err != nil {
				return err
			}
			if err := r.kubectl(ctx, nil, "apply", "-k", filepath.Join(r.o.repo, "deploy", "pools")); err != nil {
				return err
			}
			if err := r.kubectl(ctx, nil, "wait", "--for=condition=Established", "crd/ippools.selvage.dev", "--timeout=30s"); err != nil {
				return err
			}
			manifests := strings.NewReplacer("WEB", web, "CLIENT", client).Replace(trouble)
			if err := r.kubectl(ctx, []byte(manifests), "apply", "-f", "-"); err != nil {
				return err
			}
			// A pod that began with it would not start at all: containerd reads it, too.
			return r.kubectl(ctx, nil, "-n", "media", "annotate", "pod", "disk", "kubernetes.io/ingress-bandwidth=10Mbit")
		},
	}
}

// unenforceable has a node reach a pod by a device that its hooks know nothing of.
func (r *run) unenforceable() provocation {
	p := provocation{how: "n1 reaches a pod by a macvlan device", alerts: []string{"SelvageUnenforceablePods"}}
	p.do = func(ctx context.Context) error {
		return observe.Poll(ctx, time.Minute, func(ctx context.Context) error {
			ip, node, err := r.pod(ctx, "media", "aside")
			if err != nil || ip == "" {
				return errors.Join(err, errors.New("the pod has no address"))
			}
			return r.sh(ctx, node, "ip link add aside link eth0 type macvlan; ip link set aside up; ip route add "+ip+"/32 dev aside")
		})
	}
	_, p.undo = r.shell("n1", "", "ip link del aside")
	return p
}

// flood has stranger ask for many ports of web, faster than lines are written about it.
func (r *run) flood() provocation {
	const ports = 20
	each := func(ctx context.Context, f func(p *probe.Client, token, to string) error) error {
		p, err := r.probe(ctx, "shop", "stranger")
		if err != nil {
			return err
		}
		web, _, err := r.pod(ctx, "shop", "web")
		if err != nil {
			return err
		}
		var errs []error
		for i := range ports {
			errs = append(errs, f(p, fmt.Sprintf("flood-%d", i), fmt.Sprintf("%s:%d", web, 2000+i)))
		}
		return errors.Join(errs...)
	}
	return provocation{
		how: "a pod sends hundreds of packets per second that are denied", alerts: []string{"SelvageDeniedSurge", "SelvageDropsLeftOut"},
		do: func(ctx context.Context) error {
			return each(ctx, func(p *probe.Client, token, to string) error {
				return p.Start(ctx, probe.Flow{Token: token, Kind: probe.UDP, To: to, Interval: 40 * time.Millisecond})
			})
		},
		undo: func(ctx context.Context) error {
			return each(ctx, func(p *probe.Client, token, _ string) error {
				_, err := p.Stop(ctx, token)
				return err
			})
		},
	}
}

// queues removes a pod's queue some times, and at last gives the name of its IFB to
// another interface, while the agent does not look.
func (r *run) queues() provocation {
	p := provocation{
		how:    "somebody removes a pod's queue on n2, and takes the name of its IFB",
		alerts: []string{"SelvageShapingRepaired", "SelvageShapingErrors"},
	}
	p.do, p.undo = r.shell("n2", signalAgent+again(`tc qdisc del dev $(tc qdisc show | sed -n 's/^qdisc tbf 5e1a: dev \(veth[^ ]*\) .*/\1/p' | head -1) root`)+`
		ifb=$(ip -o link show type ifb | sed -n 's/^[0-9]*: \(selv[^:@]*\).*/\1/p' | head -1)
		signal STOP; ip link del $ifb; ip link add $ifb type bridge; signal CONT`,
		`ip link del $(ip -o link show type bridge | sed -n 's/^[0-9]*: \(selv[^:@]*\).*/\1/p' | head -1)`)
	return p
}

// refusal gives the table to another process for some time, as nft's flag owner does:
// the kernel then refuses everybody else. Meanwhile something happens to pods there.
func (r *run) refusal() provocation {
	return provocation{
		how:    "another process owns the table on n2 for half a minute",
		alerts: []string{"SelvageNotInSync", "SelvageSyncErrors", "SelvageProgrammingSlow"},
		do: func(ctx context.Context) error {
			const own = `(echo 'delete table ip selvage; add table ip selvage { flags owner; }'; sleep 30) | nft -i`
			go func() { _ = r.sh(ctx, "n2", own) }() // if it fails, no alert fires
			if err := sleep(ctx, 2*time.Second); err != nil {
				return err
			}
			var errs []error
			for i := range 10 {
				errs = append(errs, r.kubectl(ctx, nil, "-n", "shop", "label", "pod", "client", "--overwrite", fmt.Sprintf("round=%d", i)))
			}
			return errors.Join(append(errs, r.kubectl(ctx, nil, "-n", "shop", "label", "pod", "stranger", "app=client", "--overwrite"))...)
		},
	}
}

// outage takes the API server away.
func (r *run) outage() provocation {
	return provocation{
		how: "the API server is away", alerts: []string{"SelvageSourceNotConnected"},
		do: func(ctx context.Context) error { return r.lab.Stop(ctx, "n1", "kube-apiserver") },
		undo: func(ctx context.Context) error {
			if err := r.lab.Start(ctx, "n1", "kube-apiserver"); err != nil {
				return err
			}
			// They would take up to a minute to ask again.
			for _, p := range []string{"kube-controller-manager", "kube-scheduler"} {
				if err := errors.Join(r.lab.Stop(ctx, "n1", p), r.lab.Start(ctx, "n1", p)); err != nil {
					return err
				}
			}
			for _, n := range r.nodes() {
				if err := errors.Join(r.lab.Stop(ctx, n.Name, "kubelet"), r.lab.Start(ctx, n.Name, "kubelet")); err != nil {
					return err
				}
			}
			return r.kubectl(ctx, nil, "-n", agents, "rollout", "status", "daemonset/selvage", "--timeout=2m")
		},
	}
}

// hang stops an agent without ending it.
func (r *run) hang() provocation {
	p := provocation{how: "the agent of n3 hangs", alerts: []string{"SelvageAgentDown"}}
	p.do, p.undo = r.shell("n3", signalAgent+"signal STOP", signalAgent+"signal CONT")
	return p
}

// selected is the label of nodes that have an agent.
const selected = "selvage.test/agent"

// missing has the DaemonSet leave a node out.
func (r *run) missing() provocation {
	return provocation{
		how: "the DaemonSet leaves n3 out", alerts: []string{"SelvageAgentMissing"},
		do: func(ctx context.Context) error {
			return errors.Join(
				r.save(ctx), // what the agents have said goes with them
				r.kubectl(ctx, nil, "label", "node", "n1", "n2", selected+"=yes"),
				r.kubectl(ctx, nil, "-n", agents, "patch", "daemonset", "selvage", "-p",
					`{"spec":{"template":{"spec":{"nodeSelector":{"`+selected+`":"yes"}}}}}`),
			)
		},
	}
}

// absent has it leave all of them out.
func (r *run) absent() provocation {
	return provocation{
		how: "the DaemonSet leaves all nodes out", alerts: []string{"SelvageAbsent"},
		do: func(ctx context.Context) error {
			return r.kubectl(ctx, nil, "label", "node", "n1", "n2", selected+"-")
		},
	}
}
