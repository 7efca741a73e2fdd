package main

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/selvage-net/selvage/metrics"
)

// TestConditions says each thing once when it appears, and once when it is over.
func TestConditions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		var events []string
		m := metrics.New("test")
		c := newConditions(slog.New(slog.NewTextHandler(&log, nil)), m)
		c.event = func(c condition) { events = append(events, c.about) }
		blocking := condition{reason: reasonNotEnforced, about: "eth0", message: "no policy for 1 pod", notReady: true}
		more := blocking
		more.message = "no policy for 2 pods"
		slow := condition{reason: reasonRefused, about: "pods", message: "may not list pods", lasting: 5 * time.Second}
		for i, step := range []struct {
			topic  topic
			now    []condition
			pause  time.Duration
			lines  []string
			events string
			ready  string
			held   float64 // of those that block
		}{
			{"attachments", nil, 0, nil, "[]", "<nil>", 0},
			{"attachments", []condition{blocking}, 0, []string{"has appeared", "no policy for 1 pod"}, "[eth0]", "no policy for 1 pod", 1},
			{"attachments", []condition{more}, 0, nil, "[]", "no policy for 2 pods", 1},
			{"objects", []condition{slow}, 0, nil, "[]", "no policy for 2 pods", 1},
			{"objects", []condition{slow}, 4 * time.Second, nil, "[]", "no policy for 2 pods", 1},
			{"objects", nil, 10 * time.Second, nil, "[]", "no policy for 2 pods", 1},
			{"objects", []condition{slow}, 6 * time.Second, []string{"has appeared", "may not list pods"}, "[pods]", "no policy for 2 pods", 1},
			{"attachments", nil, 0, []string{"is over", "about=eth0"}, "[]", "<nil>", 0},
			{"objects", nil, 0, []string{"is over", "about=pods"}, "[]", "<nil>", 0},
			{"attachments", []condition{blocking}, 0, []string{"has appeared"}, "[eth0]", "no policy for 1 pod", 1},
		} {
			log.Reset()
			events = nil
			c.set(step.topic, step.now...)
			time.Sleep(step.pause)
			synctest.Wait()
			if got := strings.Count(log.String(), "\n"); got != min(len(step.lines), 1) {
				t.Errorf("step %d: logged %d lines:\n%s", i, got, log.String())
			}
			for _, want := range step.lines {
				if !strings.Contains(log.String(), want) {
					t.Errorf("step %d: %q is not in %s", i, want, log.String())
				}
			}
			if got := fmt.Sprint(events); got != step.events {
				t.Errorf("step %d: Events of %s, want %s", i, got, step.events)
			}
			if got := fmt.Sprint(c.unready()); got != step.ready {
				t.Errorf("step %d: not ready for %q, want %q", i, got, step.ready)
			}
			if err := testutil.GatherAndCompare(m.Gatherer(), strings.NewReader(fmt.Sprintf(`
				# HELP selvage_conditions Things that somebody should put right, by reason; the log and an Event on the Node say what to do.
				# TYPE selvage_conditions gauge
				selvage_conditions{reason="BandwidthNotShaped"} 0
				selvage_conditions{reason="BaseCNIMasquerades"} 0
				selvage_conditions{reason="MasqueradeUnsupported"} 0
				selvage_conditions{reason="NoPodCIDR"} 0
				selvage_conditions{reason="ObjectsRefused"} %v
				selvage_conditions{reason="OldAPIServer"} 0
				selvage_conditions{reason="OtherPolicyEngine"} 0
				selvage_conditions{reason="PodsNotEnforced"} %v
				selvage_conditions{reason="PodsOutsidePodCIDR"} 0
			`, map[bool]int{true: 1}[i == 6 || i == 7], step.held)), "selvage_conditions"); err != nil {
				t.Errorf("step %d: %v", i, err)
			}
		}
	})
}
