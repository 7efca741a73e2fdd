package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/informer/link"
	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy"
	"github.com/selvage-net/selvage/policy/conntrack"
	"github.com/selvage-net/selvage/policy/nft"
)

// lastWords is how long an agent that ends may take to say why.
const lastWords = 5 * time.Second

// runAgent is `selvage agent`. It returns nil when ctx ends, or why it cannot
// go on. Nothing in the kernel is changed before all that can be checked was.
func runAgent(ctx context.Context, c config, log *slog.Logger) (err error) {
	limitMemory()
	bridgeKlog(log)
	var api *rest.Config
	if c.manifests == "" {
		if api, err = restConfig(c.kubeconfig, c.apiServerDir); err != nil {
			return err
		}
	}
	release, err := awaitLock(ctx)
	if err != nil {
		if api != nil && errors.Is(err, errRunning) {
			tellOfAnother(ctx, api, c, log, err)
		}
		return err
	}
	defer release()
	conn, lacks, err := openKernel(log)
	if err != nil {
		return err
	}
	c.policy.Masquerade, c.policy.Log = lacks.masquerade == nil, lacks.log == nil
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := metrics.New(version)
	a := newAgent(c, log, m)
	e := nft.NewEnforcer(nft.EnforcerOptions{Conn: conn, Config: c.policy, Reclaimer: conntrack.Table{}, Logger: log})
	defer func() { err = errors.Join(err, e.Close()) }()
	a.enforcer, a.drops = e, newDrops(c.drops, c.policy.NodeName, e, log)
	a.masquerade.unsupported = lacks.masquerade
	if lacks.log != nil {
		a.drops.fail(lacks.log)
	}
	m.ReadReclaimErrors(e.ReclaimErrors)
	m.ReadPolicies(func() (metrics.PolicyCounts, error) { return policyCounts(e.PolicyCounts()) })
	m.ReadDrops(a.drops.loggedPackets, a.drops.leftOut)
	if err := a.run(ctx, c, api); err != nil {
		return err
	}
	log.Info("selvage agent ends; what is in force stays in force")
	return nil
}

// lacking is what a kernel does not have of what policies can be enforced without; nil
// where it has it.
type lacking struct{ masquerade, log error }

// openKernel returns a connection to the kernel, if that has all that the rules need.
func openKernel(log *slog.Logger) (*nft.Conn, lacking, error) {
	conn, err := nft.Open(nft.Options{Logger: log})
	if err != nil {
		return nil, lacking{}, err
	}
	if err := conn.Check(); err != nil {
		return nil, lacking{}, err
	}
	lacks := lacking{masquerade: conn.CheckMasquerade(), log: conn.CheckLog()}
	for _, err := range []error{lacks.masquerade, lacks.log} {
		if err != nil && !errors.Is(err, nft.ErrUnsupported) {
			return nil, lacking{}, err
		}
	}
	return conn, lacks, nil
}

// run runs all parts until ctx ends or one of them fails.
func (a *agent) run(ctx context.Context, c config, api *rest.Config) (err error) {
	b, err := link.NewBridges(link.Options{Logger: a.log, Observe: a.observeBridges})
	if err != nil {
		return err
	}
	attached, err := link.NewAttachments(link.AttachmentsOptions{Logger: a.log, Observe: a.observeUnseen})
	if err != nil {
		return err
	}
	a.bridges, a.attachments = b, attached
	listeners, err := c.listen(ctx)
	if err != nil {
		return err
	}
	defer closeAll(listeners)
	a.log.Info("selvage agent starts", "version", version, "node", c.policy.NodeName, "source", c.source(),
		"markMask", (*markMask)(&c.policy.MarkMask).String(), "denyAction", c.policy.DenyAction, "podToNode", c.policy.PodToNode,
		"sharedSetThreshold", c.policy.SharedAbove, "http", c.httpAddress,
		"bandwidth", c.shaping.enabled, "masquerade", c.policy.Masquerade)
	observe := a.observer()
	source, err := a.openSource(c, api, observe)
	if err != nil {
		return err
	}
	a.bandwidth = a.newBandwidth(c)
	defer func() { err = errors.Join(err, a.bandwidth.close()) }()
	// What fails ends all the rest.
	group, ctx := errgroup.WithContext(ctx)
	mux := newMux(a.endpoints(c))
	for _, l := range listeners {
		group.Go(func() error { return serve(ctx, l, mux) })
	}
	inf := informer.New(informer.Options{Source: source, Node: c.policy.NodeName, Logger: a.log, ResyncInterval: c.resyncInterval, Observe: observe})
	if api != nil { // manifests are heard of only when they change
		a.metrics.ReadLastContact(inf.LastContact)
	}
	group.Go(func() error { return inf.Run(ctx, a.sync) })
	group.Go(func() error { return b.Run(ctx) })
	group.Go(func() error { return a.followBridges(ctx) })
	group.Go(func() error { return attached.Run(ctx) })
	group.Go(func() error { return a.followEngines(ctx, c.resyncInterval) })
	group.Go(func() error { return a.followMasqueraders(ctx, c.resyncInterval) })
	group.Go(func() error { return a.pools.run(ctx, a.enforcer) })
	if c.policy.Log {
		group.Go(func() error { return a.drops.run(ctx) })
	}
	if a.bandwidth != nil {
		group.Go(func() error { return a.persist(ctx, "shaper", a.bandwidth.run) })
		group.Go(func() error { return a.persist(ctx, "interfaces", a.bandwidth.follow) })
	}
	if api != nil {
		group.Go(func() error { a.source.askVersion(ctx, api, a.log); return nil })
	}
	return group.Wait()
}

