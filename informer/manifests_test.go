package informer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/features"
	featurestesting "k8s.io/client-go/features/testing"
)

// follow runs an Informer over a directory.
func follow(t *testing.T, dir string, o ManifestsOptions) (*sinkLog, *lines) {
	t.Helper()
	log := &lines{}
	o.Logger = log.logger()
	if o.Settle == 0 {
		o.Settle = 20 * time.Millisecond
	}
	if o.Reread == 0 {
		o.Reread = time.Hour // Only what the kernel tells counts.
	}
	source, err := Manifests(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	inf, sink := run(t, Options{Source: source, Logger: log.logger()})
	eventually(t, "the directory is connected", inf.Connected)
	return sink, log
}

func remove(t *testing.T, path ...string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(path...)); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, link string) {
	t.Helper()
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
}

// podOn is a pod whose node tells versions apart.
func podOn(name, node string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec: {nodeName: " + node + "}\n"
}

func TestManifests(t *testing.T) {
	for _, stream := range []bool{true, false} {
		t.Run(fmt.Sprintf("stream=%t", stream), func(t *testing.T) {
			featurestesting.SetFeatureDuringTest(t, features.WatchListClient, stream)
			dir := t.TempDir()
			write(t, dir, "all.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.1.0.0/24]}\n---\n"+podOn("a", "v1"))
			sink, _ := follow(t, dir, ManifestsOptions{})
			if got := strings.Join(sink.initial, " "); got != "+Namespace default +Node n1 +Pod default/a" {
				t.Errorf("initial batch: %s", got)
			}
			sink.has("Node n1", "10.1.0.0/24")

			// A new file, and one that changes in place.
			write(t, dir, "b.yml", podOn("b", "v1"))
			sink.has("Pod default/b", "v1")
			write(t, dir, "b.yml", podOn("b", "v2"))
			sink.has("Pod default/b", "v2")
			// An editor's way: beside it, then over it.
			write(t, dir, ".b.yml.swp", podOn("b", "v3"))
			rename(t, filepath.Join(dir, ".b.yml.swp"), filepath.Join(dir, "b.yml"))
			sink.has("Pod default/b", "v3")
			// Another's: the old one is moved away first.
			rename(t, filepath.Join(dir, "b.yml"), filepath.Join(dir, "b.yml~"))
			write(t, dir, "b.yml", podOn("b", "v4"))
			sink.has("Pod default/b", "v4")
			// New directories, and what is in them.
			write(t, dir, "deep/er/c.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"},"spec":{"nodeName":"v1"}}`)
			sink.has("Pod default/c", "v1")
			write(t, dir, "deep/er/c.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"c"},"spec":{"nodeName":"v2"}}`)
			sink.has("Pod default/c", "v2")
			// A file that moves takes its objects along.
			rename(t, filepath.Join(dir, "deep/er/c.json"), filepath.Join(dir, "c.json"))
			remove(t, dir, "b.yml")
			sink.lacks("Pod default/b")
			remove(t, dir, "all.yaml")
			sink.lacks("Node n1")
			for _, d := range sink.seen() {
				if d == "-Pod default/c" {
					t.Error("a file that moved lost its object for a while")
				}
			}
			if v, ok := sink.get("Pod default/c"); !ok || !strings.Contains(v, "v2") {
				t.Errorf("pod c = %q, %t", v, ok)
			}
		})
	}
}

// TestManifestsOfConfigMap swaps all files at once as the kubelet does: see
// AtomicWriter in pkg/volume/util/atomic_writer.go of Kubernetes.
func TestManifestsOfConfigMap(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "..1/a.yaml", podOn("a", "v1"))
	write(t, dir, "..1/sub/b.yaml", podOn("b", "v1"))
	symlink(t, "..1", filepath.Join(dir, "..data"))
	symlink(t, "..data/a.yaml", filepath.Join(dir, "a.yaml"))
	symlink(t, "..data/sub", filepath.Join(dir, "sub"))
	sink, log := follow(t, dir, ManifestsOptions{})
	sink.has("Pod default/a", "v1")
	sink.has("Pod default/b", "v1")
	for n := 2; n <= 4; n++ {
		version := fmt.Sprintf("v%d", n)
		write(t, dir, fmt.Sprintf("..%d/a.yaml", n), podOn("a", version))
		write(t, dir, fmt.Sprintf("..%d/sub/b.yaml", n), podOn("b", version))
		symlink(t, fmt.Sprintf("..%d", n), filepath.Join(dir, "..data_tmp"))
		rename(t, filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
		remove(t, dir, fmt.Sprintf("..%d", n-1))
		sink.has("Pod default/a", version)
		sink.has("Pod default/b", version)
	}
	for _, d := range sink.seen() {
		if strings.HasPrefix(d, "-") {
			t.Errorf("an object went away meanwhile: %s", d)
		}
	}
	if got := log.with("refused"); len(got) > 0 {
		t.Errorf("errors: %v", got)
	}
}

