package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"github.com/selvage-net/selvage/policy"
)

// keeper is an API server that keeps Events by their names, as the real one does, and
// has some lists in which nothing changes.
type keeper struct {
	*httptest.Server
	lists   map[string]string // by path
	mu      sync.Mutex
	events  map[string]eventsv1.Event
	refused int
}

func newKeeper(t *testing.T) *keeper {
	k := &keeper{events: make(map[string]eventsv1.Event)}
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			k.list(w, r)
			return
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		var e eventsv1.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/json")
		var answer any = e
		if _, ok := k.events[e.Name]; ok {
			k.refused++
			status := apierrors.NewAlreadyExists(schema.GroupResource{Group: "events.k8s.io", Resource: "events"}, e.Name).Status()
			w.WriteHeader(int(status.Code))
			status.Kind, status.APIVersion = "Status", "v1"
			answer = status
		} else {
			k.events[e.Name] = e
			w.WriteHeader(http.StatusCreated)
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(k.Close)
	return k
}

func (k *keeper) list(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	list, ok := k.lists[r.URL.Path]
	switch {
	case !ok:
		http.NotFound(w, r)
	case r.URL.Query().Get("sendInitialEvents") == "true":
		http.Error(w, "lists are not streamed here", http.StatusBadRequest)
	case r.URL.Query().Get("watch") == "true":
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	default:
		fmt.Fprint(w, list)
	}
}

// reasons are those of the Events, with what they are on.
func (k *keeper) reasons() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := make(map[string]int)
	for _, e := range k.events {
		n[e.Regarding.Kind+" "+e.Regarding.Name+" "+e.Reason]++
	}
	return n
}

// TestOneEventOfAll has the agents of two nodes tell of the same pools: there is one
// Event of each problem, whatever numbers each of them has seen, and nobody complains.
func TestOneEventOfAll(t *testing.T) {
	server := newKeeper(t)
	cluster := policy.Snapshot{
		Nodes: nodesWithBlocks(),
		Pools: []*policy.Pool{
			{Meta: policy.Meta{Name: "a", UID: "1"}, CIDRs: cidrs("10.1.0.0/24"), Created: 1, Disabled: true},
			{Meta: policy.Meta{Name: "b", UID: "2"}, CIDRs: cidrs("10.1.0.0/25", "192.0.2.0/24"), Created: 2000},
		},
	}
	say := func(node string, pods int) string {
		p, s := newTestPools(node)
		r, err := newRecorder(&rest.Config{Host: server.URL}, node, s.logger())
		if err != nil {
			t.Fatal(err)
		}
		p.remarks.event = func(n notice) bool {
			r.deliver(t.Context(), n)
			return true
		}
		cluster.Pods = podsAt("p", "10.1.0.0", pods)
		reportOf(p, cluster)
		return s.log.String()
	}
	for i, node := range []string{"n1", "n2", "n1"} { // the last one comes again
		if log := say(node, 240+i); strings.Contains(log, "cannot make Events") || strings.Count(log, "\n") != 4 {
			t.Errorf("%s logs\n%s", node, log)
		}
	}
	for _, e := range server.events {
		if e.ReportingInstance != "n1" || e.Namespace != "default" || e.Regarding.APIVersion != "selvage.dev/v1alpha1" || e.Regarding.UID == "" {
			t.Errorf("%+v", e)
		}
	}
	want := map[string]int{"IPPool a PoolDisabledInUse": 1, "IPPool a PoolNearlyFull": 1, "IPPool b PoolOverlap": 1, "IPPool b PoolHoldsNode": 1}
	if got := server.reasons(); !maps.Equal(got, want) || server.refused != 8 {
		t.Errorf("Events %v, want %v; %d refused", got, want, server.refused)
	}

	// Another pool of the same name is another matter, and so is what is said of two
	// nodes.
	cluster.Pools[0].UID = "3"
	say("n1", 240)
	if got := len(server.events); got != 6 {
		t.Errorf("%d Events, want 6", got)
	}
	r, err := newRecorder(&rest.Config{Host: server.URL}, "n1", nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.make(t.Context(), nodeNotice("n1", reasonNoPodCIDR, "none")); err != nil {
			t.Error(err)
		}
	}
	if got := len(server.events); got != 8 {
		t.Errorf("%d Events, want 8", got)
	}
}

// TestEventNames are such that the API server accepts.
func TestEventNames(t *testing.T) {
	now := time.Unix(1_800_000_000, 5)
	for _, length := range []int{1, 236, 237, 238, 253} {
		name := strings.Repeat("a.", length)[:length-1] + "b"
		for _, gist := range []string{"", "what it is about"} {
			n := policyNotice(policy.Problem{Namespace: "ns", Name: name, Err: errors.New("x")})
			n.gist = gist
			got := newEvent(n, "worker", now).Name
			if errs := validation.IsDNS1123Subdomain(got); len(errs) > 0 || length <= 236 && !strings.HasPrefix(got, name+".") {
				t.Errorf("name of %d bytes, %q: %s: %v", length, gist, got, errs)
			}
		}
	}
}
