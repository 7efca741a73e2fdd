package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/selvage-net/selvage/e2e/lab/machine"
)

// The processes of nodes.
const (
	etcd              = "etcd"
	kubeAPIServer     = "kube-apiserver"
	controllerManager = "kube-controller-manager"
	scheduler         = "kube-scheduler"
	containerd        = "containerd"
	kubelet           = "kubelet"
	kubeProxy         = "kube-proxy"
	flanneld          = "flanneld"
)

// node is a machine with a kubelet.
type node struct {
	name  string
	ip    netip.Addr
	first bool // it has the control plane
	// changing is held while a process starts or stops, or the machine does.
	changing sync.Mutex

	mu        sync.Mutex // guards what follows
	machine   *machine.Machine
	proxyMode string
	loaded    bool // the images are on its disk
	processes []*running
}

// running is a process of a node.
type running struct {
	Process
	wanted bool // it was started, and not stopped
}

func newNode(i int, proxyMode string) *node {
	return &node{name: nodeName(i), ip: address(i), first: i == 1, proxyMode: proxyMode}
}

func (n *node) info() Machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := Machine{Name: n.name, IP: n.ip, Node: true, ProxyMode: n.proxyMode}
	if n.machine != nil {
		m.PID = n.machine.PID()
	}
	for _, p := range n.processes {
		m.Processes = append(m.Processes, p.Process)
	}
	return m
}

// up returns the node's machine.
func (n *node) up() (*machine.Machine, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.machine == nil {
		return nil, fmt.Errorf("machine %s is not up", n.name)
	}
	return n.machine, nil
}

// close takes the machine's power away.
func (n *node) close() error {
	n.mu.Lock()
	m := n.machine
	n.machine = nil
	for _, p := range n.processes {
		p.PID, p.wanted = 0, false
	}
	n.mu.Unlock()
	if m == nil {
		return nil
	}
	return m.Close()
}