func TestManifestsBroken(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "m.yaml", podOn("a", "v1")+"---\n"+podOn("b", "v1"))
	write(t, dir, "sub/n.yaml", podOn("c", "v1"))
	var counted atomic.Int64
	sink, log := follow(t, dir, ManifestsOptions{
		Reread: 5 * time.Millisecond, // It is read over and over again.
		Observe: Observe{ManifestErrors: func(r Reason) {
			if r != ReasonSyntax && r != ReasonRead {
				t.Errorf("reason = %q", r)
			}
			counted.Add(1)
		}},
	})
	write(t, dir, "m.yaml", "[[[")
	eventually(t, "the mistake is logged", func() bool { return len(log.with("refused")) == 1 })
	write(t, dir, "sub/n.yaml", podOn("c", "v2"))
	sink.has("Pod default/c", "v2")
	for _, name := range []string{"a", "b"} {
		if _, ok := sink.get("Pod default/" + name); !ok {
			t.Errorf("pod %s is gone with the file's good sense", name)
		}
	}
	if got := log.with("refused"); len(got) != 1 || counted.Load() != 1 ||
		!strings.Contains(got[0], "file="+filepath.Join(dir, "m.yaml")) || !strings.Contains(got[0], "line=1") {
		t.Errorf("counted %d, logged %v", counted.Load(), got)
	}
	if got := log.with("refused"); !strings.Contains(got[0], `in_force="the last good version of all that it may define"`) {
		t.Errorf("it is not said what is in force: %s", got[0])
	}
	write(t, dir, "m.yaml", podOn("a", "v2"))
	sink.has("Pod default/a", "v2")
	sink.lacks("Pod default/b")
	eventually(t, "it is said that the file is in order", func() bool { return len(log.with("in order again")) == 1 })

	// The whole directory vanishes: that is not the same as deleting what is in it.
	rename(t, dir, dir+".away")
	eventually(t, "the loss is logged", func() bool { return len(log.with("no such file")) == 1 })
	if _, ok := sink.get("Pod default/a"); !ok {
		t.Error("pod a is gone with the directory")
	}
	rename(t, dir+".away", dir)
	write(t, dir, "m.yaml", podOn("a", "v3"))
	sink.has("Pod default/a", "v3")
}

func TestManifestsReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	write(t, dir, "m.yaml", podOn("a", "v1"))
	sink, log := follow(t, dir, ManifestsOptions{})
	remove(t, dir)
	eventually(t, "the loss is logged", func() bool { return len(log.with("no such file")) == 1 })
	write(t, dir, "m.yaml", podOn("a", "v2"))
	sink.has("Pod default/a", "v2")
	write(t, dir, "m.yaml", podOn("a", "v3"))
	sink.has("Pod default/a", "v3")
}

