package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/selvage-net/selvage/e2e/lab/machine"
)

// Artifacts is where the lab finds what the cluster consists of. All paths are
// absolute; they are empty for what there is not.
type Artifacts interface {
	// Binary returns the path of a program.
	Binary(name string) string
	// CNI returns the directory with the CNI plugins.
	CNI() string
	// Image returns the path of a docker-archive.
	Image(name string) string
}

// Options says what cluster to start.
type Options struct {
	// Dir is the state directory. A cluster has it for itself.
	Dir string
	// Nodes is how many, 1 to 9. The default is 3.
	Nodes int
	// Backend is flannel's. The default is vxlan.
	Backend string
	// ProxyMode is that of all kube-proxies. The default is nftables.
	ProxyMode string
	// NoDNS leaves CoreDNS out.
	NoDNS bool
	// Images are loaded into every node. The default is pause, agnhost and
	// coredns.
	Images    []string
	Artifacts Artifacts
	// Self is the command line that leads to machine.Main in this program,
	// without the program itself. The default is "machine".
	Self []string
	// Log gets what happens once the cluster is up.
	Log *slog.Logger
	// Progress is called with a line for each stage of the start, and not
	// concurrently. It may be nil.
	Progress func(string)
}

// binaries are the programs that a cluster needs.
func binaries() []string {
	return []string{
		"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl",
		"kubelet", "kube-proxy", "flanneld", "containerd", "containerd-shim-runc-v2", "ctr", "runc",
	}
}

// complete fills in defaults, and tells all that is wrong.
func (o *Options) complete() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		wrong("%d nodes: it must be 1 to %d", o.Nodes, maxNodes)
	}
	o.Backend, o.ProxyMode = orElse(o.Backend, BackendVXLAN), orElse(o.ProxyMode, ProxyNFTables)
	if !slices.Contains([]string{BackendVXLAN, BackendHostGW}, o.Backend) {
		wrong("backend %q: it must be %s or %s", o.Backend, BackendVXLAN, BackendHostGW)
	}
	if err := checkProxyMode(o.ProxyMode); err != nil {
		errs = append(errs, err)
	}
	if len(o.Images) == 0 {
		o.Images = []string{"pause", "coredns", "agnhost"}
	}
	if len(o.Self) == 0 {
		o.Self = []string{"machine"}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return errors.Join(append(errs, o.checkFiles())...)
}

// checkFiles tells what is missing, and what machines could not see.
func (o *Options) checkFiles() error {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return err
	}
	o.Dir = dir
	var errs []error
	seen := func(what, path string) {
		if machine.Hidden(path) {
			errs = append(errs, fmt.Errorf("%s: machines have a directory of their own in place of %s", what, path))
		}
	}
	exists := func(what, path string) {
		if _, err := os.Stat(path); err != nil {
			errs = append(errs, fmt.Errorf("there is no %s: %w", what, err))
		}
	}
	seen("state directory", dir)
	files := map[string]string{"CNI plugins": o.Artifacts.CNI()}
	for _, b := range binaries() {
		files[b] = o.Artifacts.Binary(b)
	}
	for _, what := range slices.Sorted(maps.Keys(files)) {
		seen(what, files[what])
		exists(what, files[what])
	}
	for _, i := range o.Images {
		exists("image "+i, o.Artifacts.Image(i)) // it is read here
	}
	return errors.Join(errs...)
}

func checkProxyMode(mode string) error {
	if mode != ProxyNFTables && mode != ProxyIPTables {
		return fmt.Errorf("proxy mode %q: it must be %s or %s", mode, ProxyNFTables, ProxyIPTables)
	}
	return nil
}

func orElse(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
