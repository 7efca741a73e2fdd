package vm

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// initramfsFile is in the machine's directory.
const initramfsFile = "initramfs.cpio"

// Paths in the guest.
const (
	guestRepo  = "/repo"
	guestTests = "/tests"
	guestPlan  = "/plan.json"
	guestInit  = "/init"
)

// plan is what the guest does.
type plan struct {
	Modules  []string
	Programs []Program
}

// Program is what the guest runs.
type Program struct {
	// Dir is the working directory, below the root of the repository, which is
	// /repo in the guest.
	Dir string
	// Argv are the program and its arguments.
	Argv []string
	// Binary is a file of the host that is the program's, if it has one of its
	// own; Argv[0] is set in the guest.
	Binary string `json:"-"`
}

// packages are Debian packages of the host whose programs the guest has: what
// tests, and scripts in tests, run.
func packages() []string {
	return []string{
		"conntrack", "coreutils", "dash", "findutils", "grep", "iproute2", "kmod", "mount", "nftables", "procps", "sed", "util-linux",
	}
}

// settings are files that those programs and their libraries read, if there are
// any: names of protocols, services, routing tables, users.
func settings() []string {
	return []string{"/etc/protocols", "/etc/services", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/ethertypes"}
}

// initramfs is what goes into one.
type initramfs struct {
	kernel   *Kernel
	repo     string // the root of the repository
	init     string // this program
	packages []string
	programs []Program
}

// write writes it to a file. It is not compressed: the machine has memory
// enough, and reads it faster than it would unpack it.
func (i initramfs) write(ctx context.Context, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	a := newArchive(f)
	for _, add := range []func(*archive) error{
		i.addDirs,
		i.addInit,
		i.addModules,
		func(a *archive) error { return i.addPackages(ctx, a) },
		i.addSettings,
		i.addRepo,
		i.addPrograms,
		(*archive).close,
	} {
		if err := add(a); err != nil {
			return errors.Join(fmt.Errorf("initramfs: %w", err), f.Close())
		}
	}
	return f.Close()
}

// addDirs adds the places for mounts, and one place for all programs, whichever
// they had on the host.
func (i initramfs) addDirs(a *archive) error {
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/usr/bin", "/usr/lib", "/usr/lib64", "/var"} {
		if err := a.dir(dir); err != nil {
			return err
		}
	}
	for _, l := range [][2]string{
		{"/bin", "usr/bin"}, {"/sbin", "usr/bin"}, {"/usr/sbin", "bin"}, {"/lib", "usr/lib"}, {"/lib64", "usr/lib64"}, {"/var/run", "/run"},
	} {
		if err := a.link(l[0], l[1]); err != nil {
			return err
		}
	}
	return nil
}

// addInit adds the first process.
func (i initramfs) addInit(a *archive) error {
	if err := static(i.init); err != nil {
		return err
	}
	return a.file(guestInit, i.init)
}

// static fails if a program needs libraries, of which the guest has only those
// of the host's programs.
func static(program string) error {
	dynamic, err := hasInterpreter(program)
	if err == nil && dynamic {
		err = fmt.Errorf("%s is linked dynamically: build it with CGO_ENABLED=0", program)
	}
	return err
}

// hasInterpreter tells whether the program names the one that loads its
// libraries. It fails for what is no program, such as a script.
func hasInterpreter(program string) (bool, error) {
	f, err := elf.Open(program)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }), nil
}

func (i initramfs) addModules(a *archive) error {
	return a.tree("/usr/lib/modules/"+i.kernel.Release, i.kernel.modules(), func(string) bool { return false })
}

// addPackages adds the programs of packages of the host, and the libraries that
// they have there.
func (i initramfs) addPackages(ctx context.Context, a *archive) error {
	listing, err := output(ctx, "", append([]string{"dpkg", "-L"}, i.packages...)...)
	if err != nil {
		return fmt.Errorf("the tests run programs of packages %s: %w", strings.Join(i.packages, ", "), err)
	}
	var dynamic []string
	program := regexp.MustCompile(`^/(usr/)?s?bin/[^/]+$`)
	for name := range strings.Lines(listing) {
		name = strings.TrimSpace(name)
		if !program.MatchString(name) {
			continue
		}
		file, err := filepath.EvalSymlinks(name)
		if err != nil {
			return err
		}
		if err := a.file("/usr/bin/"+filepath.Base(name), file); err != nil {
			return err
		}
		if interpreted, err := hasInterpreter(file); err == nil && interpreted {
			dynamic = append(dynamic, file)
		}
	}
	return addLibraries(ctx, a, dynamic)
}

// addLibraries adds those of programs.
func addLibraries(ctx context.Context, a *archive, programs []string) error {
	if len(programs) == 0 {
		return nil
	}
	listing, err := output(ctx, "", append([]string{"ldd"}, programs...)...)
	if err != nil {
		return err
	}
	libraries, err := parseLdd(listing)
	if err != nil {
		return err
	}
	for _, library := range libraries {
		to := library
		if strings.HasPrefix(library, "/lib") {
			// In the guest those are links.
			to = "/usr" + library
		}
		if err := a.file(to, library); err != nil {
			return err
		}
	}
	return nil
}

// parseLdd returns the files that ldd names.
func parseLdd(listing string) ([]string, error) {
	var files []string
	file := regexp.MustCompile(`(?:=> )?(/\S+) \(0x[0-9a-f]+\)$`)
	for line := range strings.Lines(listing) {
		line = strings.TrimSpace(line)
		if strings.HasSuffix(line, "not found") {
			return nil, fmt.Errorf("a library is missing: %s", line)
		}
		if m := file.FindStringSubmatch(line); m != nil {
			files = append(files, m[1])
		}
	}
	return files, nil
}

func (i initramfs) addSettings(a *archive) error {
	for _, file := range settings() {
		if err := a.file(file, file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if exists("/etc/iproute2") {
		if err := a.tree("/etc/iproute2", "/etc/iproute2", func(string) bool { return false }); err != nil {
			return err
		}
	}
	return a.bytes("/etc/hosts", []byte("127.0.0.1 localhost\n::1 localhost\n"))
}

// addRepo adds the files of the repository, for tests read some, but not what
// was built of them.
func (i initramfs) addRepo(a *archive) error {
	return a.tree(guestRepo, i.repo, func(name string) bool {
		return slices.Contains([]string{".git", ".cache", "bin"}, name)
	})
}

// addPrograms adds what is to be run.
func (i initramfs) addPrograms(a *archive) error {
	p := plan{Modules: preloaded()}
	for _, program := range i.programs {
		program.Dir = filepath.Join(guestRepo, program.Dir)
		program.Argv = slices.Clone(program.Argv)
		if program.Binary != "" {
			program.Argv[0] = filepath.Join(guestTests, filepath.Base(program.Binary))
			if err := static(program.Binary); err != nil {
				return err
			}
			if err := a.file(program.Argv[0], program.Binary); err != nil {
				return err
			}
		}
		p.Programs = append(p.Programs, program)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return a.bytes(guestPlan, text)
}