// TestManifestsReread changes what the kernel does not tell of: one link of a
// chain of links, in a directory that nothing else is in.
func TestManifestsReread(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, version := range []string{"v1", "v2"} {
		write(t, other, version+"/a.yaml", podOn("a", version))
	}
	link := filepath.Join(other, "links/current")
	if err := os.Mkdir(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	symlink(t, "../v1", link)
	symlink(t, filepath.Join(link, "a.yaml"), filepath.Join(dir, "a.yaml"))
	sink, _ := follow(t, dir, ManifestsOptions{Reread: 10 * time.Millisecond})
	sink.has("Pod default/a", "v1")
	symlink(t, "../v2", link+".new")
	rename(t, link+".new", link)
	sink.has("Pod default/a", "v2")
}

func TestManifestsOddFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "m.yaml", podOn("a", "v1"))
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	symlink(t, "nowhere", filepath.Join(dir, "dangling.yaml"))
	symlink(t, ".", filepath.Join(dir, "loop"))
	if err := os.Mkdir(filepath.Join(dir, "directory.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	huge := filepath.Join(dir, "huge.yaml")
	write(t, dir, "huge.yaml", "")
	if err := os.Truncate(huge, maxManifest+1); err != nil {
		t.Fatal(err)
	}
	s, err := Load(dir)
	if len(s.Pods) != 1 {
		t.Errorf("%d pods", len(s.Pods))
	}
	for _, want := range []string{"fifo.yaml: not a regular file", "dangling.yaml: stat: no such file", "huge.yaml: larger than 64 MiB"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	if err != nil && strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("more than three errors: %v", err)
	}
}

func TestManifestsNeedsADirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "file", "")
	for _, name := range []string{"missing", "file"} {
		if _, err := Manifests(filepath.Join(dir, name), ManifestsOptions{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}

func TestCollection(t *testing.T) {
	c := newCollection(Pods)
	defer c.shutdown()
	for n := range 3 {
		p := apiPod(fmt.Sprintf("p%d", n), "")
		if err := c.put(idOf(p), p); err != nil {
			t.Fatal(err)
		}
	}
	list, err := c.ListWithContext(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	version := list.(metav1.ListInterface).GetResourceVersion()
	if version != "4" {
		t.Errorf("resourceVersion = %q after three changes", version)
	}
	p0 := apiPod("p0", "10.0.0.1")
	if err := c.put(idOf(p0), p0); err != nil {
		t.Fatal(err)
	}
	if err := c.remove(idOf(apiPod("p1", ""))); err != nil {
		t.Fatal(err)
	}
	yes := true
	for _, tt := range []struct {
		name string
		o    metav1.ListOptions
		want string
	}{
		{"from the start", metav1.ListOptions{}, "ADDED p0@5, ADDED p2@4"},
		{"from any version", metav1.ListOptions{ResourceVersion: "0"}, "ADDED p0@5, ADDED p2@4"},
		{"from the list", metav1.ListOptions{ResourceVersion: version}, "MODIFIED p0@5, DELETED p1@6"},
		{"from the beginning", metav1.ListOptions{ResourceVersion: "1"}, "ADDED p0@2, ADDED p1@3, ADDED p2@4, MODIFIED p0@5, DELETED p1@6"},
		{"from now on", metav1.ListOptions{ResourceVersion: "6"}, ""},
		{"stream", metav1.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true}, "ADDED p0@5, ADDED p2@4, BOOKMARK @6"},
		{"stream again", metav1.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersion: "3"}, "ADDED p0@5, ADDED p2@4, BOOKMARK @6"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, err := c.Watch(tt.o)
			if err != nil {
				t.Fatal(err)
			}
			// What comes next tells where the first events end.
			mark := apiPod("mark", "")
			if err := c.put(idOf(mark), mark); err != nil {
				t.Fatal(err)
			}
			var got []string
			for e := range w.ResultChan() {
				m := e.Object.(metav1.Object)
				if m.GetName() == "mark" {
					break
				}
				if e.Type == watch.Bookmark && m.GetAnnotations()[metav1.InitialEventsAnnotationKey] != "true" {
					t.Error("the bookmark does not end the initial events")
				}
				got = append(got, fmt.Sprintf("%s %s@%s", e.Type, m.GetName(), m.GetResourceVersion()))
			}
			w.Stop()
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("events = %s, want %s", s, tt.want)
			}
			// Undo it, with the history.
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.objects, idOf(mark))
			c.version--
			c.history = c.history[:len(c.history)-1]
		})
	}
	for range keptEvents {
		if err := c.put(idOf(p0), p0); err != nil {
			t.Fatal(err)
		}
	}
	for _, version := range []string{"2", "99999"} {
		if _, err := c.Watch(metav1.ListOptions{ResourceVersion: version}); !apierrors.IsResourceExpired(err) {
			t.Errorf("watch from version %s: error = %v, want expired", version, err)
		}
	}
	if _, err := c.Watch(metav1.ListOptions{ResourceVersion: "x"}); !apierrors.IsBadRequest(err) {
		t.Errorf("error = %v, want a bad request", err)
	}
}
