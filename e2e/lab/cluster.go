package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/e2e/lab/machine"
)

// Cluster is one that this program holds up. It is safe for concurrent use.
type Cluster struct {
	options Options
	paths   paths
	began   time.Time
	lock    *os.File
	host    *machine.Host
	fabric  *machine.Machine
	nodes   []*node
	config  *rest.Config
	client  kubernetes.Interface
	server  *http.Server
	ready   atomic.Bool
	wire    atomic.Int64 // PID of the fabric, once it is there

	// life ends when the cluster does; by a cause if something failed before it
	// was up.
	life context.Context
	end  context.CancelCauseFunc
	work sync.WaitGroup // what goes on by itself

	telling sync.Mutex // held during Progress, and while state.json is written
}

// upWithin is how long a cluster may take to be up.
const upWithin = 5 * time.Minute

// Start starts a cluster and returns when all nodes are Ready and DNS is
// available. The cluster must be closed. If something fails, or ctx ends before,
// nothing is left but the logs.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	if err := Check(); err != nil {
		return nil, err
	}
	c := &Cluster{options: o, paths: paths(o.Dir), began: time.Now()}
	c.life, c.end = context.WithCancelCause(context.WithoutCancel(ctx))
	starting, cancel := context.WithTimeoutCause(ctx, upWithin, fmt.Errorf("the cluster was not up within %v", upWithin))
	defer cancel()
	starting, fail := context.WithCancelCause(starting)
	defer fail(nil)
	stop := context.AfterFunc(c.life, func() { fail(context.Cause(c.life)) })
	defer stop()
	if err := c.start(starting); err != nil {
		// What ended first says more than what it made fail.
		if cause := context.Cause(starting); cause != nil {
			err = cause
		}
		return nil, errors.Join(err, c.Close())
	}
	c.ready.Store(true)
	c.progress("the cluster is up")
	return c, c.save()
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.prepare(); err != nil {
		return err
	}
	if err := c.startMachines(ctx); err != nil {
		return err
	}
	c.progress("%s: %d machines on %s", Fabric, len(c.nodes), address(0))
	if err := c.save(); err != nil {
		return err
	}
	var g *errgroup.Group
	g, ctx = errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		g.Go(func() error { return c.startServices(ctx, n) })
		g.Go(func() error {
			if err := c.awaitReady(ctx, n); err != nil {
				return err
			}
			c.progress("node %s Ready", n.name)
			return nil
		})
	}
	if !c.options.NoDNS {
		g.Go(func() error { return c.startDNS(ctx) })
	}
	return g.Wait()
}

