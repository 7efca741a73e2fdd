package artifacts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// compileC runs the C compiler for c.
func (b *builder) compileC(ctx context.Context, c cBuild, bin string) error {
	if err := needGCC(); err != nil {
		return err
	}
	module, err := b.moduleDir(ctx, c.Module, c.Path)
	if err != nil {
		return err
	}
	argv := append([]string{"gcc"}, c.Flags...)
	_, err = command{argv: append(argv, "-o", filepath.Join(bin, c.Out), filepath.Join(module, c.File))}.run(ctx)
	return err
}

func needGCC() error {
	if _, err := exec.LookPath("gcc"); err != nil {
		return fmt.Errorf("a C compiler is needed (Debian: apt-get install gcc libc6-dev): %w", err)
	}
	return nil
}

// seccompLibrary is where libseccomp can be linked from. Its zero value is the
// system's.
type seccompLibrary struct{ include, lib, temp string }

// env makes cgo find the library. What pkg-config would say is in here, so that
// it need not be there.
func (s seccompLibrary) env() []string {
	env := []string{"CGO_ENABLED=1", "PKG_CONFIG=true", "CC=gcc"}
	if s.include == "" {
		return append(env, "CGO_LDFLAGS=-lseccomp")
	}
	return append(env, "CGO_CFLAGS=-g -O2 -I"+s.include, "CGO_LDFLAGS=-g -O2 -L"+s.lib+" -lseccomp")
}

// seccomp finds libseccomp to be linked with statically: the system's, or else
// Debian's package, unpacked below dir and not installed.
func (b *builder) seccomp(ctx context.Context, dir string) (seccompLibrary, error) {
	if err := needGCC(); err != nil {
		return seccompLibrary{}, err
	}
	temp := filepath.Join(dir, "libseccomp")
	if err := os.Mkdir(temp, 0o755); err != nil {
		return seccompLibrary{}, err
	}
	s := seccompLibrary{temp: temp}
	probe := filepath.Join(temp, "probe.c")
	text := "#include <seccomp.h>\nint main(void) { return seccomp_init(0) == 0; }\n"
	if err := os.WriteFile(probe, []byte(text), 0o644); err != nil {
		return s, err
	}
	if _, err := (command{argv: []string{"gcc", "-static", "-o", probe + ".out", probe, "-lseccomp"}}).run(ctx); err == nil {
		return s, nil
	}
	err := b.during(func() string { return "downloading libseccomp-dev" }, func() error { return unpackDebian(ctx, "libseccomp-dev", temp) })
	if err != nil {
		return s, fmt.Errorf("libseccomp (Debian: apt-get install libseccomp-dev): %w", err)
	}
	libs, err := filepath.Glob(filepath.Join(temp, "usr/lib/*/libseccomp.a"))
	if err != nil || len(libs) != 1 {
		return s, errors.Join(fmt.Errorf("libseccomp-dev has %d times libseccomp.a, not once", len(libs)), err)
	}
	s.include, s.lib = filepath.Join(temp, "usr/include"), filepath.Dir(libs[0])
	return s, nil
}

// unpackDebian downloads a package and unpacks it into dir.
func unpackDebian(ctx context.Context, name, dir string) error {
	download := command{dir: dir, argv: []string{"apt-get", "-q", "download", name}}
	if _, err := download.run(ctx); err != nil {
		// The machine may never have read the lists of packages. Lists of our
		// own leave its as they are.
		lists := filepath.Join(dir, "lists")
		own := []string{"-o", "Dir::State::Lists=" + lists, "-o", "Dir::Cache=" + filepath.Join(dir, "cache"), "-o", "APT::Sandbox::User=root"}
		if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
			return err
		}
		update := command{dir: dir, argv: append([]string{"apt-get", "-q", "update"}, own...)}
		download.argv = append(download.argv, own...)
		for _, c := range []command{update, download} {
			if _, err := c.run(ctx); err != nil {
				return err
			}
		}
	}
	found, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if err != nil || len(found) != 1 {
		return errors.Join(fmt.Errorf("apt-get download left %d files (%s), not one", len(found), strings.Join(found, " ")), err)
	}
	_, err = command{argv: []string{"dpkg-deb", "-x", found[0], dir}}.run(ctx)
	return err
}