// process returns the account of a process; nil if it was never started.
func (n *node) process(name string) *running {
	i := slices.IndexFunc(n.processes, func(p *running) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return n.processes[i]
}

// claim takes note that a process is being started.
func (n *node) claim(name, log string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.process(name)
	if p == nil {
		p = &running{Process: Process{Name: name, Log: log}}
		n.processes = append(n.processes, p)
	}
	if p.PID != 0 {
		return fmt.Errorf("%s runs already on %s", name, n.name)
	}
	p.wanted = true
	return nil
}

// started takes note of the PID of a process, unless it has ended by now.
func (n *node) started(name string, m *machine.Machine, inner int) {
	pid := m.HostPID(inner)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.process(name).PID = pid
}

// boot starts a node's machine, with its network and files.
func (c *Cluster) boot(ctx context.Context, n *node) error {
	if err := os.MkdirAll(c.paths.in("logs", n.name), 0o755); err != nil {
		return err
	}
	m, err := c.host.Start(ctx, machine.Spec{
		Name: n.name, Log: c.paths.log(n.name, "init"),
		Exited: func(e machine.Exit) { c.work.Go(func() { c.exited(n, e) }) },
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.machine = m
	n.mu.Unlock()
	if err := plug(c.fabric.PID(), m.PID(), n.name, n.ip); err != nil {
		return err
	}
	return c.configure(n, m)
}

// configure writes the files of a node's processes.
func (c *Cluster) configure(n *node, m *machine.Machine) error {
	kubelet, err := kubeletYAML()
	if err != nil {
		return err
	}
	proxy, err := proxyYAML(n.name, n.proxyMode, c.paths.kubeconfig())
	if err != nil {
		return err
	}
	flannel, err := flannelJSON(c.options.Backend)
	if err != nil {
		return err
	}
	for file, data := range map[string][]byte{
		containerdConfig: containerdTOML(), kubeletConfig: kubelet, proxyConfig: proxy, flannelConfig: flannel,
	} {
		if err := m.WriteFile(file, data); err != nil {
			return err
		}
	}
	// It comes when flannel runs, see startFlannel.
	if err := os.Remove(m.Path(cniConfig)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(m.Path("/opt/cni"), 0o755); err != nil {
		return err
	}
	err = os.Symlink(c.options.Artifacts.CNI(), m.Path(cniPlugins))
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// startServices starts a node's processes, each when what it needs is there.
func (c *Cluster) startServices(ctx context.Context, n *node) error {
	g, ctx := errgroup.WithContext(ctx)
	if n.first {
		g.Go(func() error { return c.startControlPlane(ctx, n) })
	}
	served := make(chan struct{})
	g.Go(func() error {
		if err := c.startProcess(ctx, n, containerd); err != nil {
			return err
		}
		close(served)
		return c.loadImages(ctx, n)
	})
	g.Go(func() error {
		if err := c.awaitAPIServer(ctx); err != nil {
			return err
		}
		select {
		case <-served:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		g.Go(func() error { return c.startProcess(ctx, n, kubeProxy) })
		g.Go(func() error { return c.startFlannel(ctx, n) })
		return c.startProcess(ctx, n, kubelet)
	})
	return g.Wait()
}

func (c *Cluster) startControlPlane(ctx context.Context, n *node) error {
	for _, name := range []string{etcd, kubeAPIServer} {
		if err := c.startProcess(ctx, n, name); err != nil {
			return err
		}
		c.starting("%s serves", name)
	}
	if err := c.awaitAPIServer(ctx); err != nil {
		return err
	}
	c.starting("API server ready")
	return errors.Join(c.startProcess(ctx, n, controllerManager), c.startProcess(ctx, n, scheduler))
}

// starting tells of a stage, during the start only.
func (c *Cluster) starting(format string, args ...any) {
	if !c.ready.Load() {
		c.progress(format, args...)
	}
}

// startFlannel starts flanneld, which needs the node's podCIDR and ends without,
// and then lets containerd have the network's configuration. Without that the
// node is not Ready, so no pod starts before flannel can give it an address.
func (c *Cluster) startFlannel(ctx context.Context, n *node) error {
	if err := c.awaitPodCIDR(ctx, n); err != nil {
		return err
	}
	if err := c.startProcess(ctx, n, flanneld); err != nil {
		return err
	}
	m, err := n.up()
	if err != nil {
		return err
	}
	config, err := cniJSON()
	if err != nil {
		return err
	}
	return m.WriteFile(cniConfig, config)
}

// loadImages puts the images onto a node's disk, unless they are there.
func (c *Cluster) loadImages(ctx context.Context, n *node) error {
	m, err := n.up()
	if err != nil || n.loaded {
		return err
	}
	for _, image := range c.options.Images {
		cmd := m.Command(ctx, importArgs()...)
		cmd.Env = c.paths.environ()
		if err := importImage(cmd, c.options.Artifacts.Image(image)); err != nil {
			return fmt.Errorf("image %s into %s: %w", image, n.name, err)
		}
	}
	n.mu.Lock()
	n.loaded = true
	n.mu.Unlock()
	c.starting("images on %s", n.name)
	return nil
}

// flags returns the flags of a process, and whether it tells when it serves.
func (c *Cluster) flags(n *node, name string) (flags []string, notifies bool, err error) {
	p := c.paths
	switch {
	case n.first && name == etcd:
		return etcdFlags(), true, nil
	case n.first && name == kubeAPIServer:
		return apiServerFlags(p, n.ip), true, nil
	case n.first && name == controllerManager:
		return controllerManagerFlags(p), false, nil
	case n.first && name == scheduler:
		return schedulerFlags(p), false, nil
	case name == containerd:
		return []string{"--config=" + containerdConfig}, true, nil
	case name == kubelet:
		return kubeletFlags(p, n.name, n.ip), true, nil
	case name == kubeProxy:
		return []string{"--config=" + proxyConfig, "--v=1"}, false, nil
	case name == flanneld:
		return flanneldFlags(p), true, nil
	}
	return nil, false, fmt.Errorf("machine %s has no process %q", n.name, name)
}

// startProcess starts a process of a node and returns when it serves.
func (c *Cluster) startProcess(ctx context.Context, n *node, name string) error {
	flags, notifies, err := c.flags(n, name)
	if err != nil {
		return err
	}
	m, err := n.up()
	if err != nil {
		return err
	}
	s := machine.Process{
		Name: name, Argv: append([]string{c.options.Artifacts.Binary(name)}, flags...),
		Env: append(c.paths.environ(), "NODE_NAME="+n.name), Log: c.paths.log(n.name, name), Notify: notifies,
	}
	if err := n.claim(name, s.Log); err != nil {
		return err
	}
	pid, err := m.StartProcess(ctx, s)
	if err != nil && ctx.Err() != nil {
		// It may serve yet, when nobody counts on it any more.
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, m.StopProcess(late, name))
	}
	if err != nil {
		return fmt.Errorf("%s on %s: %w\n%s", name, n.name, err, tail(s.Log))
	}
	n.started(name, m, pid)
	return nil
}

// exited is told of a process that ended without being told to. Until the
// cluster is up that is the end of it; later it is started again, as an init
// system would.
func (c *Cluster) exited(n *node, e machine.Exit) {
	n.mu.Lock()
	p := n.process(e.Name)
	log := p.Log
	p.PID = 0
	p.Exits++
	n.mu.Unlock()
	if !c.ready.Load() {
		c.end(fmt.Errorf("%s on %s ended: %s\n%s", e.Name, n.name, e.Status, tail(log)))
		return
	}
	c.options.Log.Warn("a process ended and is started again", "machine", n.name, "process", e.Name, "status", e.Status, "log", log)
	select {
	case <-c.life.Done():
		return
	case <-time.After(time.Second): // or a process that ends at once would take all there is
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	again := p.wanted && p.PID == 0 && n.machine != nil
	n.mu.Unlock()
	if !again {
		return
	}
	if err := c.startProcess(c.life, n, e.Name); err != nil && c.life.Err() == nil {
		c.options.Log.Error("a process cannot be started again", "machine", n.name, "process", e.Name, "error", err)
	}
}

// tailLines is how much of a log is worth showing.
const tailLines = 20

// tail returns the end of a log.
func tail(log string) string {
	data, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return "the end of " + log + ":\n" + strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}
