package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
)

// ports are served in every pod and on every host, for TCP.
var ports = []uint16{5431, 5432, 5433, 5434, 5435, 8080, 9090}

// serviceAddrs are those of story/cluster.yaml.
var serviceAddrs = []netip.Addr{netip.MustParseAddr("10.96.0.80"), netip.MustParseAddr("fd96::80")}

// cluster is the world of the demo, with an agent on each node.
type cluster struct {
	world  *world.World
	binary string // the product's
	dir    string // of manifests
	nodes  []*world.Node
	// outside are hosts without pods.
	outside []*world.Node
	// places are all pods and hosts by name.
	places map[string]*placed
	agents []*world.Agent
	live   []*live
}

// placed is a pod or a host.
type placed struct {
	*world.Namespace
	addrs []netip.Addr
}

// open builds the world that the manifests of the cluster describe and starts the
// agents. The cluster must be closed even if there is an error.
func (c *cluster) open(ctx context.Context) error {
	var err error
	if c.world, err = world.New(); err != nil {
		return err
	}
	dir, err := c.world.Dir()
	if err != nil {
		return err
	}
	c.dir = filepath.Join(dir, "manifests")
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return err
	}
	if err := c.write(clusterManifests()...); err != nil {
		return err
	}
	snapshot, err := informer.Load(c.dir)
	if err != nil {
		return err
	}
	if err := c.build(ctx, snapshot); err != nil {
		return err
	}
	for _, n := range c.nodes {
		a := &world.Agent{Node: n, Binary: c.binary, Manifests: c.dir, Log: filepath.Join(dir, n.Name+".log")}
		c.agents = append(c.agents, a)
	}
	return c.startAgents(ctx)
}

func (c *cluster) close() error {
	for _, l := range c.live {
		l.close()
	}
	var errs []error
	for _, a := range c.agents {
		errs = append(errs, a.Kill())
	}
	if c.world != nil {
		errs = append(errs, c.world.Close())
	}
	return errors.Join(errs...)
}

func (c *cluster) build(ctx context.Context, s policy.Snapshot) error {
	for _, n := range s.Nodes {
		// The agent turns on the switch of the pods' bridge.
		node, err := c.world.AddNode(world.NodeOptions{Name: n.Name, PodCIDRs: n.PodCIDRs, Addrs: n.Addrs, Filtering: world.FilterOff})
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, node)
		c.places[n.Name] = &placed{node.Namespace, node.Addrs}
		for _, p := range s.Pods {
			if p.Node == n.Name {
				if err := c.addPod(node, p); err != nil {
					return err
				}
			}
		}
	}
	for name, addrs := range map[string][]netip.Addr{
		"client":  {netip.MustParseAddr("172.31.0.20"), netip.MustParseAddr("fd31::20")},
		"scanner": {netip.MustParseAddr("172.31.0.66"), netip.MustParseAddr("fd31::66")},
	} {
		host, err := c.world.AddNode(world.NodeOptions{Name: name, Addrs: addrs})
		if err != nil {
			return err
		}
		c.outside = append(c.outside, host)
		c.places[name] = &placed{host.Namespace, addrs}
	}
	for _, p := range c.places {
		for _, port := range ports {
			if err := p.Serve(p.addrs, world.Port{Protocol: policy.TCP, Number: port}); err != nil {
				return err
			}
		}
	}
	service := world.Service{Name: "web", Addrs: serviceAddrs, Protocol: policy.TCP, Port: 80}
	for _, a := range c.places["web"].addrs {
		service.Backends = append(service.Backends, netip.AddrPortFrom(a, 8080))
	}
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.SetServices(ctx, service))
	}
	return errors.Join(errs...)
}

func (c *cluster) addPod(node *world.Node, p *policy.Pod) error {
	attachment := world.Bridged
	if p.Name == "db" {
		attachment = world.Routed
	}
	pod, err := node.AddPod(world.PodOptions{Name: p.Name, Addrs: p.Addrs, Attachment: attachment})
	if err != nil {
		return err
	}
	c.places[p.Name] = &placed{pod.Namespace, p.Addrs}
	return nil
}

// write puts manifests of the story into the directory that the agents watch.
func (c *cluster) write(names ...string) error {
	for _, name := range names {
		data, err := manifests.ReadFile("story/" + name + ".yaml")
		if err != nil {
			return err
		}
		if err := c.put(name, data); err != nil {
			return err
		}
	}
	return nil
}

// put writes one manifest: beside and then moved, so that nobody reads half a file.
func (c *cluster) put(name string, data []byte) error {
	path := filepath.Join(c.dir, name+".yaml")
	hidden := filepath.Join(c.dir, "."+name)
	return errors.Join(os.WriteFile(hidden, data, 0o644), os.Rename(hidden, path))
}

// clusterManifests are those that are there from the beginning.
func clusterManifests() []string { return []string{"cluster", shaped} }

func (c *cluster) remove(names ...string) error {
	for _, name := range names {
		if err := os.Remove(filepath.Join(c.dir, name+".yaml")); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) startAgents(ctx context.Context) error {
	for _, a := range c.agents {
		if err := a.Start(); err != nil {
			return err
		}
	}
	for _, a := range c.agents {
		if err := a.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// target is what a column tries: where connections go to, and where they end
// after the Service was resolved.
type target struct {
	to, ends []netip.AddrPort
}

func (c *cluster) target(column string) (target, error) {
	name, portText, _ := strings.Cut(column, ":")
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return target{}, fmt.Errorf("column %q: %w", column, err)
	}
	if name == "svc/web" {
		web, err := c.target("web:8080")
		return target{to: withPort(serviceAddrs, uint16(port)), ends: web.to}, err
	}
	p := c.places[name]
	if p == nil {
		return target{}, fmt.Errorf("column %q: there is no %s", column, name)
	}
	to := withPort(p.addrs, uint16(port))
	return target{to, to}, nil
}

func withPort(addrs []netip.Addr, port uint16) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare) {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out
}
