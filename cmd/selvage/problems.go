package main

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/selvage-net/selvage/policy"
)

// problems tells of each policy that cannot be compiled as it is written: once
// when that appears, and once when it is over.
type problems struct {
	log *slog.Logger
	// event, if it is set, makes an Event on the policy.
	event func(policy.Problem)

	mu    sync.Mutex
	known map[string]invalidPolicy // by namespace/name
}

// set takes all problems there are now, and returns how many policies have one.
func (p *problems) set(now []policy.Problem) int {
	texts := make(map[string][]string)
	first := make(map[string]policy.Problem)
	for _, problem := range now {
		key := problem.Namespace + "/" + problem.Name
		texts[key] = append(texts[key], problem.Err.Error())
		if _, ok := first[key]; !ok {
			first[key] = problem
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.known
	p.known = make(map[string]invalidPolicy, len(texts))
	for key, t := range texts {
		slices.Sort(t)
		p.known[key] = invalidPolicy{first[key].Namespace, first[key].Name, strings.Join(slices.Compact(t), "; ")}
		if before[key] == p.known[key] {
			continue
		}
		p.log.Warn("policy cannot be compiled as it is written: what is wrong matches nothing, the pods stay isolated",
			"policy", key, "err", p.known[key].Message)
		if p.event != nil {
			problem := first[key]
			p.event(problem)
		}
	}
	for key := range before {
		if _, ok := texts[key]; !ok {
			p.log.Info("policy is no longer in doubt", "policy", key)
		}
	}
	return len(texts)
}

// status is what /status says of them. It is safe for concurrent use with set.
func (p *problems) status() []invalidPolicy {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := []invalidPolicy{}
	for _, key := range slices.Sorted(maps.Keys(p.known)) {
		all = append(all, p.known[key])
	}
	return all
}
