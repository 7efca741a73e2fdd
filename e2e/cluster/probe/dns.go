package probe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// lookup is what one socket saw.
type lookup struct {
	a, aaaa   bool
	addresses []string
	took      time.Duration
	err       error
}

// Run does all lookups.
func (l Lookups) Run(ctx context.Context, dial DialFunc) LookupResult {
	seen := make([]lookup, l.Count)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range max(l.Parallel, 1) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= l.Count {
					return
				}
				seen[i] = l.one(ctx, dial, uint16(i))
			}
		})
	}
	wg.Wait()
	return summarize(seen[:min(l.Count, int(next.Load()))])
}

func summarize(seen []lookup) LookupResult {
	r := LookupResult{Done: len(seen), Errors: map[string]int{}}
	var took []time.Duration
	for _, s := range seen {
		switch {
		case s.err != nil:
			r.Errors[text(s.err)]++
			continue
		case s.a && s.aaaa:
			took = append(took, s.took)
		}
		if !s.a {
			r.LostA++
		} else {
			r.Addresses = s.addresses
		}
		if !s.aaaa {
			r.LostAAAA++
		}
	}
	if len(took) > 0 {
		slices.Sort(took)
		r.P50, r.P99 = took[len(took)/2], took[len(took)*99/100]
	}
	return r
}

// one asks both questions from one socket. Every other time they are sent by two
// threads at once: then both packets may be on their way through conntrack
// before it has confirmed the flow of either, which is where they get lost.
func (l Lookups) one(ctx context.Context, dial DialFunc, id uint16) lookup {
	began := time.Now()
	questions := [2][]byte{}
	for i, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		q, err := question(id*2+uint16(i), l.Name, kind)
		if err != nil {
			return lookup{err: err}
		}
		questions[i] = q
	}
	c, err := dial(ctx, "udp", l.Server)
	if err != nil {
		return lookup{err: err}
	}
	defer c.Close()
	if err := c.SetDeadline(began.Add(l.Timeout)); err != nil {
		return lookup{err: err}
	}
	if err := send(c, questions, id%2 == 1); err != nil {
		return lookup{err: err}
	}
	return receive(c, id*2, began)
}

func send(c net.Conn, questions [2][]byte, atOnce bool) error {
	if !atOnce {
		for _, q := range questions {
			if _, err := c.Write(q); err != nil {
				return err
			}
		}
		return nil
	}
	errs := make(chan error, len(questions))
	for _, q := range questions {
		go func() {
			_, err := c.Write(q)
			errs <- err
		}()
	}
	var first error
	for range questions {
		if err := <-errs; first == nil {
			first = err
		}
	}
	return first
}

// receive takes the answers to the questions first and first+1.
func receive(c net.Conn, first uint16, began time.Time) lookup {
	var seen lookup
	buf := make([]byte, 1500)
	for !seen.a || !seen.aaaa {
		n, err := c.Read(buf)
		if err != nil {
			if judge(err) != Dropped {
				seen.err = err
			}
			return seen
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || m.RCode != dnsmessage.RCodeSuccess {
			continue
		}
		switch m.ID {
		case first:
			seen.a, seen.addresses = true, addresses(m)
		case first + 1:
			seen.aaaa = true
		}
	}
	seen.took = time.Since(began)
	return seen
}

func addresses(m dnsmessage.Message) []string {
	var all []string
	for _, r := range m.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok {
			all = append(all, netip.AddrFrom4(a.A).String())
		}
	}
	return all
}

func question(id uint16, name string, kind dnsmessage.Type) ([]byte, error) {
	if !strings.HasSuffix(name, ".") {
		name += "."
	}
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: kind, Class: dnsmessage.ClassINET}},
	}
	return m.Pack()
}
