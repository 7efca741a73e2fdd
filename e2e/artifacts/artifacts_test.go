package artifacts

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// tiny is a repository with one nested module, and what is built of it.
type tiny struct {
	repo, cache string
	recipe      recipe
	mu          sync.Mutex
	said        []string
}

func newTiny(t *testing.T) *tiny {
	t.Helper()
	y := &tiny{repo: t.TempDir(), cache: t.TempDir()}
	y.recipe = recipe{Name: "hello", Version: "v1.0.0", Go: []goBuild{{
		Module: "hello", Packages: []string{"."}, Out: "hello", Set: []string{"main.version=v1"},
	}}}
	y.write(t, "go.mod", "module example.org/hello\n\ngo 1.26.0\n")
	y.write(t, "go.sum", "")
	y.write(t, "main.go", "package main\n\nvar version string\n\nfunc main() { print(\"hello \", version) }\n")
	return y
}

func (y *tiny) write(t *testing.T, name, text string) {
	t.Helper()
	writeFile(t, filepath.Join(y.repo, "e2e", "artifacts", "modules", "hello", name), text)
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (y *tiny) builder(t *testing.T) *builder {
	t.Helper()
	b, err := newBuilder(t.Context(), Options{Cache: y.cache, Repo: y.repo, Progress: y.say})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (y *tiny) say(line string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.said = append(y.said, line)
}

// told says whether a line of the progress has the text.
func (y *tiny) told(text string) bool {
	y.mu.Lock()
	defer y.mu.Unlock()
	return slices.ContainsFunc(y.said, func(line string) bool { return strings.Contains(line, text) })
}

// build builds what must succeed, and lets go of it at the test's end.
func (y *tiny) build(t *testing.T) *Set {
	t.Helper()
	set, err := y.builder(t).run(t.Context(), []recipe{y.recipe})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.release)
	return set
}

// cached are the names of what is in the cache, locks apart.
func (y *tiny) cached(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(y.cache)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "locks" {
			names = append(names, e.Name())
		}
	}
	return names
}

func output(t *testing.T, program string) string {
	t.Helper()
	out, err := exec.Command(program).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
	return string(out)
}

func TestBuild(t *testing.T) {
	y := newTiny(t)
	set := y.build(t)
	if got := output(t, set.Binary("hello")); got != "hello v1" {
		t.Errorf("the program says %q, want hello v1", got)
	}
	if !y.told("hello v1.0.0 (1 of 1): building") || !y.told("1 artifacts ready, 1 of them built") {
		t.Errorf("progress: %q", y.said)
	}
	if got := set.Binary("other") + set.Image("hello") + set.CNI(); got != "" {
		t.Errorf("paths of what was not built: %q", got)
	}
	y.said = nil
	again := y.build(t)
	if again.Binary("hello") != set.Binary("hello") || y.told("building") || !y.told("1 artifacts ready, 0 of them built") {
		t.Errorf("a second call built again: %q", y.said)
	}
	if err := os.Remove(set.Binary("hello")); err != nil {
		t.Fatal(err)
	}
	if got := output(t, y.build(t).Binary("hello")); got != "hello v1" {
		t.Errorf("after somebody removed the program it says %q", got)
	}
}