// prepare takes possession of the state directory and fills it.
func (c *Cluster) prepare() error {
	if err := os.MkdirAll(c.options.Dir, 0o755); err != nil {
		return err
	}
	lock, err := lockState(c.paths)
	if err != nil {
		return err
	}
	c.lock = lock
	left, err := removeState(c.paths)
	if err != nil {
		return fmt.Errorf("remove what an earlier cluster left: %w", err)
	}
	if left != "" {
		c.progress("removed what an earlier cluster left: %s", left)
	}
	for _, dir := range []string{c.paths.logs(), c.paths.bin(), c.paths.disks()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, b := range binaries() {
		if err := os.Symlink(c.options.Artifacts.Binary(b), c.paths.in("bin", b)); err != nil {
			return err
		}
	}
	s, err := newSecrets()
	if err != nil {
		return fmt.Errorf("make keys: %w", err)
	}
	if err := s.write(c.paths); err != nil {
		return err
	}
	for i := range c.options.Nodes {
		c.nodes = append(c.nodes, newNode(i+1, c.options.ProxyMode))
	}
	return c.serve()
}

// startMachines starts the fabric and the nodes, without any processes.
func (c *Cluster) startMachines(ctx context.Context) error {
	var err error
	c.host, err = machine.NewHost(machine.Config{
		Disks: c.paths.disks(), Size: "8g", Record: c.paths.cgroups(),
		Cgroup: fmt.Sprintf("selvage-lab-%d-", os.Getpid()), Self: c.options.Self,
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.paths.in("logs", Fabric), 0o755); err != nil {
		return err
	}
	c.fabric, err = c.host.Start(ctx, machine.Spec{Name: Fabric, Bare: true, Log: c.paths.log(Fabric, "init")})
	if err != nil {
		return err
	}
	c.wire.Store(int64(c.fabric.PID()))
	if err := buildFabric(c.fabric.PID()); err != nil {
		return fmt.Errorf("%s: %w", Fabric, err)
	}
	if c.config, err = restConfig(c.paths, c.fabric.PID()); err != nil {
		return err
	}
	if c.client, err = kubernetes.NewForConfig(c.config); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		g.Go(func() error { return c.boot(ctx, n) })
	}
	return g.Wait()
}

// progress tells of a stage that is complete.
func (c *Cluster) progress(format string, args ...any) {
	c.telling.Lock()
	defer c.telling.Unlock()
	c.options.Progress(fmt.Sprintf("%6.1fs  ", time.Since(c.began).Seconds()) + fmt.Sprintf(format, args...))
}

// Info says what is up now.
func (c *Cluster) Info() Info {
	info := Info{
		Ready: c.ready.Load(), Kubeconfig: c.paths.kubeconfig(), APIServer: apiServer(),
		Backend: c.options.Backend, Supervisor: os.Getpid(),
	}
	info.Machines = append(info.Machines, Machine{Name: Fabric, IP: address(0), PID: int(c.wire.Load())})
	for _, n := range c.nodes {
		info.Machines = append(info.Machines, n.info())
	}
	return info
}

// save writes what is up to state.json.
func (c *Cluster) save() error {
	data, err := json.MarshalIndent(c.Info(), "", "  ")
	if err != nil {
		return err
	}
	c.telling.Lock()
	defer c.telling.Unlock()
	return os.WriteFile(c.paths.state(), append(data, '\n'), 0o644)
}

// Close ends the cluster at once. Nothing is left of it but its logs.
func (c *Cluster) Close() error {
	c.end(errors.New("the cluster goes down"))
	if c.lock == nil {
		return nil // it had nothing
	}
	var errs []error
	if c.server != nil {
		errs = append(errs, c.server.Close())
	}
	var g sync.WaitGroup
	failed := make([]error, len(c.nodes))
	for i, n := range c.nodes {
		g.Go(func() {
			// A change that is going on has been told to end.
			n.changing.Lock()
			defer n.changing.Unlock()
			failed[i] = n.close()
		})
	}
	g.Wait()
	c.work.Wait()
	errs = append(errs, failed...)
	if c.fabric != nil {
		errs = append(errs, c.fabric.Close())
	}
	if c.host != nil {
		errs = append(errs, c.host.Close())
	}
	_, err := removeState(c.paths)
	return errors.Join(append(errs, err, c.lock.Close())...)
}

// lockState takes the state directory for this program, until the file is
// closed or the program ends.
func lockState(p paths) (*os.File, error) {
	f, err := os.OpenFile(p.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w in %s", ErrUp, p)
	}
	return nil, fmt.Errorf("lock %s: %w", p.lock(), err)
}

// ErrUp says that a cluster is up already.
var ErrUp = errors.New("a cluster is up already")

// removeState removes what a cluster has outside its machines, and says what
// that was. The state directory must be locked.
func removeState(p paths) (left string, err error) {
	cgroups, err := machine.Sweep(p.cgroups())
	if len(cgroups) > 0 {
		left = fmt.Sprintf("%d cgroups", len(cgroups))
	}
	errs := []error{err}
	for _, path := range []string{p.socket(), p.state(), p.kubeconfig(), p.pki(), p.bin()} {
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		if path == p.socket() {
			left = joined(left, "a socket")
		}
		errs = append(errs, os.RemoveAll(path))
	}
	// It is a mount point where the machines are, and empty here.
	if err := os.Remove(p.disks()); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return left, errors.Join(errs...)
}

func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}

// Clean removes what a cluster left that did not come to close itself, and says
// what that was. It fails with ErrUp if the cluster is up.
func Clean(dir string) (left string, err error) {
	p := paths(dir)
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	lock, err := lockState(p)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	return removeState(p)
}
