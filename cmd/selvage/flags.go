package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/selvage-net/selvage/informer"
	"github.com/selvage-net/selvage/policy"
)

// config is everything that the agent can be told.
type config struct {
	policy  policy.Config
	shaping shapingConfig
	drops   dropsConfig

	// kubeconfig is the file that says where the API server is. Empty: the
	// service account of the pod.
	kubeconfig string
	// apiServerDir has files that say where the API server is, in place of the
	// environment; they need not be there.
	apiServerDir string
	// manifests is the directory that is read in place of the API.
	manifests string

	// httpAddress is where /metrics, /status and the rest are served, see
	// listenAddresses; empty: nowhere.
	httpAddress string
	// page has a page for people be served, too.
	page      bool
	logLevel  string
	logFormat string

	// resyncInterval is the time between two comparisons with all that is in
	// the kernel.
	resyncInterval time.Duration
}

func defaultConfig() config {
	return config{
		policy:         policy.DefaultConfig(os.Getenv("NODE_NAME")),
		shaping:        shapingConfig{enabled: true, netns: []string{"/run/netns"}},
		drops:          defaultDropsConfig(),
		httpAddress:    "127.0.0.1:9470",
		logLevel:       "info",
		logFormat:      "text",
		resyncInterval: informer.DefaultResyncInterval,
	}
}

// addPolicyFlags are the flags of all commands that compile.
func (c *config) addPolicyFlags(f *pflag.FlagSet) {
	f.StringVar(&c.policy.NodeName, "node-name", c.policy.NodeName, "name of this node, as its Node object has it (default $NODE_NAME)")
	f.StringVar(&c.manifests, "manifests", "", "directory of YAML or JSON manifests to read in place of the Kubernetes API")
	f.Var((*markMask)(&c.policy.MarkMask), "mark-mask", "bits of the conntrack mark that may be used; they must be nobody else's")
	f.Var((*text[policy.DenyAction])(&c.policy.DenyAction), "deny-action", "what to do with a packet that policy denies: drop or reject")
	f.Var((*text[policy.PodToNode])(&c.policy.PodToNode), "pod-to-node", "what applies to traffic from a pod to its own node: allow, or policy (its egress policies)")
	f.IntVar(&c.policy.SharedAbove, "shared-set-threshold", c.policy.SharedAbove, "pods that a selector must match more of to become one set that all policies share")
	f.Var((*prefixes)(&c.policy.NoMasquerade), "no-masquerade-cidrs", "blocks of addresses, with commas; what pods send there keeps its source address, whatever the pools say")
	addServiceCIDRs(f, &c.policy.ServiceCIDRs)
}

// addServiceCIDRs is the flag of all commands that must tell which pools are in force.
func addServiceCIDRs(f *pflag.FlagSet, to *[]netip.Prefix) {
	f.Var((*prefixes)(to), "service-cidrs", "blocks of addresses that Services have, with commas, where the API has no ServiceCIDR objects (before Kubernetes 1.33)")
}

// addAgentFlags are the flags of the agent alone.
func (c *config) addAgentFlags(f *pflag.FlagSet) {
	f.StringVar(&c.kubeconfig, "kubeconfig", "", "file that says where the API server is (default: the pod's service account)")
	f.StringVar(&c.apiServerDir, "api-server-dir", "", "directory with files KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT: where the API server is, in place of its Service; without them it is the Service")
	f.StringVar(&c.httpAddress, "http-address", c.httpAddress, "where to serve /metrics, /healthz, /readyz, /status, /drops and /explain: host:port, or several with commas; empty to serve nothing")
	f.BoolVar(&c.page, "page", false, "serve a page for people, too, at /")
	f.StringVar(&c.logLevel, "log-level", c.logLevel, "debug, info, warn or error")
	f.StringVar(&c.logFormat, "log-format", c.logFormat, "text or json")
	c.drops.addFlags(f)
	c.shaping.addFlags(f)
	f.DurationVar(&c.resyncInterval, "resync-interval", c.resyncInterval, "time between two full comparisons with what is in the kernel")
}

// validate says what is wrong with the agent's configuration, all at once.
func (c *config) validate() error {
	errs := []error{c.validatePolicy(), c.drops.validate()}
	if c.manifests != "" && c.kubeconfig != "" {
		errs = append(errs, errors.New("--manifests and --kubeconfig exclude each other"))
	}
	if c.apiServerDir != "" && (c.manifests != "" || c.kubeconfig != "") {
		errs = append(errs, errors.New("--api-server-dir is for the pod's service account: it goes with neither --manifests nor --kubeconfig"))
	}
	if _, err := listenAddresses(c.httpAddress); err != nil {
		errs = append(errs, err)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		errs = append(errs, fmt.Errorf("--log-level: %q is none of debug, info, warn and error", c.logLevel))
	}
	if c.logFormat != "text" && c.logFormat != "json" {
		errs = append(errs, fmt.Errorf("--log-format: %q is neither text nor json", c.logFormat))
	}
	if c.resyncInterval < time.Second {
		errs = append(errs, fmt.Errorf("--resync-interval: %v is less than a second", c.resyncInterval))
	}
	return errors.Join(errs...)
}

// validatePolicy checks what addPolicyFlags can set.
func (c *config) validatePolicy() error {
	errs := []error{}
	if c.policy.NodeName == "" {
		errs = append(errs, errors.New("the node's name is not known: give --node-name or set NODE_NAME"))
	} else {
		errs = append(errs, c.policy.Validate())
	}
	return errors.Join(append(errs, checkManifests(c.manifests))...)
}

// checkManifests checks a directory, if there is one.
func checkManifests(dir string) error {
	if dir == "" {
		return nil
	}
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return fmt.Errorf("--manifests: %w", err)
	case !info.IsDir():
		return fmt.Errorf("--manifests: %s is not a directory", dir)
	}
	return nil
}

// markMask is a flag's value in hexadecimal, the way marks are written.
type markMask policy.MarkMask

func (m *markMask) String() string { return fmt.Sprintf("%#x", uint32(*m)) }

func (m *markMask) Set(s string) error {
	v, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return fmt.Errorf("%q is no number of 32 bits", s)
	}
	*m = markMask(v)
	return nil
}

func (m *markMask) Type() string { return "mask" }

// text is a flag's value that Validate checks later.
type text[T ~string] string

func (t *text[T]) String() string     { return string(*t) }
func (t *text[T]) Set(s string) error { *t = text[T](s); return nil }
func (t *text[T]) Type() string       { return "string" }
