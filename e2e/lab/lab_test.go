package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/selvage-net/selvage/e2e/lab/machine"
)

// The test binary is the machines' init, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "machine" {
		if err := machine.Main(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fakes are artifacts that are shell scripts.
type fakes string

func (f fakes) Binary(name string) string { return filepath.Join(string(f), name) }
func (f fakes) CNI() string               { return string(f) }
func (f fakes) Image(string) string       { return "/dev/null" }

func newFakes(t *testing.T, scripts map[string]string) fakes {
	t.Helper()
	dir := t.TempDir()
	for _, b := range binaries() {
		script := scripts[b]
		if script == "" {
			script = "sleep 1000"
		}
		if err := os.WriteFile(filepath.Join(dir, b), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return fakes(dir)
}

// require skips a test where the lab cannot run, or fails it where a skip would
// hide that it never ran.
func require(t *testing.T) {
	t.Helper()
	err := Check()
	if err == nil {
		return
	}
	if os.Getenv("SELVAGE_REQUIRE_PRIVILEGED") == "1" {
		t.Fatal("NOT RUN: ", err)
	}
	t.Skip("SKIPPED, NOT TESTED: ", err)
}

// nothingLeft checks that a state directory has only what may stay.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "logs" && e.Name() != "lock" {
			t.Errorf("%s is left", e.Name())
		}
	}
	groups, err := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/selvage-lab-%d-*", os.Getpid()))
	if err != nil || len(groups) > 0 {
		t.Errorf("cgroups are left: %v %v", groups, err)
	}
}

