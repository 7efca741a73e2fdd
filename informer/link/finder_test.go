package link

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/selvage-net/selvage/informer/link/isolate"
)

func newTestFinder(t testing.TB, dirs ...string) *Finder {
	t.Helper()
	f, err := NewFinder(FinderOptions{Dirs: dirs, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// where finds a pod and writes down where it is.
func where(f *Finder, addrs ...string) string {
	found, err := f.Find(addresses(addrs...))
	for _, e := range []error{ErrNotFound, ErrAmbiguous, ErrSplit} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	if err != nil {
		return err.Error()
	}
	text := fmt.Sprintf("%s %s(%s)", strings.TrimPrefix(found.NetNS.Path, "/run/netns/"), found.Pod.Name, found.Pod.Kind)
	if found.Host != nil {
		text += fmt.Sprintf(" host %s(%s)", found.Host.Name, found.Host.Kind)
	}
	if found.Parent != "" {
		text += " on " + found.Parent
	}
	return text
}

// eventually waits until where is what is wanted: what was added or removed inside
// a namespace is not always seen at once.
func eventually(t *testing.T, f *Finder, want string, addrs ...string) {
	t.Helper()
	got := ""
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if got = where(f, addrs...); got == want {
			return
		}
	}
	t.Fatalf("%v: %q, want %q", addrs, got, want)
}

// interfaceOf asks the namespace itself about an interface; empty is the test's own.
func interfaceOf(t testing.TB, namespace, name string) netlink.Link {
	t.Helper()
	ns := netns.None()
	if namespace != "" {
		var err error
		if ns, err = netns.GetFromName(namespace); err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		t.Fatalf("%s in %q: %v", name, namespace, err)
	}
	return l
}

// world has pods attached in all the ways that this kernel offers, and files among
// those of their namespaces that are none.
const world = `
	ip link add uplink type veth peer name uplink-peer; ip addr add 192.168.1.10/24 dev uplink; ip link set uplink up; ip link set uplink-peer up
	ip link add cni0 type bridge; ip addr add 10.244.1.1/24 dev cni0; ip link set cni0 up
	pod() { ip netns add $1; ip -n $1 link set lo up; ip -n $1 addr add 10.99.99.99/32 dev lo; }
	pod routed; ip link add vrouted mtu 1400 type veth peer name eth0 mtu 1300 netns routed; ip link set vrouted up
	ip -n routed link set eth0 up; ip -n routed addr add 10.7.0.7/32 dev eth0; ip -n routed addr add 10.7.0.7/24 dev eth0; ip -n routed addr add 10.7.0.77 peer 10.7.0.78 dev eth0; ip route add 10.7.0.7/32 dev vrouted
	pod mac; ip link add eth0 link uplink netns mac type macvlan mode bridge; ip -n mac addr add 192.168.1.50/24 dev eth0; ip -n mac link set eth0 up
	ip link add shim link uplink type macvlan mode bridge; ip link set shim up
	pod nested; ip link add vnested type veth peer name eth0 netns nested; ip -n nested link set eth0 up
	ip -n nested link add link eth0 name mac0 type macvlan; ip -n nested addr add 10.3.0.3/24 dev mac0
	ip netns add router; pod third; ip -n router link add toThird type veth peer name eth0 netns third; ip -n third addr add 10.4.0.4/24 dev eth0
	pod inside; ip -n inside link add one type veth peer name two; ip -n inside addr add 10.4.0.5/24 dev one
	pod tun; ip -n tun tuntap add tun0 mode tun; ip -n tun addr add 10.5.0.5/24 dev tun0
	pod ifb; ip -n ifb link add eth0 type ifb; ip -n ifb addr add 10.5.0.6/24 dev eth0
	pod split
	for i in 1 2; do ip link add vsplit$i type veth peer name eth$i netns split; ip -n split addr add 10.6.0.$i/24 dev eth$i; ip -n split addr add 10.6.1.1/32 dev eth$i; done
	cd /run/netns; echo junk > junk; mkdir directory; mkfifo fifo; ln -s nowhere dangling; ln -s routed again
	touch host zzz-routed uts; mount --bind /proc/self/ns/net host; mount --bind routed zzz-routed; mount --bind /proc/self/ns/uts uts`

func TestFinder(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, world)
	addPod(t, "bridged", "cni0", "10.244.1.5/24", "fd00:1::5/64")
	f := newTestFinder(t)
	const bridged, again = "bridged eth0(veth) host vbridged(veth)", "again eth0(veth) host vrouted(veth)"
	for _, tt := range []struct {
		name, want string
		addrs      []string
	}{
		{"bridge", bridged, []string{"10.244.1.5"}},
		{"bridge, IPv6", bridged, []string{"fd00:1::5"}},
		{"bridge, both", bridged, []string{"10.244.1.5", "fd00:1::5"}},
		{"bridge, in IPv6's clothes", bridged, []string{"::ffff:10.244.1.5"}},
		{"bridge, one not there yet", bridged, []string{"10.244.1.5", "fd00:1::6"}},
		{"routed veth", again, []string{"10.7.0.7"}},
		{"routed veth, address with a peer", again, []string{"10.7.0.77"}},
		{"the peer's address", ErrNotFound.Error(), []string{"10.7.0.78"}},
		{"macvlan", "mac eth0(macvlan) on uplink", []string{"192.168.1.50"}},
		{"macvlan on the pod's own veth", "nested mac0(macvlan)", []string{"10.3.0.3"}},
		{"veth to a third namespace", "third eth0(veth)", []string{"10.4.0.4"}},
		{"veth to itself", "inside one(veth)", []string{"10.4.0.5"}},
		{"tun", "tun tun0(tun)", []string{"10.5.0.5"}},
		{"a device of its own", "ifb eth0(ifb)", []string{"10.5.0.6"}},
		{"two interfaces", ErrSplit.Error(), []string{"10.6.0.1", "10.6.0.2"}},
		{"one of two interfaces", "split eth1(veth) host vsplit1(veth)", []string{"10.6.0.1"}},
		{"on two interfaces", ErrAmbiguous.Error(), []string{"10.6.1.1"}},
		{"two namespaces", ErrSplit.Error(), []string{"10.6.0.1", "10.4.0.5"}},
		{"the node's own", ErrNotFound.Error(), []string{"192.168.1.10"}},
		{"on lo", ErrNotFound.Error(), []string{"10.99.99.99"}},
		{"loopback", ErrNotFound.Error(), []string{"127.0.0.1", "::1"}},
		{"nobody's", ErrNotFound.Error(), []string{"10.244.1.6", "fd00:1::6"}},
		{"none", ErrNotFound.Error(), nil},
		{"not valid", ErrNotFound.Error(), []string{"0.0.0.0", "::", "fe80::1", "224.0.0.1"}},
	} {
		for range 2 { // from the directories, and from what is known
			if got := where(f, tt.addrs...); got != tt.want {
				t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
			}
		}
	}
}

// TestFinderEnds compares what is found with what the namespaces say themselves.
func TestFinderEnds(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, world)
	f := newTestFinder(t)
	end := func(l netlink.Link, kind string, ethernet bool) End {
		a := l.Attrs()
		return End{Index: a.Index, Name: a.Name, Kind: kind, MTU: a.MTU, Ethernet: ethernet}
	}
	for addr, tt := range map[string]struct {
		namespace, name, kind, host string
		ethernet                    bool
	}{
		"10.7.0.7":     {"routed", "eth0", "veth", "vrouted", true},
		"192.168.1.50": {"mac", "eth0", "macvlan", "", true},
		"10.5.0.5":     {"tun", "tun0", "tun", "", false},
	} {
		found, err := f.Find(addresses(addr))
		if err != nil {
			t.Fatal(err)
		}
		if found.Pod != end(interfaceOf(t, tt.namespace, tt.name), tt.kind, tt.ethernet) {
			t.Errorf("%s: %+v", addr, found.Pod)
		}
		if (tt.host == "") != (found.Host == nil) || found.Host != nil && *found.Host != end(interfaceOf(t, "", tt.host), "veth", true) {
			t.Errorf("%s: host %+v", addr, found.Host)
		}
		var st unix.Stat_t
		if err := unix.Stat("/run/netns/"+tt.namespace, &st); err != nil || st.Ino != found.NetNS.Inode {
			t.Errorf("%s: %v, inode %d, want %d", addr, err, found.NetNS.Inode, st.Ino)
		}
		ns, err := netns.GetFromName(tt.namespace)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := netlink.GetNetNsIdByFd(int(ns)); err != nil || id != found.NetNS.ID {
			t.Errorf("%s: %v, nsid %d, want %d", addr, err, found.NetNS.ID, id)
		}
		ns.Close()
	}
}

