package main

import (
	"net/netip"
	"testing"
	"time"
)

// TestDropFold tells the first of each kind at once, and the rest once a minute.
func TestDropFold(t *testing.T) {
	began := time.Date(2026, 11, 5, 12, 0, 0, 0, time.UTC)
	f := newDropFold()
	at := func(after time.Duration) time.Time { return began.Add(after) }
	add := func(after time.Duration, port uint16, want foldResult) {
		t.Helper()
		n := drop{Time: at(after), Direction: dropIngress, Protocol: "TCP", Port: port, Count: 1}
		if got := f.add(n, at(after)); got != want {
			t.Errorf("port %d after %v: %v, want %v", port, after, got, want)
		}
	}
	due := func(after time.Duration, want ...drop) {
		t.Helper()
		got := f.due(at(after))
		for i := range got {
			if i >= len(want) || got[i].Port != want[i].Port || got[i].Count != want[i].Count || !got[i].Time.Equal(want[i].Time) {
				t.Errorf("after %v: %d of port %d at %v", after, got[i].Count, got[i].Port, got[i].Time)
			}
		}
		if len(got) != len(want) {
			t.Errorf("after %v: %d are due, want %d", after, len(got), len(want))
		}
	}
	add(0, 80, foldNew)
	add(time.Second, 80, foldRepeated)
	add(2*time.Second, 443, foldNew)
	add(3*time.Second, 443, foldRepeated)
	add(4*time.Second, 80, foldRepeated)
	due(foldFor - 1)
	due(foldFor, drop{Port: 80, Count: 2, Time: at(4 * time.Second)})
	due(foldFor+2*time.Second, drop{Port: 443, Count: 1, Time: at(3 * time.Second)})
	add(foldFor+3*time.Second, 80, foldRepeated)
	due(2*foldFor - 1)
	due(2*foldFor, drop{Port: 80, Count: 1, Time: at(foldFor + 3*time.Second)})
	due(2*foldFor + 2*time.Second)
	add(2*foldFor+3*time.Second, 443, foldNew)
	due(3 * foldFor)
	due(4 * foldFor)
	if len(f.kinds) > 0 {
		t.Errorf("it remembers %v", f.kinds)
	}
}

// TestDropKinds tells apart what has to be, and no more than there is room for.
func TestDropKinds(t *testing.T) {
	icmp, other := uint8(0), uint8(3)
	a, b := dropEnd{Address: netip.MustParseAddr("10.0.0.1")}, dropEnd{Address: netip.MustParseAddr("10.0.0.2")}
	kinds := []drop{
		{Direction: dropIngress, Source: a, Destination: b, Protocol: "TCP", Port: 80},
		{Direction: dropEgress, Source: a, Destination: b, Protocol: "TCP", Port: 80},
		{Direction: dropIngress, Source: b, Destination: a, Protocol: "TCP", Port: 80},
		{Direction: dropIngress, Source: a, Destination: b, Protocol: "UDP", Port: 80},
		{Direction: dropIngress, Source: a, Destination: b, Protocol: "TCP", Port: 81},
		{Direction: dropIngress, Source: a, Destination: b, Protocol: "TCP", Port: 80, Reason: dropUnknownPod},
		{Direction: dropIngress, Source: a, Destination: b, Protocol: "ICMP"},
		{Direction: dropIngress, Source: a, Destination: b, Protocol: "ICMP", ICMPType: &icmp},
		{Direction: dropIngress, Source: a, Destination: b, Protocol: "ICMP", ICMPType: &other},
	}
	f := newDropFold()
	now := time.Now()
	for i, n := range kinds {
		if got := f.add(n, now); got != foldNew {
			t.Errorf("kind %d: %v", i, got)
		}
	}
	for i, n := range kinds {
		n.Reply, n.Interface = true, "veth"+string(rune('a'+i)) // the same connection all the same
		if got := f.add(n, now); got != foldRepeated {
			t.Errorf("kind %d again: %v", i, got)
		}
	}
	for port := range maxFolded - len(kinds) {
		if got := f.add(drop{Protocol: "SCTP", Port: uint16(port)}, now); got != foldNew {
			t.Fatalf("port %d: %v", port, got)
		}
	}
	if got := f.add(drop{Protocol: "SCTP", Port: 65535}, now); got != foldFull {
		t.Errorf("one more: %v", got)
	}
	if got := f.add(kinds[0], now); got != foldRepeated {
		t.Errorf("one that is known: %v", got)
	}
	f.due(now.Add(foldFor))
	if got := f.add(drop{Protocol: "SCTP", Port: 65535}, now); got != foldNew {
		t.Errorf("when there is room again: %v", got)
	}
}
