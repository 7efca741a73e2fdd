package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Transfer sends as much as goes through a TCP connection, in one direction, up to
// Fastest.
type Transfer struct {
	// To is the address (host:port) of a probe that takes part, see Client.Bulk.
	To string `json:"to"`
	// Down has that probe send. Otherwise the one that is told of the Transfer does.
	Down bool `json:"down"`
	// Length is how long it lasts, from the first byte that arrives.
	Length time.Duration `json:"length"`
}

// TransferResult is what arrived.
type TransferResult struct {
	// Bytes are those of the stream, without any header.
	Bytes uint64 `json:"bytes"`
	// Took is the time between the first and the last of them.
	Took time.Duration `json:"took"`
}

// Rate is in bits per second.
func (r TransferResult) Rate() float64 {
	if r.Took <= 0 {
		return 0
	}
	return float64(r.Bytes) * 8 / r.Took.Seconds()
}

func (r TransferResult) String() string {
	return fmt.Sprintf("%.2f Mbit/s in %v", r.Rate()/1e6, r.Took.Round(time.Millisecond))
}

// transferSlack is how much longer than its length a Transfer may take.
const transferSlack = 10 * time.Second

// Bulk has a probe take part in transfers, and returns the port that it does so at.
func (c *Client) Bulk(ctx context.Context) (port int, err error) {
	err = c.do(ctx, http.MethodPost, "/bulk", struct{}{}, &port)
	return port, err
}

// Transfer has a probe send, or receive, and returns what arrived.
func (c *Client) Transfer(ctx context.Context, t Transfer) (r TransferResult, err error) {
	err = c.do(ctx, http.MethodPost, "/transfers", t, &r)
	return r, err
}

// bulk adds what belongs to transfers to the control server:
//
//	POST   /bulk          number of a port
//	POST   /transfers     Transfer to TransferResult
func (c *Control) bulk(mux *http.ServeMux) {
	mux.HandleFunc("POST /bulk", post(func(r *http.Request, _ struct{}) (any, error) {
		l, err := new(net.ListenConfig).Listen(r.Context(), "tcp", ":0")
		if err != nil {
			return nil, err
		}
		context.AfterFunc(c.Base, func() { _ = l.Close() })
		go serveBulk(l)
		return l.Addr().(*net.TCPAddr).Port, nil
	}))
	mux.HandleFunc("POST /transfers", post(func(r *http.Request, t Transfer) (any, error) {
		return t.run(r.Context(), c.Dial)
	}))
}

// serveBulk takes part until the listener is closed.
func serveBulk(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_ = answerBulk(conn) // who has asked sees that it ends
		}()
	}
}

// answerBulk does what the other end has asked for: it sends, or receives and tells
// how much that was.
func answerBulk(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	var t Transfer
	if err := readLine(conn, &t); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(t.Length + transferSlack)); err != nil {
		return err
	}
	if t.Down {
		return flood(conn)
	}
	r, err := drain(conn, t.Length)
	if err != nil {
		return err
	}
	return json.NewEncoder(conn).Encode(r)
}

func (t Transfer) run(ctx context.Context, dial DialFunc) (r TransferResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, t.Length+transferSlack)
	defer cancel()
	conn, err := dial(ctx, "tcp", t.To)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	if tcp, ok := conn.(*net.TCPConn); ok {
		// What waits to be sent at the end is not sent any more.
		if err := tcp.SetLinger(0); err != nil {
			return r, err
		}
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return r, err
		}
	}
	if err := json.NewEncoder(conn).Encode(t); err != nil {
		return r, err
	}
	if t.Down {
		return drain(conn, t.Length)
	}
	go func() { _ = flood(conn) }() // until the connection is closed
	err = readLine(conn, &r)
	return r, err
}

// Fastest is what a Transfer without any limit carries, in bits per second: enough to
// tell that there is none, and little enough to leave the machine to others.
const Fastest = 200_000_000

// flood writes until the connection ends.
func flood(conn net.Conn) error {
	if err := pace(conn); err != nil {
		return err
	}
	data := make([]byte, 64<<10)
	for {
		if _, err := conn.Write(data); err != nil {
			return err
		}
	}
}

// pace has the kernel send a connection's data no faster than Fastest.
func pace(conn net.Conn) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, Fastest/8)
	})
	return errors.Join(cerr, err)
}

// drain counts what comes within some time, from the first byte on.
func drain(conn net.Conn, length time.Duration) (TransferResult, error) {
	var r TransferResult
	data := make([]byte, 64<<10)
	var began time.Time
	for {
		n, err := conn.Read(data)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && !began.IsZero():
			return r, nil
		case err != nil:
			return r, err
		}
		r.Bytes += uint64(n)
		if began.IsZero() {
			began = time.Now()
			if err := conn.SetReadDeadline(began.Add(length)); err != nil {
				return r, err
			}
		}
		r.Took = time.Since(began)
	}
}

// readLine decodes a line of JSON, byte by byte: what follows is left alone.
func readLine(conn net.Conn, v any) error {
	var line []byte
	var b [1]byte
	for len(line) < 1<<10 {
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return err
		}
		if b[0] == '\n' {
			return json.Unmarshal(line, v)
		}
		line = append(line, b[0])
	}
	return errors.New("a line that does not end")
}