// TestFinderLate has addresses come and go after the namespace was seen.
func TestFinderLate(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, "ip link add cni0 type bridge")
	addPod(t, "a", "cni0", "10.1.0.1/24")
	f := newTestFinder(t)
	addPod(t, "b", "cni0")
	const b = "b eth0(veth) host vb(veth)"
	if got := where(f, "10.1.0.2"); got != ErrNotFound.Error() {
		t.Fatal(got)
	}
	isolate.Sh(t, "ip -n b addr add 10.1.0.2/24 dev eth0")
	eventually(t, f, b, "10.1.0.2")
	isolate.Sh(t, "ip -n b addr add fd00::2/64 dev eth0 nodad")
	if got := where(f, "10.1.0.2", "fd00::2"); got != b {
		t.Fatal(got)
	}
	isolate.Sh(t, "ip -n a addr add fd00::1/64 dev eth0 nodad")
	eventually(t, f, "a eth0(veth) host va(veth)", "fd00::1")
	for _, n := range f.known {
		n.born = n.read.Add(-time.Hour) // all are believed
	}
	f.next = time.Time{}
	isolate.Sh(t, "ip -n b addr del 10.1.0.2/24 dev eth0; ip -n a addr add 10.1.0.2/24 dev eth0")
	if got := where(f, "10.1.0.2"); got != "a eth0(veth) host va(veth)" {
		t.Error(got)
	}
	isolate.Sh(t, "ip -n a addr del 10.1.0.2/24 dev eth0")
	if got := where(f, "10.1.0.2"); got != ErrNotFound.Error() {
		t.Error(got)
	}
}

