package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Datagrams are UDP datagrams that are sent at a rate, whatever arrives.
type Datagrams struct {
	From, To Place
	// Addr is To's.
	Addr netip.Addr
	// Size is a datagram's, without headers.
	Size int
	// Rate is in bits per second, of whole frames; 0 is as fast as it goes.
	Rate float64
	// Length is how long it lasts.
	Length time.Duration
}

// DatagramResult says what became of Datagrams.
type DatagramResult struct {
	Series
	// Sent and Received count datagrams.
	Sent     int `json:"sent"`
	Received int `json:"received"`
	// Frame is the size of a frame.
	Frame int `json:"frame"`
}

// Run sends, and returns what arrived up to a short while after.
func (d Datagrams) Run(ctx context.Context) (DatagramResult, error) {
	const ethernet, ipv4, ipv6, udp = 14, 20, 40, 8
	r := DatagramResult{Series: newSeries(d.Length), Frame: d.Size + udp + ipv4 + ethernet}
	if d.Addr.Is6() {
		r.Frame += ipv6 - ipv4
	}
	out, in, err := pairUDP(d.From, d.To, d.Addr, 16<<20)
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.Length)
	defer cancel()
	received := make(chan error, 1)
	go func() {
		b := make([]byte, d.Size)
		received <- datagrams(in, b, func(at time.Time, _ int, _ netip.AddrPort) error {
			r.Received++
			r.add(at, r.Frame)
			return nil
		})
	}()
	sent, err := d.send(ctx, out, r.Frame)
	err = errors.Join(err, in.SetReadDeadline(time.Now().Add(200*time.Millisecond)), <-received, out.Close(), in.Close())
	if err == nil && r.Received == 0 {
		err = errors.New("nothing arrived")
	}
	if err != nil {
		return r, fmt.Errorf("datagrams to %s: %w", d.Addr, err)
	}
	r.Sent = sent
	return r, nil
}

// send keeps to the rate over times that a sleep can be long.
func (d Datagrams) send(ctx context.Context, c *net.UDPConn, frame int) (int, error) {
	data := make([]byte, d.Size)
	start := time.Now()
	n := 0
	for ; ctx.Err() == nil; n++ {
		if d.Rate > 0 {
			due := start.Add(time.Duration(float64(n*frame*8) / d.Rate * float64(time.Second)))
			if wait := time.Until(due); wait > time.Millisecond {
				time.Sleep(wait)
			}
		}
		if _, err := c.Write(data); err != nil {
			return n, fmt.Errorf("send: %w", err)
		}
	}
	return n, nil
}
