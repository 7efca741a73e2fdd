package link

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

// addPods makes n pods on a bridge and returns their addresses.
func addPods(t testing.TB, n int) [][]netip.Addr {
	t.Helper()
	var batch strings.Builder
	batch.WriteString("link add cni0 type bridge\n")
	for i := range n {
		fmt.Fprintf(&batch, "netns add p%d\nlink add v%d type veth peer name eth0 netns p%d\nlink set v%d master cni0 up\n", i, i, i, i)
	}
	isolate.Sh(t, "ip -batch - <<'END'\n"+batch.String()+"END")
	var all [][]netip.Addr
	for i := range n {
		pod := []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})}
		all = append(all, pod)
		ns, err := netns.GetFromName(fmt.Sprintf("p%d", i))
		if err != nil {
			t.Fatal(err)
		}
		h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		eth0, err := h.LinkByName("eth0")
		for _, a := range pod {
			if err == nil {
				err = h.AddrAdd(eth0, &netlink.Addr{IPNet: netlink.NewIPNet(a.AsSlice()), Flags: unix.IFA_F_NODAD})
			}
		}
		if err == nil {
			err = h.LinkSetUp(eth0)
		}
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
		ns.Close()
	}
	return all
}

// TestFinderMany looks for many pods at once, among them some that do not exist,
// while others come and go.
func TestFinderMany(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	pods := addPods(t, 250)
	f := newTestFinder(t)
	began := time.Now()
	for i, pod := range pods {
		if found, err := f.Find(pod); err != nil || found.Host == nil || found.Host.Name != fmt.Sprintf("v%d", i) {
			t.Fatalf("%v: %+v, %v", pod, found, err)
		}
	}
	t.Logf("found %d pods in %v", len(pods), time.Since(began))
	began = time.Now()
	for i := range pods {
		if _, err := f.Find([]netip.Addr{netip.AddrFrom4([4]byte{10, 2, 0, byte(i)})}); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
	t.Logf("looked for %d that do not exist in %v", len(pods), time.Since(began))
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range pods {
				i = (i*7 + worker*31) % len(pods)
				want := fmt.Sprintf("p%d eth0(veth) host v%d(veth)", i, i)
				if i%50 == 0 {
					continue // it goes meanwhile
				}
				if got := where(f, pods[i][0].String(), pods[i][1].String()); got != want {
					t.Errorf("%q, want %q", got, want)
				}
			}
		})
	}
	for i := 0; i < len(pods); i += 50 {
		isolate.Sh(t, fmt.Sprintf("ip netns del p%d; ip netns add q%d; ip link add w%d type veth peer name eth0 netns q%d; ip -n q%d addr add 10.3.0.%d/24 dev eth0", i, i, i, i, i, i))
	}
	wg.Wait()
	for i := 0; i < len(pods); i += 50 {
		eventually(t, f, fmt.Sprintf("q%d eth0(veth) host w%d(veth)", i, i), fmt.Sprintf("10.3.0.%d", i))
		if got := where(f, pods[i][0].String()); got != ErrNotFound.Error() {
			t.Error(got)
		}
	}
	if len(f.known) != len(pods) {
		t.Errorf("%d namespaces are known, want %d", len(f.known), len(pods))
	}
}

// isolated runs the calling benchmark once more in namespaces of its own, as
// isolate.Test does with a test, and reports what it measured there.
func isolated(b *testing.B) bool {
	b.Helper()
	const child = "SELVAGE_BENCHMARK_ISOLATED"
	if os.Getenv(child) == b.Name() {
		isolate.Sh(b, "mkdir -p /run/netns && mount -t tmpfs -o mode=755 none /run/netns")
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^"+b.Name()+"$", "-test.benchmem", "-test.benchtime="+flag.Lookup("test.benchtime").Value.String())
	cmd.Env = append(os.Environ(), child+"="+b.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%s%v", out, err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if !strings.HasPrefix(line, b.Name()) || len(fields) < 4 {
			continue
		}
		for i := 2; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(v, fields[i+1])
		}
	}
	return false
}

// BenchmarkFind finds one of 250 pods, which are known.
func BenchmarkFind(b *testing.B) {
	if !isolated(b) {
		return
	}
	pods := addPods(b, 250)
	f := newTestFinder(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := f.Find(pods[i%len(pods)]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFindAll250 finds all of 250 pods, from nothing.
func BenchmarkFindAll250(b *testing.B) {
	if !isolated(b) {
		return
	}
	pods := addPods(b, 250)
	b.ReportAllocs()
	for b.Loop() {
		f := newTestFinder(b)
		for _, pod := range pods {
			if _, err := f.Find(pod); err != nil {
				b.Fatal(err)
			}
		}
		f.Close()
	}
}