// TestFinderAmbiguous has a pod's address used anew while its namespace lingers.
func TestFinderAmbiguous(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, "ip link add cni0 type bridge")
	addPod(t, "old", "cni0", "10.1.0.1/24")
	f := newTestFinder(t)
	if got := where(f, "10.1.0.1"); got != "old eth0(veth) host vold(veth)" {
		t.Fatal(got)
	}
	addPod(t, "new", "cni0", "10.1.0.1/24")
	_, err := f.Find(addresses("10.1.0.1"))
	if !errors.Is(err, ErrAmbiguous) || !strings.Contains(err.Error(), "/run/netns/old") || !strings.Contains(err.Error(), "/run/netns/new") {
		t.Fatal(err)
	}
	isolate.Sh(t, "ip -n old link del eth0") // as the base CNI does first
	if got := where(f, "10.1.0.1"); got != "new eth0(veth) host vnew(veth)" {
		t.Fatal(got)
	}
	isolate.Sh(t, "ip netns del old")
	if got := where(f, "10.1.0.1"); got != "new eth0(veth) host vnew(veth)" {
		t.Fatal(got)
	}
	// One that was seen while it had no address yet.
	isolate.Sh(t, "ip netns add next; ip link add vnext type veth peer name eth0 netns next")
	if got := where(f, "10.1.0.1"); got != "new eth0(veth) host vnew(veth)" {
		t.Fatal(got)
	}
	isolate.Sh(t, "ip -n next addr add 10.1.0.1/24 dev eth0")
	eventually(t, f, ErrAmbiguous.Error(), "10.1.0.1")
	isolate.Sh(t, "ip netns del new")
	if got := where(f, "10.1.0.1"); got != "next eth0(veth) host vnext(veth)" {
		t.Fatal(got)
	}
}

