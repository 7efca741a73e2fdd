package main

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// kubeFlags say how a command reaches the API server, as kubectl's flags do.
type kubeFlags struct {
	file      string
	overrides clientcmd.ConfigOverrides
}

// add adds the flags. All that kubectl has are understood; help shows the two that
// are used every day.
func (k *kubeFlags) add(f *pflag.FlagSet) {
	f.StringVar(&k.file, "kubeconfig", "", "file that says where the API server is (default: the pod's service account; outside of a cluster $KUBECONFIG or ~/.kube/config)")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	names.CurrentContext.Description = "context of the kubeconfig to use"
	names.ContextOverrideFlags.Namespace = clientcmd.FlagInfo{} // each command has its own, or none
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	clientcmd.BindOverrideFlags(&k.overrides, all, names)
	all.VisitAll(func(flag *pflag.Flag) {
		flag.Hidden = flag.Name != clientcmd.FlagContext
		f.AddFlag(flag)
	})
}

// given tells whether a flag leads to a certain cluster.
func (k *kubeFlags) given() bool {
	return k.file != "" || k.overrides.CurrentContext != "" || k.overrides.Context.Cluster != "" || k.overrides.ClusterInfo.Server != ""
}

// errNoCluster is that nothing says where the API server is.
var errNoCluster = errors.New("no API server is known: give --kubeconfig, set $KUBECONFIG, or run in a pod that has a service account")

// config says how the API server is reached.
func (k *kubeFlags) config() (*rest.Config, error) {
	if !k.given() {
		config, err := rest.InClusterConfig()
		switch {
		case err == nil:
			return config, nil
		case !errors.Is(err, rest.ErrNotInCluster):
			return nil, fmt.Errorf("the pod's service account: %w", err)
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.file
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &k.overrides).ClientConfig()
	switch {
	case err != nil && k.file != "":
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	case clientcmd.IsEmptyConfig(err):
		return nil, errNoCluster
	case err != nil:
		return nil, fmt.Errorf("$KUBECONFIG or ~/.kube/config: %w", err)
	}
	return config, nil
}
