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
	conn, err := nft.Open(nft.Options{Logger: log})
	if err != nil {
		return err
	}
	if err := conn.Check(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := metrics.New(version)
	a := newAgent(c, log, m)
	e := nft.NewEnforcer(nft.EnforcerOptions{Conn: conn, Config: c.policy, Reclaimer: conntrack.Table{}, Logger: log})
	defer func() { err = errors.Join(err, e.Close()) }()
	a.enforcer = e
	m.ReadReclaimErrors(e.ReclaimErrors)
	if err := a.run(ctx, c, api); err != nil {
		return err
	}
	log.Info("selvage agent ends; what is in force stays in force")
	return nil
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
	// What fails ends all the rest.
	group, ctx := errgroup.WithContext(ctx)
	if c.httpAddress != "" {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", c.httpAddress)
		if err != nil {
			return fmt.Errorf("--http-address: %w", err)
		}
		group.Go(func() error { return serve(ctx, l, newMux(a.metrics.Handler(), a.healthy, a.ready)) })
	}
	a.log.Info("selvage agent starts", "version", version, "node", c.policy.NodeName, "source", c.source(),
		"markMask", (*markMask)(&c.policy.MarkMask).String(), "denyAction", c.policy.DenyAction, "podToNode", c.policy.PodToNode,
		"sharedSetThreshold", c.policy.SharedAbove, "http", c.httpAddress,
		"bandwidth", c.shaping.enabled)
	observe := a.observer()
	source, err := a.openSource(c, api, observe)
	if err != nil {
		return err
	}
	a.bandwidth = a.newBandwidth(c)
	defer func() { err = errors.Join(err, a.bandwidth.close()) }()
	inf := informer.New(informer.Options{Source: source, Logger: a.log, ResyncInterval: c.resyncInterval, Observe: observe})
	group.Go(func() error { return inf.Run(ctx, a.sync) })
	group.Go(func() error { return b.Run(ctx) })
	group.Go(func() error { return a.followBridges(ctx) })
	group.Go(func() error { return attached.Run(ctx) })
	group.Go(func() error { return a.followEngines(ctx, c.resyncInterval) })
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
		Connected:      func(kind informer.Kind, ok bool) { a.metrics.SetConnected(kind.String(), ok) },
		Trouble:        a.source.trouble,
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