// TestFinderRecreated makes namespaces and interfaces anew under their old names. The
// kernel often gives the new namespace the old one's number: here it always does.
func TestFinderRecreated(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, "ip link add cni0 type bridge")
	addPod(t, "a", "cni0", "10.1.0.1/24")
	f := newTestFinder(t)
	before, err := f.Find(addresses("10.1.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		version := f.version
		isolate.Sh(t, "ip netns del a; while ip link show va; do sleep 0.01; done 2>/dev/null >&2; sleep 0.02") // it ends some time later
		if i%2 == 0 {
			if got := where(f, "10.1.0.1"); got != ErrNotFound.Error() {
				t.Fatal(got)
			}
		}
		addPod(t, "a", "cni0", "10.1.0.1/24")
		var st unix.Stat_t
		if err := unix.Stat("/run/netns/a", &st); err != nil {
			t.Fatal(err)
		}
		for _, n := range f.known {
			n.Inode, n.identity.inode = st.Ino, st.Ino
		}
		after, err := f.Find(addresses("10.1.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		if after.Host == nil || after.Host.Index == before.Host.Index || after.Host.Index != interfaceOf(t, "", "va").Attrs().Index || after.NetNS.Inode != st.Ino {
			t.Fatalf("%+v, before that %+v", after, before)
		}
		if f.version == version {
			t.Fatal("the new namespace was taken for the old one")
		}
		before = after
	}
	isolate.Sh(t, "ip link set va down; ip link set va name renamed; ip link set renamed up; ip link set renamed mtu 1399")
	if got := where(f, "10.1.0.1"); got != "a eth0(veth) host renamed(veth)" {
		t.Error(got)
	}
	isolate.Sh(t, `ip link del renamed; ip link add other type veth peer name net1 netns a; ip -n a addr add 10.1.0.1/24 dev net1`)
	eventually(t, f, "a net1(veth) host other(veth)", "10.1.0.1")
	isolate.Sh(t, "ip netns add elsewhere; ip link set other netns elsewhere")
	if got := where(f, "10.1.0.1"); got != "a net1(veth)" {
		t.Error(got)
	}
	isolate.Sh(t, "ip -n elsewhere link set other netns $$")
	if got := where(f, "10.1.0.1"); got != "a net1(veth) host other(veth)" {
		t.Error(got)
	}
}

// TestFinderCoincidence has a pod whose veth leads to a third namespace, and on the
// node a veth that leads to a fourth, with the same indices at all four ends.
func TestFinderCoincidence(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	isolate.Sh(t, `
		for n in pod third fourth; do ip netns add $n; done
		ip -n pod link add eth0 index 50 type veth peer name other index 60 netns third
		ip link add vfourth index 60 type veth peer name eth0 index 50 netns fourth
		ip -n pod addr add 10.1.0.1/24 dev eth0; ip -n fourth addr add 10.1.0.4/24 dev eth0
		ip netns add mac; ip -n third link add eth0 link other netns mac type macvlan; ip -n mac addr add 10.1.0.5/24 dev eth0`)
	pod, decoy := interfaceOf(t, "pod", "eth0").Attrs(), interfaceOf(t, "", "vfourth").Attrs()
	if pod.ParentIndex != decoy.Index || decoy.ParentIndex != pod.Index {
		t.Fatalf("the indices do not coincide: %+v and %+v", pod, decoy)
	}
	f := newTestFinder(t)
	for addr, want := range map[string]string{
		"10.1.0.1": "pod eth0(veth)",
		"10.1.0.4": "fourth eth0(veth) host vfourth(veth)",
		"10.1.0.5": "mac eth0(macvlan)",
	} {
		if got := where(f, addr); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
}

// TestPaired takes away each of the reasons to believe in a pair.
func TestPaired(t *testing.T) {
	const node, pod = 3, 7
	good := func() (port, port) {
		return port{End: End{Index: 2, Kind: "veth"}, peer: 9, peerNS: node}, port{End: End{Index: 9, Kind: "veth"}, peer: 2, peerNS: pod}
	}
	a, b := good()
	if !paired(a, pod, b, node) {
		t.Error("a pair is none")
	}
	for name, spoil := range map[string]func(a, b *port){
		"kind":                  func(_, b *port) { b.Kind = "netkit" },
		"index of the host":     func(a, _ *port) { a.peer = 8 },
		"namespace of the host": func(a, _ *port) { a.peerNS = 4 },
		"index of the pod":      func(_, b *port) { b.peer = 3 },
		"namespace of the pod":  func(_, b *port) { b.peerNS = 8 },
		"no number":             func(_, b *port) { b.peerNS = none },
	} {
		a, b := good()
		spoil(&a, &b)
		if paired(a, pod, b, node) {
			t.Errorf("%s: taken for a pair", name)
		}
	}
}

// TestParseMalformed reads what no kernel sends, or only one that is too old.
func TestParseMalformed(t *testing.T) {
	const nsid = 5
	attr := func(kind int, value []byte) []byte { return nl.NewRtAttr(kind, value).Serialize() }
	link, addr := make([]byte, unix.SizeofIfInfomsg), make([]byte, unix.SizeofIfAddrmsg)
	for name, m := range map[string][]byte{
		"nothing":           nil,
		"of this namespace": link,
		"of another":        append(link[:len(link):len(link)], attr(unix.IFLA_TARGET_NETNSID, int32Attr(6))...),
		"short number":      append(link[:len(link):len(link)], attr(unix.IFLA_LINK, []byte{1, 2})...),
		"cut":               append(link[:len(link):len(link)], 99, 0, 1, 0),
		"cut kind":          append(link[:len(link):len(link)], attr(unix.IFLA_LINKINFO, []byte{99, 0, 1, 0})...),
	} {
		if p, err := parsePort(m, nsid); err == nil {
			t.Errorf("link, %s: %+v", name, p)
		}
	}
	if a, err := parseAddress(addr, nsid); err != nil || usable(a.addr) {
		t.Errorf("an address of another family: %+v, %v", a, err)
	}
	addr[0] = unix.AF_INET
	for name, m := range map[string][]byte{
		"nothing":           nil,
		"of this namespace": append(addr[:len(addr):len(addr)], attr(unix.IFA_LOCAL, []byte{10, 0, 0, 1})...),
		"of another":        append(addr[:len(addr):len(addr)], attr(unix.IFA_TARGET_NETNSID, int32Attr(6))...),
		"short number":      append(addr[:len(addr):len(addr)], attr(unix.IFA_TARGET_NETNSID, []byte{1})...),
	} {
		if a, err := parseAddress(m, nsid); err == nil {
			t.Errorf("address, %s: %+v", name, a)
		}
	}
}

func TestFinderClosed(t *testing.T) {
	if !isolate.Test(t) {
		return
	}
	if _, err := NewFinder(FinderOptions{Dirs: []string{"/proc/version"}, Logger: slog.New(slog.DiscardHandler)}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file for a directory: %v", err)
	}
	f := newTestFinder(t, "/nowhere")
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Find(addresses("10.0.0.1")); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}
