package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/e2e/report"
)

// The suites.
const (
	upstream  = "upstream"  // k8s.io/kubernetes/test/e2e/network/netpol
	parallel  = "cluster"   // ours, beside others
	serial    = "serial"    // ours, with the cluster to themselves
	outage    = "outage"    // ours, after which other parts of the cluster take long to recover
	uninstall = "uninstall" // ours, after which there is nothing left to test
)

func all() []string { return []string{upstream, parallel, serial, outage, uninstall} }

// suite is a ginkgo test binary and how it is run.
type suite struct {
	name   string
	binary string
	procs  int
	// flags are ginkgo's, args the binary's own.
	flags, args []string
	env         []string
	// why says why specs that the flags leave out are left out. Those that it
	// says nothing about were not asked for.
	why func(spec string) string
}

// sctp is the label of upstream's specs that send SCTP.
const sctp = "Feature:SCTPConnectivity"

// suitesOf returns the suites that were asked for, in the order of their runs.
func (r *run) suitesOf(o options) map[string]suite {
	known := map[string]suite{
		upstream: {
			name: upstream, binary: r.set.Binary("netpol.test"), procs: o.procs,
			args: []string{
				"--kubeconfig=" + r.info.Kubeconfig, "--provider=skeleton", "--disable-log-dump",
				"--dump-logs-on-failure=false", "--delete-namespace=true", "--allowed-not-ready-nodes=0",
			},
			why: func(string) string { return "" },
		},
		parallel: {
			name: parallel, binary: besides("cluster.test"), procs: 2,
			flags: []string{"--label-filter=!(serial || outage || uninstall)"},
		},
		serial: {
			name: serial, binary: besides("cluster.test"), procs: 1,
			// The decorator Serial is a label, too, and has all three.
			flags: []string{"--label-filter=serial && !(outage || uninstall)"},
		},
		outage: {
			name: outage, binary: besides("cluster.test"), procs: 1,
			flags: []string{"--label-filter=outage"},
		},
		uninstall: {
			name: uninstall, binary: besides("cluster.test"), procs: 1,
			flags: []string{"--label-filter=uninstall"},
		},
	}
	up := known[upstream]
	if !hasSCTP() {
		up.flags = append(up.flags, "--skip="+sctp)
		up.why = func(spec string) string {
			if strings.Contains(spec, sctp) {
				return "this kernel has no SCTP"
			}
			return ""
		}
	}
	known[upstream] = up
	chosen := make(map[string]suite)
	for name, s := range known {
		if !o.has(name) {
			continue
		}
		if s.why == nil {
			s.why = func(string) string { return "" }
			s.env = []string{"SELVAGE_LAB=" + r.labDir(), "SELVAGE_REPO=" + o.repo}
		}
		if o.focus != "" {
			s.flags = append(s.flags, "--focus="+o.focus)
			s.why = func(string) string { return "" }
		}
		chosen[name] = s
	}
	return chosen
}

// hasSCTP asks the kernel for a socket.
func hasSCTP() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err == nil {
		_ = unix.Close(fd)
	}
	return !errors.Is(err, unix.EPROTONOSUPPORT)
}

// play runs a suite inside the lab's network and returns what came of it. That
// specs failed is no error.
func (r *run) play(ctx context.Context, s suite, round int) ([]report.Spec, error) {
	name := s.name + "-" + strconv.Itoa(round)
	file := name + ".json"
	_ = os.Remove(filepath.Join(r.o.state, file)) // an old report must not be taken for a new one
	log, err := os.Create(filepath.Join(r.o.state, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	argv := []string{
		r.set.Binary("ginkgo"), "--no-color", "--procs=" + strconv.Itoa(s.procs), "--timeout=40m",
		"--flake-attempts=" + strconv.Itoa(r.o.tries), "--output-dir=" + r.o.state, "--json-report=" + file,
	}
	argv = append(append(append(argv, s.flags...), s.binary, "--"), s.args...)
	cmd := r.lab.NetCommand(ctx, "fabric", argv...)
	cmd.Dir = r.o.state
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = log, log
	ownGroup(cmd, syscall.SIGINT, 30*time.Second)
	began := time.Now()
	r.say.printf("%s: begins", name)
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	specs, rerr := report.Read(filepath.Join(r.o.state, file), s.name, s.why)
	if rerr != nil {
		return nil, fmt.Errorf("%s: %w (%w); see %s", name, rerr, err, log.Name())
	}
	passed, failed, _ := report.Count(specs)
	if err != nil && failed == 0 {
		return nil, fmt.Errorf("%s: every spec passed, but ginkgo says: %w; see %s", name, err, log.Name())
	}
	took := time.Since(began)
	r.say.printf("%s: %d passed, %d failed, in %.0f s", name, passed, failed, took.Seconds())
	r.timed(s.name, took)
	return specs, nil
}

// ownGroup has a command run in a process group of its own, where a Ctrl-C of
// the terminal does not reach it, and has the whole group get the signal when
// its context ends, and be killed if it is still there after the grace.
func ownGroup(cmd *exec.Cmd, sig syscall.Signal, grace time.Duration) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, sig) }
	cmd.WaitDelay = grace
}
