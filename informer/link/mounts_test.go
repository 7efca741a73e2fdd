package link

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

// watch runs a Finder until the test's end. The changes come out once the first
// has said that nothing is missed any more.
func watch(t *testing.T, f *Finder) <-chan LinkChange {
	t.Helper()
	changes := make(chan LinkChange, 100000)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx, func(c LinkChange) { changes <- c }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	if first := <-changes; first != (LinkChange{}) {
		t.Errorf("the first change is %+v", first)
	}
	return changes
}

// awaitChange waits for a change that ok likes, and returns those before it too.
func awaitChange(t *testing.T, changes <-chan LinkChange, what string, ok func(LinkChange) bool) (all []LinkChange) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case c := <-changes:
			if all = append(all, c); ok(c) {
				return all
			}
		case <-timeout:
			t.Fatalf("never %s: %+v", what, all)
		}
	}
}

func namespaces(c LinkChange) bool { return c.Namespaces && c.Index == 0 }

func TestFinderRun(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, "ip link add cni0 type bridge; ip link add one type veth peer name two")
	index := interfaceOf(t, "", "one").Attrs().Index
	one := func(gone bool) func(LinkChange) bool {
		return func(c LinkChange) bool { return c.Index == index && c.Name == "one" && c.Gone == gone && !c.Namespaces }
	}
	changes := watch(t, newTestFinder(t))
	isolate.Sh(t, "ip link set one up")
	awaitChange(t, changes, "up", one(false))
	isolate.Sh(t, "ip link set one master cni0; ip link set one nomaster; ip link set two name after")
	for _, c := range awaitChange(t, changes, "on and off the bridge", func(c LinkChange) bool { return c.Name == "after" }) {
		if c.Gone {
			t.Errorf("not on the bridge any more, and told to be gone: %+v", c)
		}
	}
	isolate.Sh(t, "ip link set one down; ip link set one name uno; ip link set uno name one")
	awaitChange(t, changes, "renamed", func(c LinkChange) bool { return c.Index == index && c.Name == "uno" })
	isolate.Sh(t, "ip link del one")
	last := awaitChange(t, changes, "deleted", one(true))
	if slices.ContainsFunc(last, namespaces) {
		t.Errorf("no namespace came or went: %+v", last)
	}
}

// TestFinderRunNamespaces has namespaces come and go, and mounts that are none.
func TestFinderRunNamespaces(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	other := t.TempDir() + "/netns"
	f := newTestFinder(t, "/run/netns", other)
	changes := watch(t, f)
	isolate.Sh(t, "ip netns add a")
	awaitChange(t, changes, "added", namespaces)
	isolate.Sh(t, "ip -n a link add eth0 type ifb; ip -n a addr add 10.0.0.1/24 dev eth0")
	eventually(t, f, "a eth0(ifb)", "10.0.0.1")
	isolate.Sh(t, "mkdir "+other)
	addNetNS(t, other+"/b")
	awaitChange(t, changes, "added to a directory that was not there", namespaces)
	isolate.Sh(t, "ip netns del a")
	awaitChange(t, changes, "removed", namespaces)
	if got := where(f, "10.0.0.1"); got != ErrNotFound.Error() {
		t.Error(got)
	}
	isolate.Sh(t, "umount "+other+"/b")
	awaitChange(t, changes, "the other removed", namespaces)
	f.mu.Lock()
	if len(f.known) != 0 {
		t.Errorf("%d namespaces are known", len(f.known))
	}
	f.mu.Unlock()
	isolate.Sh(t, "cd "+other+"; for i in 1 2 3; do mount -t tmpfs none .; umount .; done; sleep 0.1; ip link add last type ifb")
	for _, c := range awaitChange(t, changes, "the last", func(c LinkChange) bool { return c.Name == "last" }) {
		if c.Namespaces {
			t.Error("told of mounts that are no namespaces")
		}
	}
}

// addNetNS makes a network namespace with a file of that name.
func addNetNS(t *testing.T, path string, how ...string) {
	t.Helper()
	cmd := exec.Command("unshare", append(how, "--net", "cat")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = in.Write([]byte{'.'})
	}
	if err == nil {
		_, err = out.Read([]byte{0}) // now it is cat
	}
	if err != nil {
		t.Fatal(err)
	}
	isolate.Sh(t, fmt.Sprintf("touch %s; mount --bind /proc/%d/ns/net %s", path, cmd.Process.Pid, path))
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestFinderRunLost has more notifications come than the socket holds.
func TestFinderRunLost(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, "ip link add one type ifb")
	f := newTestFinder(t)
	ctx, cancel := context.WithCancel(t.Context())
	enough, lost, done := make(chan bool), make(chan bool, 1000), make(chan error)
	go func() {
		calls := 0
		done <- f.Run(ctx, func(c LinkChange) {
			if calls++; calls == 1 {
				<-enough
			} else if c == (LinkChange{}) {
				lost <- true
			}
		})
	}()
	link := interfaceOf(t, "", "one")
	for i := range 2000 {
		if err := netlink.LinkSetMTU(link, 1000+i%2); err != nil {
			t.Fatal(err)
		}
	}
	close(enough)
	<-lost
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFinderNetAdmin runs a Finder as it is in a container: with a mount namespace
// that gets the node's mounts, and with no capability but CAP_NET_ADMIN. One of the
// pods has a user namespace.
func TestFinderNetAdmin(t *testing.T) {
	const child = "SELVAGE_TEST_NET_ADMIN"
	if os.Getenv(child) != "" {
		findAsNetAdmin(t)
		return
	}
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, "ip link add cni0 type bridge")
	addPod(t, "a", "cni0", "10.1.0.1/24")
	addNetNS(t, "/run/netns/user", "--user", "--map-root-user")
	isolate.Sh(t, `ip link add vuser type veth peer name eth0 netns user; ip -n user addr add 10.1.0.3/24 dev eth0`)
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation=slave",
		"setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), child+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	passed := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		t.Log(lines.Text())
		passed = passed || strings.HasPrefix(lines.Text(), "--- PASS")
		if lines.Text() == listening {
			addPod(t, "b", "cni0", "10.1.0.2/24")
		}
	}
	if err := cmd.Wait(); err != nil || !passed {
		t.Fatalf("without capabilities: %v", err)
	}
}

const listening = "listening"

func findAsNetAdmin(t *testing.T) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || os.Geteuid() != 0 {
		t.Fatal(err, os.Geteuid())
	}
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd"} {
		if !strings.Contains(string(status), set+":\t0000000000001000\n") {
			t.Fatalf("not CAP_NET_ADMIN alone:\n%s", status)
		}
	}
	f := newTestFinder(t)
	changes := watch(t, f)
	for addr, want := range map[string]string{"10.1.0.1": "a eth0(veth) host va(veth)", "10.1.0.3": "user eth0(veth) host vuser(veth)"} {
		if got := where(f, addr); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	fmt.Println(listening)
	awaitChange(t, changes, "added", namespaces)
	eventually(t, f, "b eth0(veth) host vb(veth)", "10.1.0.2")
}
