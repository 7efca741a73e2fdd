package informer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/selvage-net/selvage/policy"
)

// count says how many objects of each kind there are.
func count(s policy.Snapshot) string {
	return fmt.Sprintf("%d namespaces, %d nodes, %d pods, %d policies, %d pools, %d ranges",
		len(s.Namespaces), len(s.Nodes), len(s.Pods), len(s.Policies), len(s.Pools), len(s.Services))
}

// fetchServer returns a server with one object of each kind, and a source of them.
func fetchServer(t *testing.T) (*apiServer, Source) {
	t.Helper()
	server := newAPIServer(t, protobuf)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"zone": "a"}}}
	server.put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, node, apiPod("a", "10.1.0.1"), apiPolicy("p", 1),
		apiPool("p", "10.1.0.0/16"), apiCalicoPool("p", "10.2.0.0/16"), apiServices("s", "10.96.0.0/12"))
	source, err := Kubernetes(server.config())
	if err != nil {
		t.Fatal(err)
	}
	return server, source
}

func TestFetch(t *testing.T) {
	server, source := fetchServer(t)
	s, err := Fetch(t.Context(), source)
	if got := count(s); err != nil || got != "1 namespaces, 1 nodes, 1 pods, 1 policies, 2 pools, 1 ranges" {
		t.Errorf("%s, %v", got, err)
	}
	if s.Nodes[0].Labels.Get("zone") != "a" {
		t.Error("the nodes have no labels")
	}
	s, err = Fetch(t.Context(), source, Pods, IPPools)
	if got := count(s); err != nil || got != "0 namespaces, 0 nodes, 1 pods, 0 policies, 1 pools, 0 ranges" {
		t.Errorf("%s, %v", got, err)
	}
	// What need not be there.
	for _, kind := range []Kind{IPPools, CalicoPools, ServiceCIDRs} {
		server.serve(kind, false)
		if kindInfo[kind].definition != "" {
			server.define(kind, false)
		}
	}
	server.refuseKind(CalicoPools, refusal())
	s, err = Fetch(t.Context(), source)
	if got := count(s); err != nil || got != "1 namespaces, 1 nodes, 1 pods, 1 policies, 0 pools, 0 ranges" {
		t.Errorf("%s, %v", got, err)
	}
	server.definitions.answer(refusal())
	if _, err := Fetch(t.Context(), source, IPPools); err != nil {
		t.Errorf("not served: %v", err)
	}
}

func TestFetchFails(t *testing.T) {
	server, source := fetchServer(t)
	server.refuseKind(Pods, refusal())
	server.refuseKind(IPPools, refusal())
	server.serve(CalicoPools, false)
	s, err := Fetch(t.Context(), source)
	if got := count(s); got != "1 namespaces, 1 nodes, 0 pods, 1 policies, 0 pools, 1 ranges" {
		t.Error(got)
	}
	trouble := (*Trouble)(nil)
	if !errors.As(err, &trouble) || trouble.Kind != Pods || trouble.Cause != Forbidden {
		t.Fatalf("error = %v", err)
	}
	for _, want := range []string{"list and watch pods:", "list and watch ippools of selvage.dev/v1alpha1:", "ippools of crd.projectcalico.org/v1, although"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	server.stop()
	_, err = Fetch(t.Context(), source)
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("an outage: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Fetch(ctx, source); !errors.Is(err, context.Canceled) {
		t.Errorf("the end: %v", err)
	}
}

// pages is a source that gives one policy a page, and forgets the first list before its
// end.
type pages struct {
	asked []metav1.ListOptions
}

func (*pages) Run(context.Context) error { return nil }

func (p *pages) ListerWatcher(Kind) cache.ListerWatcher {
	return &cache.ListWatch{ListWithContextFunc: func(_ context.Context, o metav1.ListOptions) (runtime.Object, error) {
		p.asked = append(p.asked, o)
		list := &networkingv1.NetworkPolicyList{}
		switch {
		case o.Continue == "second":
			return nil, apierrors.NewResourceExpired("too old")
		case o.Limit > 0:
			list.Items, list.Continue = []networkingv1.NetworkPolicy{*apiPolicy("a", 1)}, "second"
		default:
			list.Items = []networkingv1.NetworkPolicy{*apiPolicy("a", 1), *apiPolicy("b", 1)}
		}
		return list, nil
	}}
}

func TestFetchPages(t *testing.T) {
	p := &pages{}
	s, err := Fetch(t.Context(), p, NetworkPolicies)
	if err != nil || len(s.Policies) != 2 || s.Policies[1].Name != "b" || len(p.asked) != 3 {
		t.Errorf("%s, %v, asked %+v", count(s), err, p.asked)
	}
}

func TestFetchManifests(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "p.yaml", pool1("p", "{cidrs: [10.1.0.0/16]}"))
	source, err := Manifests(dir, ManifestsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := Fetch(t.Context(), source); err != nil || len(s.Pools) != 1 {
		t.Errorf("%s, %v", count(s), err)
	}
}
