package artifacts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// KubernetesVersion is the version of the cluster, and of the suite.
const KubernetesVersion = "v1.36.3"

// Options says where Build works, and what it builds.
type Options struct {
	// Cache is the directory that keeps what was built. The default is
	// $SELVAGE_CACHE, or else selvage in the user's cache directory.
	Cache string
	// Repo is the root of the repository.
	Repo string
	// Progress is called with a line for each step. It may be nil. It is not
	// called concurrently.
	Progress func(string)
	// Only names what is wanted: artifacts, binaries or images. All if empty.
	Only []string
}

// Set is what was built. As long as the program that built it runs, nothing of
// it is removed from the cache. It is safe for concurrent use.
type Set struct {
	binaries, images map[string]string
	cni              string
	// held are the file descriptors that keep it in the cache.
	held []int
}

// Binary returns the absolute path of a program: kube-apiserver,
// kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl, etcd,
// containerd, containerd-shim-runc-v2, ctr, runc, flanneld, netpol.test or
// ginkgo. It is empty for what was not built.
func (s *Set) Binary(name string) string { return s.binaries[name] }

// CNI returns the absolute path of the directory with the CNI plugins.
func (s *Set) CNI() string { return s.cni }

// Image returns the absolute path of a docker-archive: pause, agnhost, coredns,
// probe or selvage. Its name in a registry is that of [Reference]. It is empty
// for what was not built.
func (s *Set) Image(name string) string { return s.images[name] }

// Build builds what is not in the cache. A build that fails or whose context
// ends leaves the cache as it was, but for the artifacts that were complete by
// then. The caller may run it any number of times, also at once.
func Build(ctx context.Context, o Options) (*Set, error) {
	b, err := newBuilder(ctx, o)
	if err != nil {
		return nil, err
	}
	recipes, err := catalog(b.tool.modules)
	if err != nil {
		return nil, err
	}
	if recipes, err = choose(recipes, o.Only); err != nil {
		return nil, err
	}
	return b.run(ctx, recipes)
}

// run makes what the recipes say.
func (b *builder) run(ctx context.Context, recipes []recipe) (*Set, error) {
	set := &Set{binaries: map[string]string{}, images: map[string]string{}}
	fresh := 0
	for i, r := range recipes {
		b.at(r, i+1, len(recipes))
		entry, err := b.make(ctx, r)
		if err != nil && ctx.Err() != nil {
			// What a compiler says that was ended is no reason.
			err = ctx.Err()
		}
		if err != nil {
			set.release()
			return nil, fmt.Errorf("build %s: %w", r.Name, err)
		}
		if entry.fresh {
			fresh++
		}
		set.add(r, entry)
	}
	b.say("%d artifacts ready, %d of them built, in %s", len(recipes), fresh, since(b.start))
	return set, nil
}

// release lets go of what is held in the cache.
func (s *Set) release() {
	for _, fd := range s.held {
		_ = unix.Close(fd) // it was only read
	}
}

func (s *Set) add(r recipe, e entry) {
	s.held = append(s.held, e.held)
	for _, name := range r.binaries() {
		s.binaries[name] = filepath.Join(e.dir, "bin", name)
	}
	if r.Image != nil {
		s.images[r.Name] = filepath.Join(e.dir, r.archive())
	}
	if r.Name == "cni" {
		s.cni = filepath.Join(e.dir, "bin")
	}
}

// builder is one call of Build.
type builder struct {
	repo     string
	store    store
	tool     goTool
	progress func(string)
	start    time.Time
	// current names the artifact that is built, in progress.
	current string
}

func newBuilder(ctx context.Context, o Options) (*builder, error) {
	repo, err := filepath.Abs(o.Repo)
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir(o.Cache)
	if err != nil {
		return nil, err
	}
	tool, err := newGoTool(ctx, filepath.Join(repo, "e2e", "artifacts", "modules"))
	if err != nil {
		return nil, err
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return &builder{repo: repo, store: store{cache}, tool: tool, progress: o.Progress, start: time.Now()}, nil
}

// CacheDir makes the directory of the cache, which is dir, or $SELVAGE_CACHE if that
// is empty, or else a directory among those of the user. It returns its absolute path.
func CacheDir(dir string) (string, error) {
	if dir == "" {
		dir = os.Getenv("SELVAGE_CACHE")
	}
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no directory for the cache, set SELVAGE_CACHE: %w", err)
		}
		dir = filepath.Join(user, "selvage")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(filepath.Join(dir, "locks"), 0o755)
}

// choose returns the recipes that make what is named, in their order.
func choose(all []recipe, only []string) ([]recipe, error) {
	if len(only) == 0 {
		return all, nil
	}
	wanted := make(map[string]bool)
	for _, name := range only {
		i := slices.IndexFunc(all, func(r recipe) bool { return r.Name == name || slices.Contains(r.binaries(), name) })
		if i < 0 {
			return nil, fmt.Errorf("nothing is called %q; there are %s", name, strings.Join(names(all), ", "))
		}
		wanted[all[i].Name] = true
	}
	return slices.DeleteFunc(slices.Clone(all), func(r recipe) bool { return !wanted[r.Name] }), nil
}

// make returns the artifact, from the cache if it is there.
func (b *builder) make(ctx context.Context, r recipe) (entry, error) {
	unlock, err := b.store.lock(ctx, r.Name, func() { b.note("waiting for another build") })
	if err != nil {
		return entry{}, err
	}
	defer unlock()
	key, err := b.key(ctx, r)
	if err != nil {
		return entry{}, err
	}
	id := id{r.Name, r.Version, key}
	if e, ok := b.store.find(id, r.files()); ok {
		return e, nil
	}
	start := time.Now()
	b.note("building")
	e, err := b.store.build(id, r.files(), func(dir string) error { return b.build(ctx, r, dir) })
	if err != nil {
		return entry{}, err
	}
	b.note("done in %s, %s in all", since(start), since(b.start))
	return e, nil
}

// build makes the artifact in dir.
func (b *builder) build(ctx context.Context, r recipe, dir string) error {
	if err := b.fill(ctx, r, dir); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(dir, temporary))
}

// fill makes the artifact in dir, among other things.
func (b *builder) fill(ctx context.Context, r recipe, dir string) error {
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	for _, g := range r.Go {
		if err := b.compile(ctx, g, dir); err != nil {
			return err
		}
	}
	if r.C != nil {
		if err := b.compileC(ctx, *r.C, bin); err != nil {
			return err
		}
	}
	if r.Tree != nil && r.Tree.Shipped {
		return b.ship(ctx, r, dir)
	}
	if r.Tree != nil {
		if err := copyFile(filepath.Join(bin, r.Name), b.treeBinary(r)); err != nil {
			return err
		}
	}
	if r.Image == nil {
		return nil
	}
	if err := b.writeImage(ctx, r, dir); err != nil {
		return err
	}
	// The archive has a copy of them.
	return os.RemoveAll(bin)
}