func TestBuildFails(t *testing.T) {
	y := newTiny(t)
	y.write(t, "main.go", "package main\n\nfunc main() { undefinedName() }\n")
	_, err := y.builder(t).run(t.Context(), []recipe{y.recipe})
	for _, want := range []string{"build hello", "main.go:3:15", "undefinedName"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	if got := y.cached(t); len(got) != 0 {
		t.Errorf("a build that failed left %q", got)
	}
}

// TestIncomplete is about a package without tests: the Go tool makes no test
// binary of it, and sees nothing wrong.
func TestIncomplete(t *testing.T) {
	y := newTiny(t)
	y.write(t, "lib/lib.go", "package lib\n")
	y.recipe.Go[0].Packages, y.recipe.Go[0].Out, y.recipe.Go[0].Test = []string{"./lib"}, "lib.test", true
	if _, err := y.builder(t).run(t.Context(), []recipe{y.recipe}); err == nil || !strings.Contains(err.Error(), "bin/lib.test") {
		t.Errorf("error %v, want one that names bin/lib.test", err)
	}
	if got := y.cached(t); len(got) != 0 {
		t.Errorf("an artifact without its program was kept: %q", got)
	}
}

// TestTwoAtOnce has builds of the same artifact wait for each other.
func TestTwoAtOnce(t *testing.T) {
	y := newTiny(t)
	const n = 4
	sets, errs := make([]*Set, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		b := y.builder(t)
		wg.Go(func() { sets[i], errs[i] = b.run(t.Context(), []recipe{y.recipe}) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	built := 0
	for _, line := range y.said {
		if strings.HasSuffix(line, ": building") {
			built++
		}
	}
	if built != 1 || !y.told("waiting for another build") {
		t.Errorf("%d of %d builds built, want 1 and the others waiting: %q", built, n, y.said)
	}
	for _, set := range sets {
		if set.Binary("hello") != sets[0].Binary("hello") {
			t.Errorf("two results: %s and %s", set.Binary("hello"), sets[0].Binary("hello"))
		}
		set.release()
	}
}

// slowGo puts a Go tool into PATH that never ends a build: it starts a child,
// as the real one does, writes both process IDs to a file, and waits.
func slowGo(t *testing.T) (pids string) {
	t.Helper()
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	pids = filepath.Join(dir, "pids")
	writeFile(t, filepath.Join(dir, "go"), `#!/bin/sh
[ "$1" = build ] || exec `+goTool+` "$@"
mkdir "$GOTMPDIR/work" || exit 1
trap '' INT
sleep 600 & echo "$$ $!" >`+pids+`.new && mv `+pids+`.new `+pids+`
wait; wait
`)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return pids
}

// TestCancel ends a build half-way: no process and no file may be left.
func TestCancel(t *testing.T) {
	pids := slowGo(t)
	y := newTiny(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := y.builder(t)
	done := make(chan error, 1)
	go func() {
		_, err := b.run(ctx, []recipe{y.recipe})
		done <- err
	}()
	text := waitFor(t, pids)
	if got := y.cached(t); len(got) != 1 || !strings.HasPrefix(got[0], "new-hello-") {
		t.Errorf("while it builds the cache has %q", got)
	}
	// Another one that waits for it gives up as soon as it is told to.
	waiting, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if _, err := y.builder(t).run(waiting, []recipe{y.recipe}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a build that waits ends with %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
	for field := range strings.FieldsSeq(text) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		if !gone(pid) {
			t.Errorf("process %d goes on", pid)
		}
	}
	if got := y.cached(t); len(got) != 0 {
		t.Errorf("a build that was ended left %q", got)
	}
}

func waitFor(t *testing.T, file string) string {
	t.Helper()
	for range 500 {
		if text, err := os.ReadFile(file); err == nil {
			return string(text)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s never came", file)
	return ""
}

// gone waits a moment for a process to end. One whose parent is gone may stay a
// zombie for as long as nobody asks for it.
func gone(pid int) bool {
	for range 100 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") || syscall.Kill(pid, 0) != nil {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

// TestKilled finds what a build left that could not clean up.
func TestKilled(t *testing.T) {
	y := newTiny(t)
	writeFile(t, filepath.Join(y.cache, "new-hello-123", "bin", "hello"), "half of it")
	writeFile(t, filepath.Join(y.cache, "new-other-123", "bin", "other"), "somebody else's")
	y.build(t)
	got := y.cached(t)
	if len(got) != 2 || !strings.HasPrefix(got[0], "hello-v1.0.0-") || got[1] != "new-other-123" {
		t.Errorf("the cache has %q, want hello and new-other-123", got)
	}
}

func TestPrune(t *testing.T) {
	y := newTiny(t)
	writeFile(t, filepath.Join(y.cache, "hellos-v1-0123456789ab", "bin", "hellos"), "another artifact's")
	var sets []*Set
	for i := range 4 {
		y.recipe.Version = "v" + strconv.Itoa(i)
		sets = append(sets, y.build(t))
		// Modification times must differ by more than the clock's ticks.
		old := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(filepath.Dir(filepath.Dir(sets[i].Binary("hello"))), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if got := y.cached(t); len(got) != 5 {
		t.Errorf("what programs still have was removed: %q are left", got)
	}
	for _, set := range sets {
		set.release()
	}
	y.recipe.Version = "v0"
	y.build(t) // used again: now the newest
	y.recipe.Version = "v4"
	y.build(t)
	var versions []string
	for _, name := range y.cached(t) {
		versions = append(versions, name[:strings.LastIndex(name, "-")])
	}
	if want := []string{"hello-v0", "hello-v4", "hellos-v1"}; !slices.Equal(versions, want) {
		t.Errorf("the cache has %q, want %q", versions, want)
	}
}
