package kernel

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// buildAgent builds the product.
func buildAgent(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "selvage")
	// The flags of `make build`, so that its cache serves.
	cmd := exec.Command("go", "build", "-C", "../..", "-trimpath", "-buildvcs=false", "-o", binary, "./cmd/selvage")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	return binary
}

// TestAgentKilled kills the agent with SIGKILL again and again, at random
// moments of its life, under a flood and while the manifests change. The rules
// must stay whole in between, and what comes back must find its way.
// SELVAGE_KILLS is how often.
func TestAgentKilled(t *testing.T) {
	c := newCast(t)
	binary := buildAgent(t)
	f := &flood{cast: c, server: c.add(t, c.a, "server", world.Bridged)}
	f.server.known.Ports = []policy.NamedPort{{Name: "dns", Protocol: policy.UDP, Port: 53}, {Name: "http", Protocol: policy.TCP, Port: 80}}
	f.ok = []*actor{c.add(t, c.a, "ok1", world.Bridged)}
	f.no = []*actor{c.add(t, c.a, "shut1", world.Bridged), c.add(t, c.a, "mute1", world.Routed)}
	seed := envInt(t, "SELVAGE_SEED", rand.IntN(1<<30))
	t.Logf("SELVAGE_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 0))

	dir, err := c.Dir()
	must(t, err)
	objects := filepath.Join(dir, "manifests")
	must(t, os.Mkdir(objects, 0o755))
	var last policy.Snapshot
	rewrite := func() {
		last = f.change(t, rng)
		hidden := filepath.Join(objects, ".objects")
		must(t, os.WriteFile(hidden, []byte(manifests(t, last)), 0o644))
		must(t, os.Rename(hidden, filepath.Join(objects, "objects.yaml")))
	}
	agent := &world.Agent{Node: c.a.Node, Binary: binary, Manifests: objects, Log: filepath.Join(dir, "agent.log")}
	defer func() {
		must(t, agent.Kill())
		if t.Failed() {
			t.Logf("the agent's last words:\n%s", strings.Join(agent.LogTail(20), "\n"))
		}
	}()
	rewrite()
	must(t, agent.Start())
	must(t, agent.WaitReady(t.Context()))
	stop := f.start(t, c.a)

	kills := envInt(t, "SELVAGE_KILLS", 10)
	for range kills {
		rewrite()
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
		must(t, agent.Kill())
		if rng.IntN(2) == 0 {
			rewrite()
		}
		must(t, agent.Start())
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
	}
	must(t, agent.Kill())
	dead, err := c.a.RulesetGeneration()
	must(t, err)
	must(t, agent.Start())
	must(t, agent.WaitReady(t.Context()))
	stop()
	f.judge(t)

	settled := c.converged(t, agent, last)
	t.Logf("%d kills; generation of the ruleset %d, then %d", kills, dead, settled)
}

// converged checks that what is in force is what is desired, whatever was cut
// short before, and that an agent which comes back then changes nothing. It
// returns the generation of the ruleset.
func (c *cast) converged(t *testing.T, agent *world.Agent, s policy.Snapshot) uint32 {
	t.Helper()
	want := c.compiledListing(t, s)
	if got := selvageOnly(listing(t, c.a.Node)); got != want {
		t.Errorf("the kernel has\n%s\nrather than\n%s", got, want)
	}
	settled, err := c.a.RulesetGeneration()
	must(t, err)
	must(t, agent.Kill())
	must(t, agent.Start())
	must(t, agent.WaitReady(t.Context()))
	again, err := c.a.RulesetGeneration()
	must(t, err)
	if again != settled {
		t.Errorf("the ruleset's generation is %d after a restart, %d before", again, settled)
	}
	return settled
}

// compiledListing is what nft lists of a snapshot's ruleset, with the
// generation that node-a has in force.
func (c *cast) compiledListing(t *testing.T, s policy.Snapshot) string {
	t.Helper()
	conn := openConn(t, c.a.Node)
	actual, err := conn.Read()
	must(t, err)
	cfg := policy.DefaultConfig(c.a.Name)
	fresh, err := c.AddNode(world.NodeOptions{Name: "fresh"})
	must(t, err)
	for cfg.Generation = 1; cfg.Generation <= cfg.MarkMask.Max(); cfg.Generation++ {
		desired, _ := policy.Compile(cfg, s)
		if !policy.Diff(actual, desired).Empty() && cfg.Generation < cfg.MarkMask.Max() {
			continue
		}
		_, err := openConn(t, fresh).Apply(policy.Diff(&policy.Ruleset{}, desired))
		must(t, err)
		break
	}
	return selvageOnly(listing(t, fresh))
}

// selvageOnly leaves of a listing the tables of the product.
func selvageOnly(listing string) string {
	var b strings.Builder
	for _, table := range strings.SplitAfter(listing, "\n}\n") {
		if strings.HasPrefix(table, "table ip selvage {") || strings.HasPrefix(table, "table ip6 selvage {") {
			b.WriteString(table)
		}
	}
	return b.String()
}
