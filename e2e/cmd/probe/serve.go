package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/selvage-net/selvage/e2e/cluster/probe"
)

// serve are the flags of `probe serve`.
type serve struct {
	name     string
	control  int
	grpc     int
	tcp, udp ports
	flows    flows
	linger   time.Duration
}

func newServe(flags *flag.FlagSet) *serve {
	s := &serve{tcp: ports{80}, udp: ports{80}}
	hostname, _ := os.Hostname() // only a default
	flags.StringVar(&s.name, "name", hostname, "`name` to tell with every answer")
	flags.IntVar(&s.control, "control", 9100, "`port` of the control server")
	flags.IntVar(&s.grpc, "grpc", 0, "`port` of a gRPC health server")
	flags.Var(&s.tcp, "tcp", "`ports` of TCP echo servers, with commas")
	flags.Var(&s.udp, "udp", "`ports` of UDP echo servers, with commas")
	flags.Var(&s.flows, "flow", "a flow to begin with, as `JSON`; may be given again")
	flags.DurationVar(&s.linger, "linger", 0, "go on for so long after SIGTERM")
	return s
}

type ports []int

func (p *ports) String() string { return fmt.Sprint([]int(*p)) }

func (p *ports) Set(list string) error {
	*p = nil
	if list == "" {
		return nil
	}
	for s := range strings.SplitSeq(list, ",") {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return err
		}
		*p = append(*p, int(n))
	}
	return nil
}

type flows []probe.Flow

func (f *flows) String() string { return "" }

func (f *flows) Set(text string) error {
	var flow probe.Flow
	if err := json.Unmarshal([]byte(text), &flow); err != nil {
		return err
	}
	*f = append(*f, flow)
	return nil
}

// run serves until ctx ends, and then for as long as it shall linger.
func (s *serve) run(ctx context.Context) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var d net.Dialer
	echo := &probe.Server{Name: s.name}
	control := &probe.Control{Base: base, Server: echo, Dial: d.DialContext}
	// The flows come first: the point of them is what a pod can do before
	// anybody knows of it.
	for _, f := range s.flows {
		if err := control.StartFlow(f); err != nil {
			return err
		}
	}
	if err := s.listen(base, echo); err != nil {
		return err
	}
	failed := make(chan error, 2)
	if s.grpc != 0 {
		go func() { failed <- serveHTTP(s.grpc, probe.GRPCHealth()) }()
	}
	go func() { failed <- serveHTTP(s.control, control.Handler()) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		time.Sleep(s.linger)
		return nil
	}
}

func (s *serve) listen(ctx context.Context, echo *probe.Server) error {
	var lc net.ListenConfig
	var errs []error
	for _, port := range s.tcp {
		l, err := lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		go echo.ServeTCP(ctx, l)
	}
	for _, port := range s.udp {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		go echo.ServeUDP(ctx, c)
	}
	return errors.Join(errs...)
}

func serveHTTP(port int, h http.Handler) error {
	// gRPC has no other way than HTTP/2.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Addr: fmt.Sprintf(":%d", port), Handler: h,
		Protocols: protocols, ReadHeaderTimeout: 10 * time.Second,
	}
	return server.ListenAndServe()
}