// tellOfAnother makes an Event that says that another agent runs on this node.
// This one ends now, and so it waits until that is sent, for some seconds.
func tellOfAnother(ctx context.Context, api *rest.Config, c config, log *slog.Logger, why error) {
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	r, err := newRecorder(api, c.policy.NodeName, log)
	if err == nil {
		err = r.make(ctx, nodeNotice(c.policy.NodeName, reasonSecondAgent, why.Error()))
	}
	if err != nil {
		log.Debug("cannot make an Event of another agent", "err", err)
	}
}

// observer tells of what the informer sees.
func (a *agent) observer() informer.Observe {
	for _, kind := range informer.Kinds {
		a.metrics.SetConnected(kind.String(), false)
	}
	return informer.Observe{
		ManifestErrors: func(r informer.Reason) { a.metrics.ManifestRefused(string(r)) },
		Connected: func(kind informer.Kind, ok bool) {
			a.metrics.SetConnected(kind.String(), ok)
			a.source.connect(kind, ok)
		},
		Trouble: func(kind informer.Kind, t *informer.Trouble) {
			if t != nil {
				a.metrics.SourceFailed(kind.String(), t.Cause.String())
			}
			a.source.trouble(kind, t)
		},
	}
}

// openSource returns where the objects come from: the API server, or, if that
// is nil, the manifests.
func (a *agent) openSource(c config, api *rest.Config, observe informer.Observe) (informer.Source, error) {
	if api == nil {
		return informer.Manifests(c.manifests, informer.ManifestsOptions{Logger: a.log, Observe: observe})
	}
	r, err := newRecorder(api, c.policy.NodeName, a.log)
	if err != nil {
		return nil, err
	}
	a.problems.event = func(p policy.Problem) { r.send(policyNotice(p)) }
	a.pools.remarks.event = r.send
	a.conditions.event = func(c condition) { r.send(nodeNotice(r.node, c.reason, c.message)) }
	a.event = r.send
	return informer.Kubernetes(api)
}

// restConfig says how the API server is reached.
func restConfig(kubeconfig, apiServerDir string) (*rest.Config, error) {
	if kubeconfig != "" {
		c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("--kubeconfig: %w", err)
		}
		return c, nil
	}
	c, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("no source of objects: give --kubeconfig or --manifests, or run in a pod that has a service account")
	}
	if err != nil {
		return nil, fmt.Errorf("the pod's service account: %w", err)
	}
	host, err := apiServerIn(apiServerDir)
	if err != nil {
		return nil, fmt.Errorf("--api-server-dir: %w", err)
	}
	if host != "" {
		c.Host = host
	}
	return c, nil
}

// apiServerIn reads from files what is otherwise in the environment. It returns
// "" if neither is there. Files, since a kubelet that has no API server cannot
// start a container whose environment comes from a ConfigMap; those of a pod that
// runs are there.
func apiServerIn(dir string) (string, error) {
	if dir == "" {
		return "", nil
	}
	host, err := os.ReadFile(filepath.Join(dir, "KUBERNETES_SERVICE_HOST"))
	port, perr := os.ReadFile(filepath.Join(dir, "KUBERNETES_SERVICE_PORT"))
	if errors.Is(err, fs.ErrNotExist) && errors.Is(perr, fs.ErrNotExist) {
		return "", nil
	}
	if err := errors.Join(err, perr); err != nil {
		return "", err
	}
	return "https://" + net.JoinHostPort(strings.TrimSpace(string(host)), strings.TrimSpace(string(port))), nil
}

// policyCounts is how package metrics has what the kernel has counted.
func policyCounts(c nft.PolicyCounts, err error) (metrics.PolicyCounts, error) {
	out := metrics.PolicyCounts{
		Policies: make([]metrics.PolicyCount, 0, len(c.Policies)), Denied: make([]metrics.DeniedCount, 0, len(c.Denied)),
	}
	for _, p := range c.Policies {
		out.Policies = append(out.Policies, metrics.PolicyCount{
			Namespace: p.Namespace, Policy: p.Name, Direction: p.Direction, Allowed: p.Allowed.Packets, Denied: p.Denied.Packets,
		})
	}
	for _, d := range c.Denied {
		out.Denied = append(out.Denied, metrics.DeniedCount{Namespace: d.Namespace, Direction: d.Direction, Packets: d.Packets})
	}
	return out, err
}

// source says for the log where the objects come from.
func (c config) source() string {
	switch {
	case c.manifests != "":
		return "manifests in " + c.manifests
	case c.kubeconfig != "":
		return "API server by " + c.kubeconfig
	}
	return "API server by service account"
}

// limitMemory has the garbage collector trade time, of which the agent has
// plenty between events, for space, of which it shall take little. GOGC, if it
// is set, goes first.
func limitMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
}
