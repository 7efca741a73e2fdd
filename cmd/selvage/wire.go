package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/informer/link"
	"github.com/selvage-net/selvage/metrics"
	"github.com/selvage-net/selvage/policy/conntrack"
	"github.com/selvage-net/selvage/policy/nft"
)

// runAgent is `selvage agent`. It returns nil when ctx ends, or why it cannot
// go on. Nothing in the kernel is changed before all that can be checked was.
func runAgent(ctx context.Context, c config, log *slog.Logger) (err error) {
	limitMemory()
	bridgeKlog(log)
	release, err := lock()
	if err != nil {
		return err
	}
	defer release()
	conn, err := nft.Open(nft.Options{Logger: log})
	if err != nil {
		return err
	}
	if err := conn.Check(); err != nil {
		return err
	}
	var api *rest.Config
	if c.manifests == "" {
		if api, err = restConfig(c.kubeconfig); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// What fails ends all the rest, and the lock is released after that.
	group, ctx := errgroup.WithContext(ctx)
	m := metrics.New(version)
	a := newAgent(c, log, m)
	b, err := link.NewBridges(link.Options{Logger: log, Observe: a.observeBridges})
	if err != nil {
		return err
	}
	e := nft.NewEnforcer(nft.EnforcerOptions{Conn: conn, Config: c.policy, Reclaimer: conntrack.Table{}, Logger: log})
	defer func() { err = errors.Join(err, e.Close()) }()
	a.bridges, a.enforcer = b, e
	m.ReadReclaimErrors(e.ReclaimErrors)
	if c.httpAddress != "" {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.httpAddress)
		if err != nil {
			return fmt.Errorf("--http-address: %w", err)
		}
		group.Go(func() error { return serve(ctx, l, newMux(m.Handler(), a.healthy, a.ready)) })
	}
	log.Info("selvage agent starts", "version", version, "node", c.policy.NodeName, "source", c.source(),
		"markMask", (*markMask)(&c.policy.MarkMask).String(), "denyAction", c.policy.DenyAction, "podToNode", c.policy.PodToNode,
		"sharedSetThreshold", c.policy.SharedAbove, "http", c.httpAddress)
	observe := observer(m)
	source, err := a.openSource(c, api, observe)
	if err != nil {
		return err
	}
	inf := informer.New(informer.Options{Source: source, Logger: log, ResyncInterval: c.resyncInterval, Observe: observe})
	group.Go(func() error { return inf.Run(ctx, a.sync) })
	group.Go(func() error { return b.Run(ctx) })
	group.Go(func() error { return a.followBridges(ctx) })
	if err = group.Wait(); err != nil {
		return err
	}
	log.Info("selvage agent ends; what is in force stays in force")
	return nil
}

// observer counts what the informer sees.
func observer(m *metrics.Metrics) informer.Observe {
	for _, kind := range informer.Kinds {
		m.SetConnected(kind.String(), false)
	}
	return informer.Observe{
		ManifestErrors: func(r informer.Reason) { m.ManifestRefused(string(r)) },
		Connected:      func(kind informer.Kind, ok bool) { m.SetConnected(kind.String(), ok) },
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
	a.problems.event = r.event
	return informer.Kubernetes(api)
}

// restConfig says how the API server is reached.
func restConfig(kubeconfig string) (*rest.Config, error) {
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
	return c, nil
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
