package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/selvage-net/selvage/e2e/answers"
	"github.com/selvage-net/selvage/e2e/world"
	"github.com/selvage-net/selvage/policy"
)

// The connection that a mistake in a policy denies, the policy, and the node of both
// pods: the agent that is asked speaks for its own kernel alone.
const (
	deniedFrom, deniedTo, deniedPort = "web2", "admin", 8080
	mistaken, mistakenIn             = "admin-web", "ops"
	mistakenOn                       = "node-b"
)

// mended is the manifest of the policy without the mistake.
func mended() ([]byte, error) {
	data, err := manifests.ReadFile("story/" + mistaken + ".yaml")
	return bytes.Replace(data, []byte("app: wbe"), []byte("app: web"), 1), err
}

// explainDrop has a policy with a mistake deny a connection, asks the agent who did that
// and why, mends the policy, and asks again.
func (c *cluster) explainDrop(ctx context.Context, res *result) error {
	if err := c.change(ctx, &step{add: []string{mistaken}}); err != nil {
		return err
	}
	c.tryDenied(ctx, res, world.Dropped, "web2 does not reach admin")
	if err := c.showDrops(ctx, res); err != nil {
		return err
	}
	if err := c.showExplain(ctx, res, 1, "explain says what does not match, the kernel agrees, and the exit code is 1",
		"app=wbe", "kernel of node "+mistakenOn+": denies, as it should"); err != nil {
		return err
	}
	data, err := mended()
	if err != nil {
		return err
	}
	if err := c.await(ctx, 1, func() error { return c.put(mistaken, data) }); err != nil {
		return err
	}
	res.Output += "\nThe label app: wbe is mended: app: web.\n"
	if err := c.showExplain(ctx, res, 0, "once it is mended explain says who allows it, and the exit code is 0",
		"allowed by "+mistaken, "kernel of node "+mistakenOn+": allows, as it should"); err != nil {
		return err
	}
	c.tryDenied(ctx, res, world.Allowed, "web2 reaches admin")
	return c.showStatus(ctx, res)
}

// tryDenied tries the connection over both families.
func (c *cluster) tryDenied(ctx context.Context, res *result, want world.Outcome, text string) {
	var probes []world.Probe
	for _, to := range withPort(c.places[deniedTo].addrs, deniedPort) {
		probes = append(probes, world.Probe{From: c.places[deniedFrom].Namespace, To: to, Protocol: policy.TCP, Want: want})
	}
	for i, r := range c.world.Probe(ctx, probes...) {
		ch := check{Text: fmt.Sprintf("%s:%d over %s", text, deniedPort, version(policy.Families[i])), Passed: r.Outcome == want}
		ch.Detail = r.Outcome.String() + suffix(r.Err)
		res.Checks = append(res.Checks, ch)
	}
}

// ask runs a command on the node of the pods.
func (c *cluster) ask(ctx context.Context, args ...string) (answers.Reply, error) {
	node := c.nodes[slices.IndexFunc(c.nodes, func(n *world.Node) bool { return n.Name == mistakenOn })]
	return answers.Run(ctx, node, c.binary, args...)
}

// shownWidth is where lines are cut that are shown.
const shownWidth = 98

// show adds a command and its output to what is shown.
func (c *cluster) show(res *result, args []string, out string) {
	var b strings.Builder
	if res.Output != "" {
		b.WriteString("\n")
	}
	command := strings.ReplaceAll(strings.Join(args, " "), c.dir, "DIR")
	for line := range strings.Lines(mistakenOn + "# selvage " + command + "\n" + out) {
		text := []rune(strings.TrimRight(line, " \n"))
		if len(text) > shownWidth {
			text = append(text[:shownWidth-1], '…')
		}
		b.WriteString(string(text) + "\n")
	}
	res.Output += b.String()
}

// showDrops runs `selvage drops` until the packets are there.
func (c *cluster) showDrops(ctx context.Context, res *result) error {
	args := []string{"drops", "-n", mistakenIn, "--pod", deniedTo}
	ctx, cancel := context.WithTimeout(ctx, limitPatience)
	defer cancel()
	for {
		r, err := c.ask(ctx, args...)
		if err != nil {
			return fmt.Errorf("the drops are not all named after %v: %w", limitPatience, err)
		}
		shown, named := dropsOf(r.Out)
		if named >= len(policy.Families) {
			c.show(res, args, shown)
			res.Checks = append(res.Checks, check{Text: "drops names source, destination, port and policy, over IPv4 and IPv6", Passed: true})
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// dropsOf returns of a table of drops the header and the lines of the policy, since the
// pod has been denied other things before, and how many of them name the connection.
func dropsOf(table string) (lines string, named int) {
	ref := mistakenIn + "/" + mistaken
	want := []string{"ingress", "shop/" + deniedFrom, mistakenIn + "/" + deniedTo, fmt.Sprintf("%d/TCP", deniedPort), ref}
	for line := range strings.Lines(table) {
		cells := strings.Fields(line)
		if lines == "" || slices.Contains(cells, ref) {
			lines += line
		}
		if len(cells) > len(want) && slices.Equal(cells[1:1+len(want)], want) {
			named++
		}
	}
	return lines, named
}

// showExplain runs `selvage explain`, which must end with the code and say all of these.
func (c *cluster) showExplain(ctx context.Context, res *result, code int, text string, says ...string) error {
	args := []string{
		"explain", "shop/" + deniedFrom, mistakenIn + "/" + deniedTo, fmt.Sprintf("%d/TCP", deniedPort), "--manifests", c.dir, "--agent", world.AgentAddress,
	}
	r, err := c.ask(ctx, args...)
	if err != nil {
		return err
	}
	c.show(res, args, r.Out)
	passed := r.Code == code
	for _, s := range says {
		passed = passed && strings.Contains(r.Out, s)
	}
	res.Checks = append(res.Checks, check{Text: text, Passed: passed, Detail: fmt.Sprintf("exit code %d: %s%s", r.Code, r.Out, r.Err)})
	return nil
}

// showStatus runs `selvage status`, once for people and once to check it.
func (c *cluster) showStatus(ctx context.Context, res *result) error {
	args := []string{"status", "-n", mistakenIn}
	r, err := c.ask(ctx, args...)
	if err != nil {
		return err
	}
	c.show(res, args, r.Out)
	if r, err = c.ask(ctx, append(args, "-o", "json")...); err != nil {
		return err
	}
	var report struct {
		Policies []struct {
			Name                              string
			InForce                           []string
			AllowedConnections, DeniedPackets struct{ Ingress, Egress int }
		}
	}
	if err := json.Unmarshal([]byte(r.Out), &report); err != nil {
		return fmt.Errorf("selvage status: %w: %s", err, r.Err)
	}
	ch := check{
		Text:   fmt.Sprintf("status has %s in force, with %d connections allowed and at least as many packets denied", mistaken, len(policy.Families)),
		Detail: fmt.Sprintf("exit code %d: %+v", r.Code, report.Policies),
	}
	for _, p := range report.Policies {
		if p.Name == mistaken {
			ch.Passed = r.Code == 0 && slices.Equal(p.InForce, []string{mistakenOn}) &&
				p.AllowedConnections.Ingress == len(policy.Families) && p.DeniedPackets.Ingress >= len(policy.Families)
		}
	}
	res.Checks = append(res.Checks, ch)
	return nil
}
