package cluster

import (
	"context"
	"os"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// serial labels specs that disturb the whole cluster; away the one after which
// others than Selvage, CoreDNS above all, take a minute to find the API server
// again; uninstall the one that takes Selvage away.
const (
	serial    = "serial"
	away      = "outage"
	uninstall = "uninstall"
)

// TestCluster runs the specs against the cluster that SELVAGE_LAB names. Without
// one, as in `go test ./...`, it is a dry run: that the tree of specs can be built
// is all that is tested then.
func TestCluster(t *testing.T) {
	RegisterFailHandler(Fail)
	suite, reporter := GinkgoConfiguration()
	if os.Getenv("SELVAGE_LAB") == "" {
		if suite.ParallelTotal > 1 {
			t.Fatal("SELVAGE_LAB names no cluster")
		}
		suite.DryRun = true
		reporter.Succinct = true
		t.Log("DRY RUN: SELVAGE_LAB names no cluster to test; see `make e2e`")
	}
	suite.FailFast = false
	e := &env{}
	e.setUp()
	for _, describe := range []func(){
		e.describeKubeletProbes, e.describeServices, e.describeHostNetwork, e.describeAPIServer,
		e.describeTermination, e.describeReuse, e.describeNamespaces, e.describeLongLived,
		e.describePodStart, e.describeDNS, e.describeLatency, e.describeOutage, e.describeReboot,
		e.describeAgents, e.describeBadInput, e.describeBandwidth, e.describePools, e.describeUninstall,
	} {
		describe()
	}
	RunSpecs(t, "cluster", suite, reporter)
}

// setUp waits for the agents, and puts one pod of the cast on each node.
func (e *env) setUp() {
	SynchronizedBeforeSuite(func(ctx SpecContext) []byte {
		e.connect(ctx)
		e.awaitAgents(ctx, time.Minute)
		e.castStage(ctx)
		return e.castJSON()
	}, func(ctx SpecContext, cast []byte) {
		if e.lab == nil {
			e.connect(ctx)
		}
		e.adoptCast(cast)
	}, NodeTimeout(3*time.Minute))
}

// castStage makes the namespace of the cast and its pods.
func (e *env) castStage(ctx context.Context) {
	s := e.stage(ctx, "cast")
	e.cast = map[string]*pod{}
	var all []*pod
	for _, node := range nodes() {
		p := s.pod("cast-"+node, node, labelled("role", "cast"))
		e.cast[node] = p
		all = append(all, p)
	}
	s.start(ctx, all...)
}
