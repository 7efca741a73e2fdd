package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/selvage-net/selvage/e2e/lab/machine"
)

// Client talks to the supervisor of a cluster that is up. It is safe for
// concurrent use.
type Client struct {
	paths paths
	http  *http.Client
}

// Connect finds the cluster whose state directory is dir. The error tells if
// none is up.
func Connect(dir string) (*Client, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	c := &Client{paths: paths(dir)}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.paths.socket())
		},
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := c.Info(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Info returns what is up now.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info Info
	err := c.call(ctx, http.MethodGet, "/info", nil, &info)
	return info, err
}

// Stop kills a process of a machine, e.g. "n1", "kube-apiserver". It stays
// down until Start, or until the machine reboots.
func (c *Client) Stop(ctx context.Context, machine, process string) error {
	return c.call(ctx, http.MethodPost, processPath(machine, process, "stop"), nil, nil)
}

// Start starts a process of a machine that Stop stopped, with the flags it had,
// and returns when it is ready to serve.
func (c *Client) Start(ctx context.Context, machine, process string) error {
	return c.call(ctx, http.MethodPost, processPath(machine, process, "start"), nil, nil)
}

// Reboot takes a node's power away: its processes and namespaces are gone at
// once. Then it starts again, with what is on its disk (/var/lib, /var/log,
// /etc, /opt). Reboot returns when the cluster takes the node for Ready since.
func (c *Client) Reboot(ctx context.Context, machine string) error {
	return c.call(ctx, http.MethodPost, machinePath(machine, "reboot"), nil, nil)
}

// ProxyMode restarts the kube-proxy of a node in another mode, nftables or
// iptables. The rules of the mode before are removed.
func (c *Client) ProxyMode(ctx context.Context, machine, mode string) error {
	return c.call(ctx, http.MethodPost, machinePath(machine, "proxy-mode"), proxyMode{mode}, nil)
}

// Exec runs a program inside all namespaces of a machine and returns its
// standard output. The error has what it wrote to standard error.
func (c *Client) Exec(ctx context.Context, machine string, argv ...string) ([]byte, error) {
	return output(c.Command(ctx, machine, argv...), machine, argv)
}

// Command returns, not started, a program inside all namespaces of a machine:
// its files, processes and network are what it sees. The programs of the
// cluster are in its PATH. If the machine is not up, starting it fails.
//
// The command belongs to the machine as it is now, and dies with it. It dies
// with ctx, too.
func (c *Client) Command(ctx context.Context, name string, argv ...string) *exec.Cmd {
	m, err := c.running(ctx, name)
	cmd := machine.Command(ctx, m.PID, m.Node, argv...)
	cmd.Env = c.paths.environ()
	if err != nil {
		cmd.Err = err
	}
	return cmd
}

// NetCommand returns, not started, a program of the host that uses a machine's
// network.
func (c *Client) NetCommand(ctx context.Context, name string, argv ...string) *exec.Cmd {
	m, err := c.running(ctx, name)
	cmd := machine.Command(ctx, m.PID, false, argv...)
	cmd.Env = append(os.Environ(), c.paths.environ()...)
	if err != nil {
		cmd.Err = err
	}
	return cmd
}

// LoadImage puts a docker-archive into the containerd of every node.
func (c *Client) LoadImage(ctx context.Context, archive string) error {
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range info.Machines {
		if !m.Node {
			continue
		}
		g.Go(func() error {
			if err := importImage(c.Command(ctx, m.Name, importArgs()...), archive); err != nil {
				return fmt.Errorf("image %s into %s: %w", archive, m.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// RESTConfig returns a configuration for client-go that works from the host:
// its connections are opened in the fabric's network namespace.
func (c *Client) RESTConfig(ctx context.Context) (*rest.Config, error) {
	m, err := c.running(ctx, Fabric)
	if err != nil {
		return nil, err
	}
	return restConfig(c.paths, m.PID)
}

// restConfig opens its connections in the network namespace of the process pid.
func restConfig(p paths, pid int) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", p.kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return machine.Dial(ctx, pid, network, address)
	}
	// It is the lab's own API server: there is nobody to be polite to.
	config.QPS = -1
	return config, nil
}

// running returns a machine that is up.
func (c *Client) running(ctx context.Context, name string) (Machine, error) {
	info, err := c.Info(ctx)
	if err != nil {
		return Machine{}, err
	}
	m, ok := info.machine(name)
	switch {
	case !ok:
		return m, fmt.Errorf("the cluster has no machine %q", name)
	case m.PID == 0:
		return m, fmt.Errorf("machine %s is not up", name)
	}
	return m, nil
}

// call sends a request to the supervisor. An answer that is not 200 is an error
// with the supervisor's words.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, &body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return fmt.Errorf("no cluster is up in %s: %w", c.paths, op.Err)
		}
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return errors.Join(errors.New(strings.TrimSpace(string(text))), err)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

func machinePath(machine, verb string) string {
	return "/machines/" + url.PathEscape(machine) + "/" + verb
}

func processPath(machine, process, verb string) string {
	return machinePath(machine, "processes/"+url.PathEscape(process)+"/"+verb)
}

// proxyMode is the body of a request to change it.
type proxyMode struct {
	Mode string `json:"mode"`
}

// environ is the environment of programs on machines.
func (p paths) environ() []string {
	return []string{
		"PATH=" + p.bin() + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8",
		"KUBECONFIG=" + p.kubeconfig(),
		"CONTAINERD_ADDRESS=" + containerdSocket,
		"CONTAINERD_NAMESPACE=k8s.io",
	}
}

// containerdSocket is the same on each node, as /run is its own.
const containerdSocket = "/run/containerd/containerd.sock"

// importArgs is the command that reads a docker-archive from standard input.
func importArgs() []string {
	return []string{"ctr", "images", "import", "-"}
}

// importImage runs a command made of importArgs on an archive.
func importImage(cmd *exec.Cmd, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.Stdin = f
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// output runs cmd as Client.Exec does.
func output(cmd *exec.Cmd, machine string, argv []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		err = fmt.Errorf("%s on %s: %w", strings.Join(argv, " "), machine, err)
		if said := bytes.TrimSpace(stderr.Bytes()); len(said) > 0 {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return stdout.Bytes(), err
	}
	return stdout.Bytes(), nil
}
