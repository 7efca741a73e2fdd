package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// changeWithin is how long a change that a client asks for may take. It is
// completed even if the client goes away: half a reboot is of no use.
const changeWithin = 3 * time.Minute

// serve answers clients from now on.
func (c *Cluster) serve() error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(c.Info()) // the client may have gone
	})
	change := func(pattern string, f func(ctx context.Context, n *node, r *http.Request) error) {
		mux.HandleFunc("POST /machines/{machine}/"+pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := c.change(r, f); err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
			}
		})
	}
	change("reboot", func(ctx context.Context, n *node, _ *http.Request) error { return c.reboot(ctx, n) })
	change("processes/{process}/stop", func(ctx context.Context, n *node, r *http.Request) error {
		return c.stopProcess(ctx, n, r.PathValue("process"))
	})
	change("processes/{process}/start", func(ctx context.Context, n *node, r *http.Request) error {
		return c.restartProcess(ctx, n, r.PathValue("process"))
	})
	change("proxy-mode", func(ctx context.Context, n *node, r *http.Request) error {
		var body proxyMode
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			return err
		}
		return c.setProxyMode(ctx, n, body.Mode)
	})
	l, err := net.Listen("unix", c.paths.socket())
	if err != nil {
		// The kernel takes no more than 107 bytes.
		return fmt.Errorf("listen on %s (%d bytes): %w", c.paths.socket(), len(c.paths.socket()), err)
	}
	c.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	c.work.Go(func() {
		if err := c.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			c.options.Log.Error("clients are not served any more", "error", err)
		}
	})
	return nil
}

// change makes a change to the node that a request names.
func (c *Cluster) change(r *http.Request, f func(context.Context, *node, *http.Request) error) error {
	if !c.ready.Load() {
		return errors.New("the cluster is not up yet")
	}
	ctx, cancel := context.WithTimeoutCause(c.life, changeWithin, fmt.Errorf("it took longer than %v", changeWithin))
	defer cancel()
	name := r.PathValue("machine")
	for _, n := range c.nodes {
		if n.name == name {
			n.changing.Lock()
			defer n.changing.Unlock()
			return errors.Join(f(ctx, n, r), c.save())
		}
	}
	return fmt.Errorf("the cluster has no node %q", name)
}

// stopProcess kills a process. changing is held.
func (c *Cluster) stopProcess(ctx context.Context, n *node, name string) error {
	if _, _, err := c.flags(n, name); err != nil {
		return err
	}
	m, err := n.up()
	if err != nil {
		return err
	}
	// It may have ended by itself, and wait to be started again.
	n.mu.Lock()
	p := n.process(name)
	runs := p != nil && p.wanted && p.PID != 0
	waits := p != nil && p.wanted && p.PID == 0
	if p != nil {
		p.wanted = false
	}
	n.mu.Unlock()
	if waits {
		return nil
	}
	if !runs {
		return fmt.Errorf("%s does not run on %s", name, n.name)
	}
	err = m.StopProcess(ctx, name)
	n.mu.Lock()
	p.PID = 0
	n.mu.Unlock()
	return err
}

// restartProcess starts a process that was stopped. changing is held.
func (c *Cluster) restartProcess(ctx context.Context, n *node, name string) error {
	if err := c.startProcess(ctx, n, name); err != nil {
		return err
	}
	if name != kubeAPIServer {
		return nil
	}
	return c.awaitAPIServer(ctx)
}

// reboot starts a machine anew. changing is held.
func (c *Cluster) reboot(ctx context.Context, n *node) error {
	if err := n.close(); err != nil {
		return err
	}
	if err := c.boot(ctx, n); err != nil {
		return err
	}
	if err := c.startServices(ctx, n); err != nil {
		return err
	}
	return c.awaitReady(ctx, n)
}

// setProxyMode restarts kube-proxy in another mode. changing is held.
func (c *Cluster) setProxyMode(ctx context.Context, n *node, mode string) error {
	if err := checkProxyMode(mode); err != nil {
		return err
	}
	m, err := n.up()
	if err != nil {
		return err
	}
	if err := c.stopProcess(ctx, n, kubeProxy); err != nil {
		return err
	}
	argv := []string{c.options.Artifacts.Binary(kubeProxy), "--config=" + proxyConfig, "--cleanup"}
	cmd := m.Command(ctx, argv...)
	cmd.Env = c.paths.environ()
	if _, err := output(cmd, n.name, argv); err != nil {
		return err
	}
	config, err := proxyYAML(n.name, mode, c.paths.kubeconfig())
	if err != nil {
		return err
	}
	if err := m.WriteFile(proxyConfig, config); err != nil {
		return err
	}
	n.mu.Lock()
	n.proxyMode = mode
	n.mu.Unlock()
	return c.startProcess(ctx, n, kubeProxy)
}
