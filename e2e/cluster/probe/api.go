package probe

import "time"

// Kind is a way of talking to a server.
type Kind string

// The kinds. Each sends a line (or datagram) "TOKEN NUMBER" and expects it back.
const (
	// TCP keeps to one connection.
	TCP Kind = "tcp"
	// UDP keeps to one socket, and so to one flow.
	UDP Kind = "udp"
	// NewTCP opens a connection for each number. In a Try it is the same as TCP.
	NewTCP Kind = "new-tcp"
	// NewUDP opens a socket for each number. In a Try it is the same as UDP.
	NewUDP Kind = "new-udp"
	// TLS opens a TCP connection and shakes hands without looking at the
	// certificate: for servers that are not probes. For a Try only.
	TLS Kind = "tls"
)

// Outcome is what became of a try.
type Outcome string

// The outcomes.
const (
	// Answered: the server gave back what was sent.
	Answered Outcome = "answered"
	// Dropped: nothing came back in time.
	Dropped Outcome = "dropped"
	// Refused: a TCP reset or an ICMP error came back.
	Refused Outcome = "refused"
	// Failed: the try could not be made. Result.Error says why.
	Failed Outcome = "failed"
)

// TimedOut is the text of the error of what was not answered in time.
const TimedOut = "timeout"

// Try is one new connection to an address (host:port).
type Try struct {
	Kind Kind   `json:"kind"`
	To   string `json:"to"`
	// Token marks what is sent; it has no white space.
	Token string `json:"token"`
	// Timeout is how long to wait for the answer.
	Timeout time.Duration `json:"timeout"`
}

// Result is what became of a Try.
type Result struct {
	Outcome Outcome `json:"outcome"`
	// By is the name of the probe that answered.
	By string `json:"by,omitempty"`
	// Source is the address (without port) that the server saw.
	Source string `json:"source,omitempty"`
	// Error is what the system said, unless Outcome is Answered.
	Error string `json:"error,omitempty"`
	// Took is how long it took.
	Took time.Duration `json:"took"`
}

// Flow is a sequence of numbered requests that goes on until it is stopped.
type Flow struct {
	// Token names the flow in its probe, and what it sends.
	Token string `json:"token"`
	Kind  Kind   `json:"kind"`
	To    string `json:"to"`
	// Interval is the time between two requests; zero means 10 ms.
	Interval time.Duration `json:"interval,omitempty"`
	// Timeout is how long a request may wait for its answer before it counts as
	// lost; zero means 1 s.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Progress is how far a flow has come.
type Progress struct {
	// Sent, Answered and Lost count requests. What is not yet answered, and not
	// yet late, is in neither of the latter two.
	Sent     uint64 `json:"sent"`
	Answered uint64 `json:"answered"`
	Lost     uint64 `json:"lost"`
	// Late are answers that came after their request had been counted as lost.
	Late uint64 `json:"late"`
	// Began is when the flow began; FirstAnswer and LastAnswer are zero if there
	// was none.
	Began       time.Time `json:"began"`
	FirstAnswer time.Time `json:"firstAnswer"`
	LastAnswer  time.Time `json:"lastAnswer"`
	// FirstLost is when the first request that was lost had been sent.
	FirstLost time.Time `json:"firstLost"`
	// Gap is the longest time between two answers.
	Gap time.Duration `json:"gap"`
	// Retransmits is what TCP sent again, in a flow of kind TCP.
	Retransmits uint32 `json:"retransmits"`
	// Overflowed is how many answers the flow's own sockets had no room for, in a
	// flow of kind UDP or NewUDP. Their requests are among those that get lost.
	Overflowed uint64 `json:"overflowed"`
	// Ended is why the connection of a flow of kind TCP has ended; empty while it
	// lives.
	Ended string `json:"ended,omitempty"`
	// Errors counts what else went wrong, by what the system said; in a flow of
	// kind NewTCP or NewUDP what was lost is among it, as TimedOut.
	Errors map[string]uint64 `json:"errors,omitempty"`
	// By counts answers by the probe that gave them.
	By map[string]uint64 `json:"by,omitempty"`
}

// Arrival is what reached a probe's servers with one token.
type Arrival struct {
	Count uint64    `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// From counts by the address that it came from.
	From map[string]uint64 `json:"from"`
}

// Lookups asks a DNS server for the A and AAAA records of a name, both at the
// same time from one socket, as glibc's resolver does, again and again with a
// new socket each time.
type Lookups struct {
	Server string `json:"server"`
	Name   string `json:"name"`
	// Count is how many times, Parallel how many at a time.
	Count    int `json:"count"`
	Parallel int `json:"parallel"`
	// Timeout is how long the answers may take before they count as lost.
	Timeout time.Duration `json:"timeout"`
}

// LookupResult is what became of Lookups.
type LookupResult struct {
	Done int `json:"done"`
	// LostA and LostAAAA count questions without an answer.
	LostA    int `json:"lostA"`
	LostAAAA int `json:"lostAAAA"`
	// Addresses are the IPv4 addresses of the last answer to a question for A.
	Addresses []string `json:"addresses,omitempty"`
	// Errors counts sockets that failed, by what the system said.
	Errors map[string]int `json:"errors,omitempty"`
	// P50 and P99 are how long both answers took.
	P50 time.Duration `json:"p50"`
	P99 time.Duration `json:"p99"`
}
