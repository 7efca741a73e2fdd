package informer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/rest"
)

// maxVersion is how long the answer about the version may be, in bytes. Real
// ones have some 500.
const maxVersion = 64 << 10

// ServerVersion asks the API server which version it has, for example
// v1.36.3+k3s1. Every account that the server knows may ask.
func ServerVersion(ctx context.Context, config *rest.Config) (string, error) {
	c := rest.CopyConfig(config)
	c.UserAgent = UserAgent
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		return "", fmt.Errorf("client for the Kubernetes API: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(c)
	if err != nil {
		return "", fmt.Errorf("address of the Kubernetes API: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("version").String(), http.NoBody)
	if err != nil {
		return "", fmt.Errorf("ask for the API server's version: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", fmt.Errorf("ask for the API server's version: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("ask for the API server's version: %s", response.Status)
	}
	var answer struct {
		GitVersion string `json:"gitVersion"`
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxVersion)).Decode(&answer); err != nil {
		return "", fmt.Errorf("decode the API server's version: %w", err)
	}
	return answer.GitVersion, nil
}

// Missing says what an API server of a version lacks of what Selvage relies on.
// It is empty for every version from 1.22 on, and for one that cannot be
// understood. The kinds that must be there are older than that: networkpolicies of
// networking.k8s.io/v1 are there since 1.7.
func Missing(serverVersion string) string {
	v, err := version.ParseGeneric(serverVersion)
	if err != nil {
		return ""
	}
	var missing []string
	for _, m := range []struct{ since, what string }{
		{"1.22", "it drops endPort from policies, so that of a range of ports only the first is allowed (1.22)"},
		{"1.21", "it does not label namespaces with kubernetes.io/metadata.name (1.21)"},
		// client-go asks for the first objects as a stream. From 1.19 on a
		// server that cannot stream refuses that, because of the parameter
		// resourceVersionMatch; an older one ignores it, and the end of the
		// stream is waited for in vain.
		{"1.19", "Events cannot be made (1.19), and the first objects come only if the agent's environment has KUBE_FEATURE_WatchListClient=false (1.19)"},
	} {
		if v.LessThan(version.MustParseGeneric(m.since)) {
			missing = append(missing, m.what)
		}
	}
	return strings.Join(missing, "; ")
}
