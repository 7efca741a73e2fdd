package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/procfs"

	"github.com/selvage-net/selvage/e2e/lab"
	"github.com/selvage-net/selvage/e2e/report"
)

// agentProcess is the name of the agents' processes, see proc_pid_comm(5).
const agentProcess = "selvage"

// usage follows what the agents of all nodes take, over all their lives.
type usage struct {
	nodes []lab.Machine

	mu    sync.Mutex
	began time.Time
	peak  uint64           // bytes of the largest resident set that was seen
	last  map[int]uint64   // bytes resident, by process that lives
	cpu   map[int]agentCPU // by process, dead ones included
}

// agentCPU is how much processor time a process had when it was first and last
// seen.
type agentCPU struct{ first, last float64 }

// follow looks at the agents every two seconds until ctx ends.
func follow(ctx context.Context, nodes []lab.Machine) *usage {
	u := &usage{nodes: nodes, began: time.Now(), cpu: make(map[int]agentCPU)}
	go func() {
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			u.look()
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return u
}

// look reads /proc once. A process that goes away meanwhile is left out.
func (u *usage) look() {
	networks := make(map[uint32]bool, len(u.nodes))
	for _, n := range u.nodes {
		if ns, ok := network(n.PID); ok {
			networks[ns] = true
		}
	}
	all, err := procfs.AllProcs()
	if err != nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last = make(map[int]uint64)
	for _, p := range all {
		if comm, err := p.Comm(); err != nil || comm != agentProcess {
			continue
		}
		if ns, ok := network(p.PID); !ok || !networks[ns] {
			continue
		}
		stat, err := p.Stat()
		if err != nil {
			continue
		}
		rss := uint64(stat.ResidentMemory())
		u.last[p.PID], u.peak = rss, max(u.peak, rss)
		c, seen := u.cpu[p.PID]
		if c.last = stat.CPUTime(); !seen {
			c.first = c.last
		}
		u.cpu[p.PID] = c
	}
}

// network returns the inode of a process's network namespace.
func network(pid int) (uint32, bool) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0, false
	}
	all, err := p.Namespaces()
	if err != nil {
		return 0, false
	}
	ns, ok := all["net"]
	return ns.Inode, ok
}

// figures says what was seen since follow.
func (u *usage) figures() []report.Figure {
	u.look()
	u.mu.Lock()
	defer u.mu.Unlock()
	var most uint64
	for _, rss := range u.last {
		most = max(most, rss)
	}
	var seconds float64
	for _, c := range u.cpu {
		seconds += c.last - c.first
	}
	const mib = 1 << 20
	elapsed := time.Since(u.began).Seconds()
	return []report.Figure{
		{Name: "agent, resident memory: peak, and at the end (the largest of the nodes)",
			Value: fmt.Sprintf("%.1f MiB, %.1f MiB", float64(u.peak)/mib, float64(most)/mib)},
		{Name: "agent, processor time during the suites, per node",
			Value: fmt.Sprintf("%.1f s in %.0f s, %.1f %% of a core", seconds/float64(len(u.nodes)), elapsed, 100*seconds/float64(len(u.nodes))/elapsed)},
	}
}
