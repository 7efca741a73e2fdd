package main

import (
	"strings"
	"testing"

	"github.com/selvage-net/selvage/informer"
)

func TestMendedPolicyIsWhatTheAgentReads(t *testing.T) {
	c := &cluster{dir: t.TempDir()}
	if err := c.write(clusterManifests()...); err != nil {
		t.Fatal(err)
	}
	data, err := mended()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.put(mistaken, data); err != nil {
		t.Fatal(err)
	}
	s, err := informer.Load(c.dir)
	if err != nil || len(s.Policies) != 1 {
		t.Fatalf("%d policies: %v", len(s.Policies), err)
	}
	if got := s.Policies[0].Spec.Ingress[0].From[0].PodSelector.MatchLabels["app"]; got != "web" {
		t.Errorf("the mended policy is about app=%s", got)
	}
}

func TestDropsOfThePolicy(t *testing.T) {
	const (
		header = "TIME   DIRECTION   FROM   TO   PORT   POLICIES   COUNT\n"
		mine   = "2026-11-26T15:58:42Z   ingress   shop/web2   ops/admin   8080/TCP   ops/admin-web   1\n"
		other  = "2026-11-26T15:58:41Z   ingress   ops/admin   shop/web2   8080/TCP   shop/default-deny   1\n"
		wrong  = "2026-11-26T15:58:43Z   ingress   shop/web2   ops/admin   9090/TCP   ops/admin-web   1\n"
	)
	if lines, named := dropsOf(header + other + mine + wrong); lines != header+mine+wrong || named != 1 {
		t.Errorf("%d are named in\n%s", named, lines)
	}
}

func TestShownLinesAreCut(t *testing.T) {
	res := &result{}
	c := &cluster{dir: "/run/x"}
	for range 2 {
		c.show(res, []string{"explain", "--manifests", c.dir}, strings.Repeat("é", 200)+"  \nshort\n")
	}
	part := mistakenOn + "# selvage explain --manifests DIR\n" + strings.Repeat("é", shownWidth-1) + "…\nshort\n"
	if want := part + "\n" + part; res.Output != want {
		t.Errorf("shown is\n%s\nwant\n%s", res.Output, want)
	}
}
