package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// script puts a program into PATH.
func script(t *testing.T, name, text string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// archiveOf stands in for Debian's tools and archive, which has this kernel. The
// machine's own lists of packages are good, or not. It returns the file that
// gets a line for each download.
func archiveOf(t *testing.T, version string, listed bool) (downloads string) {
	t.Helper()
	downloads = filepath.Join(t.TempDir(), "downloads")
	known := `case "$*" in *Dir::State::Lists=*) ;; *) exit 0;; esac`
	if listed {
		known = ""
	}
	script(t, "apt-cache", known+`
case "$*" in
*" pkgnames "*|pkgnames*) echo linux-image-6.12.7-amd64;;
*) printf 'Package: linux-image-6.12.7-amd64\nVersion: `+version+`\nSHA256: aa\n';;
esac`)
	script(t, "apt-get", `case "$*" in *download*) echo x >>`+downloads+`; : >linux-image-6.12.7-amd64_1_amd64.deb;; esac`)
	script(t, "dpkg-deb", `cd "$3" && mkdir -p boot usr/share lib/modules/6.12.7-amd64/kernel/net/sched lib/modules/6.12.7-amd64/kernel/drivers/gpu lib/modules/6.12.7-amd64/kernel/lib
echo kernel >boot/vmlinuz-6.12.7-amd64
cd lib/modules/6.12.7-amd64/kernel; touch net/sched/sch_tbf.ko drivers/gpu/gpu.ko drivers/gpu/needed.ko`)
	script(t, "depmod", `echo 'kernel/net/sched/sch_tbf.ko: kernel/drivers/gpu/needed.ko
kernel/drivers/gpu/gpu.ko:' >"$2/lib/modules/$3/modules.dep"`)
	return downloads
}

func files(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestGet(t *testing.T) {
	for _, tt := range []struct {
		name   string
		listed bool
	}{{"the machine's lists", true}, {"lists of our own", false}} {
		t.Run(tt.name, func(t *testing.T) {
			downloads := archiveOf(t, "6.12.7-1", tt.listed)
			cache := t.TempDir()
			for range 2 {
				k, err := Kernels{Cache: cache}.Get(t.Context(), "6.12")
				if err != nil {
					t.Fatal(err)
				}
				defer k.Close()
				want := "lib/modules/6.12.7-amd64/kernel/drivers/gpu/needed.ko lib/modules/6.12.7-amd64/kernel/net/sched/sch_tbf.ko lib/modules/6.12.7-amd64/modules.dep vmlinuz"
				if got := files(t, k.dir); got != want {
					t.Errorf("the kernel has %q, want %q", got, want)
				}
				if k.Series != "6.12" || k.Version != "6.12.7-1" || k.Release != "6.12.7-amd64" {
					t.Errorf("%+v", k)
				}
			}
			if got, err := os.ReadFile(downloads); err != nil || string(got) != "x\n" {
				t.Errorf("downloads %q (%v), want one", got, err)
			}
		})
	}
}

// TestGetNewer has a newer kernel take the place of one that nobody uses.
func TestGetNewer(t *testing.T) {
	cache := t.TempDir()
	archiveOf(t, "6.12.7-1", true)
	old, err := Kernels{Cache: cache}.Get(t.Context(), "6.12")
	if err != nil {
		t.Fatal(err)
	}
	archiveOf(t, "6.12.7-2", true)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := (Kernels{Cache: cache}).Get(ctx, "6.12"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v while the old one is in use", err)
	}
	if !exists(old.image()) {
		t.Error("what is in use was removed")
	}
	old.Close()
	k, err := Kernels{Cache: cache}.Get(t.Context(), "6.12")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if exists(old.dir) || !exists(k.image()) || exists(filepath.Join(cache, "new-linux-6.12")) {
		t.Errorf("the cache has %q", files(t, cache))
	}
}

func TestGetFails(t *testing.T) {
	archiveOf(t, "6.12.7-1", true)
	cache := t.TempDir()
	if _, err := (Kernels{Cache: cache}).Get(t.Context(), "6.99"); err == nil || !strings.Contains(err.Error(), "kernel 6.99: apt offers no kernel 6.99 for amd64") {
		t.Errorf("a series that is not there: %v", err)
	}
	script(t, "depmod", "echo no index >&2; exit 1")
	if _, err := (Kernels{Cache: cache}).Get(t.Context(), "6.12"); err == nil || !strings.Contains(err.Error(), "depmod -b: exit status 1\n\tno index") {
		t.Errorf("a tool that fails: %v", err)
	}
	if got := files(t, cache); got != "locks/linux-6.12 locks/linux-6.99" && got != "locks/linux-6.12" {
		t.Errorf("a kernel that cannot be had left %q", got)
	}
	f, err := os.Open(filepath.Join(cache, "locks", "linux-6.12"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("its lock stays: %v", err)
	}
}