// TestStartFails has a process end before the cluster is up: it is named, with
// the end of its log, and nothing is left.
func TestStartFails(t *testing.T) {
	require(t)
	dir := filepath.Join(t.TempDir(), "state")
	var lines []string
	began := time.Now()
	c, err := Start(t.Context(), Options{
		Dir: dir, Artifacts: newFakes(t, map[string]string{"etcd": "for i in $(seq 30); do echo line $i; done; exit 3"}),
		Progress: func(line string) { lines = append(lines, line) },
	})
	if err == nil {
		t.Fatal("a cluster is up that cannot be", c.Close())
	}
	for _, want := range []string{"etcd on n1", "exit status 3", filepath.Join("logs", "n1", "etcd.log"), "line 30", "line 11\n"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "line 10\n") {
		t.Errorf("the error has too much of the log: %v", err)
	}
	if len(lines) != 1 || !strings.Contains(lines[0], "3 machines") {
		t.Errorf("progress: %q", lines)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	nothingLeft(t, dir)
}

// TestStartEnds has the start end while the cluster waits for etcd, and looks at
// what clients are told before.
func TestStartEnds(t *testing.T) {
	require(t)
	dir := filepath.Join(t.TempDir(), "state")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := errors.New("enough")
	up := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		_, err := Start(ctx, Options{Dir: dir, Nodes: 2, Artifacts: newFakes(t, nil), Progress: func(string) { up <- struct{}{} }})
		ended <- err
	}()
	select {
	case <-up:
	case err := <-ended:
		t.Fatal(err)
	}
	client, err := Connect(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := client.Info(t.Context())
	if err != nil || info.Ready || len(info.Machines) != 3 {
		t.Errorf("info %+v: %v", info, err)
	}
	if err := client.Reboot(t.Context(), "n1"); err == nil || !strings.Contains(err.Error(), "not up yet") {
		t.Errorf("rebooted: %v", err)
	}
	out, err := client.Exec(t.Context(), "n2", "ip", "-4", "-br", "address", "show", "eth0")
	if err != nil || !strings.Contains(string(out), "172.31.77.12/24") {
		t.Errorf("n2 has %s: %v", out, err)
	}
	out, err = client.NetCommand(t.Context(), Fabric, "ip", "neigh", "get", "172.31.77.9", "dev", "br0").CombinedOutput()
	if err == nil || strings.Contains(string(out), "Cannot find device") {
		t.Errorf("fabric has no bridge, or knows who is not there: %s", out)
	}
	if _, err := client.Exec(t.Context(), "n9", "true"); err == nil || !strings.Contains(err.Error(), `no machine "n9"`) {
		t.Errorf("n9: %v", err)
	}
	if _, err := client.Exec(t.Context(), "n1", "sh", "-c", "echo why >&2; exit 4"); err == nil || !strings.HasSuffix(err.Error(), "on n1: exit status 4: why") {
		t.Errorf("a program that fails: %v", err)
	}
	if _, err := Clean(dir); !errors.Is(err, ErrUp) {
		t.Errorf("cleaned under its feet: %v", err)
	}
	cancel(stop)
	if err := <-ended; !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	nothingLeft(t, dir)
	if _, err := Connect(dir); err == nil || !strings.Contains(err.Error(), "no cluster is up in "+dir) {
		t.Errorf("connected: %v", err)
	}
}

// TestOptions has all that is wrong told at once.
func TestOptions(t *testing.T) {
	dir := newFakes(t, nil)
	if err := os.Remove(dir.Binary("etcd")); err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: "/var/lib/lab", Nodes: 12, Backend: "ipip", ProxyMode: "ipvs", Artifacts: dir}
	err := o.complete()
	for _, want := range []string{"12 nodes", `backend "ipip"`, `proxy mode "ipvs"`, "state directory: machines have", "there is no etcd"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
	o = Options{Dir: "x", Artifacts: newFakes(t, nil)}
	if err := o.complete(); err != nil || o.Nodes != 3 || o.Backend != BackendVXLAN || o.ProxyMode != ProxyNFTables || !filepath.IsAbs(o.Dir) {
		t.Errorf("defaults: %+v: %v", o, err)
	}
}

// TestSecrets checks the API server's certificate as its clients do.
func TestSecrets(t *testing.T) {
	s, err := newSecrets()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := s.kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(raw)
	if err != nil || config.Host != "https://172.31.77.11:6443" || config.BearerToken != s.token {
		t.Fatalf("kubeconfig: %v %v", config, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(config.CAData) {
		t.Fatal("kubeconfig has no CA")
	}
	pair, err := tls.X509KeyPair(s.cert, s.key)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"172.31.77.11", "10.96.0.1", "kubernetes.default.svc", "127.0.0.1"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if want := s.token + `,admin,admin,"system:masters"` + "\n"; string(s.tokens()) != want {
		t.Errorf("tokens %q", s.tokens())
	}
}

// TestProxyConfig has kube-proxy leave alone what is the whole machine's.
func TestProxyConfig(t *testing.T) {
	raw, err := proxyYAML("n2", ProxyIPTables, "/x")
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Mode, HostnameOverride string
		Conntrack              map[string]any
	}
	if err := yaml.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	if c.Mode != "iptables" || c.HostnameOverride != "n2" {
		t.Errorf("%s", raw)
	}
	for name, zero := range map[string]any{"maxPerCore": 0.0, "min": 0.0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"} {
		if c.Conntrack[name] != zero {
			t.Errorf("conntrack.%s is %v", name, c.Conntrack[name])
		}
	}
}

// TestDNSManifests holds the manifests to the lab's addresses.
func TestDNSManifests(t *testing.T) {
	objects, err := decode(corednsManifests)
	if err != nil || len(objects) != 6 {
		t.Fatalf("%d objects: %v", len(objects), err)
	}
	for _, o := range objects {
		if o.GetKind() == "Service" && fmt.Sprint(o.Object["spec"].(map[string]any)["clusterIP"]) != dnsAddress {
			t.Error("the Service has another address than what kubelets tell pods")
		}
	}
}

// TestClean removes what a cluster that was killed left.
func TestClean(t *testing.T) {
	dir := t.TempDir()
	p := paths(dir)
	if err := os.MkdirAll(filepath.Join(p.disks()), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{p.socket(), p.kubeconfig(), p.state()} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	left, err := Clean(dir)
	if err != nil || left != "a socket" {
		t.Errorf("left %q: %v", left, err)
	}
	nothingLeft(t, dir)
	if left, err := Clean(filepath.Join(dir, "none")); left != "" || err != nil {
		t.Errorf("nothing was there, but %q: %v", left, err)
	}
}
