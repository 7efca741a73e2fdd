package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	qemu = "qemu-system-x86_64"
	// consoleFile is in the machine's directory.
	consoleFile = "console.log"
	// bootLimit is how long a machine may take to get to its first program, and
	// from one to the next. Where it is slowest, it takes a tenth of that.
	bootLimit = 2 * time.Minute
)

// Accelerator is what a machine's processors are made of.
type Accelerator string

// The accelerators: this machine's processors, or emulated ones, which are so
// much slower that times mean nothing there. Auto is KVM if it works.
const (
	Auto Accelerator = "auto"
	KVM  Accelerator = "kvm"
	TCG  Accelerator = "tcg"
)

// args are qemu's, to start the machine from its directory.
func (a Accelerator) args(kernel string) []string {
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot",
		"-M", "q35", "-smp", "2", "-m", "2048",
		"-kernel", kernel, "-initrd", initramfsFile,
		// What goes wrong in the kernel ends the machine, and says so.
		"-append", "console=ttyS0 quiet panic=-1 oops=panic mitigations=off",
		"-serial", "file:" + consoleFile, "-serial", "stdio",
	}
	if a == KVM {
		return append(args, "-accel", "kvm", "-cpu", "host")
	}
	return append(args, "-accel", "tcg,thread=multi")
}

// Options say how a machine runs programs.
type Options struct {
	// Repo is the root of the repository.
	Repo string
	// Init is a static program that calls [Guest] if it is [InGuest].
	Init        string
	Accelerator Accelerator
	// Limit is how long one program may take.
	Limit time.Duration
	// Slow is called if there is no KVM, or none that works, and the processors
	// are emulated.
	Slow func(why error)
	// Up is called when the machine is up.
	Up func()
	// Begin is called when a program is started.
	Begin func(program int)
	// Output is called with what a program writes.
	Output func(program int, text string)
	// Exited is called when a program has ended. It failed if err is not nil.
	Exited func(program int, err error)
}

// Run boots a machine with the kernel and runs the programs in it, one after the
// other. It fails if it cannot tell how all of them ended: then the error has
// the end of the kernel's console. Nothing is left of the machine.
func Run(ctx context.Context, k *Kernel, programs []Program, o Options) error {
	dir, err := os.MkdirTemp("", "selvage-vm-")
	if err != nil {
		return err
	}
	err = o.runIn(ctx, dir, k, programs)
	return errors.Join(err, os.RemoveAll(dir))
}

func (o Options) runIn(ctx context.Context, dir string, k *Kernel, programs []Program) error {
	qemu, err := exec.LookPath(qemu)
	if err != nil {
		return fmt.Errorf("a virtual machine needs qemu (Debian: apt-get install qemu-system-x86): %w", err)
	}
	image := initramfs{kernel: k, repo: o.Repo, init: o.Init, packages: packages(), programs: programs}
	if err := image.write(ctx, filepath.Join(dir, initramfsFile)); err != nil {
		return err
	}
	m := &machine{Options: o, dir: dir, kernel: k, programs: programs}
	return m.boot(ctx, qemu)
}

// boot runs the machine, from the initramfs in its directory.
func (m *machine) boot(ctx context.Context, qemu string) error {
	run := m.run
	if m.Accelerator == Auto {
		run = m.find
	}
	err := run(ctx, qemu)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w%s", err, m.lastWords())
}

// find runs the machine with KVM if it boots, and else without. There is no
// better way to tell: inside of a virtual machine /dev/kvm can be there, and
// fail only when a kernel does what few others do.
func (m *machine) find(ctx context.Context, qemu string) error {
	m.Accelerator = KVM
	_, err := os.Stat("/dev/kvm")
	if err == nil {
		if err = m.run(ctx, qemu); err == nil || m.booted || ctx.Err() != nil {
			return err
		}
	}
	m.Slow(err)
	m.Accelerator = TCG
	m.errs.text.Reset()
	return m.run(ctx, qemu)
}

// machine is one that runs.
type machine struct {
	Options
	dir      string
	kernel   *Kernel
	programs []Program
	booted   bool
	// watchdog ends the machine if what is awaited does not happen in time.
	watchdog *time.Timer
	awaited  string
	errs     complaints
}

// complaints are what qemu writes to standard error.
type complaints struct {
	text  bytes.Buffer
	fatal func(error)
}

// Write looks for the one after which qemu only waits for a debugger.
func (c *complaints) Write(p []byte) (int, error) {
	n, err := c.text.Write(p)
	if bytes.Contains(c.text.Bytes(), []byte("KVM internal error")) {
		c.fatal(errors.New("KVM does not work here"))
	}
	return n, err
}

// errHangs says that the watchdog ended the machine.
var errHangs = errors.New("the machine hangs")

// run runs qemu until the guest has told everything.
func (m *machine) run(ctx context.Context, qemu string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := bootLimit
	if m.Accelerator == KVM {
		limit /= 4 // so that what hangs costs little
	}
	m.awaited = "it does not boot"
	m.watchdog = time.AfterFunc(limit, func() { cancel(errHangs) })
	defer m.watchdog.Stop()
	cmd := command(ctx, m.dir, append([]string{qemu}, m.Accelerator.args(m.kernel.image())...)...)
	m.errs.fatal = cancel
	cmd.Stderr = &m.errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = readEvents(out, m.hear)
	if err == nil {
		// It switches itself off.
		m.watchdog.Reset(grace)
		_ = cmd.Wait() // all is told: how it ends no longer matters
		return nil
	}
	if !errors.Is(err, errNoEnd) {
		cancel(err)
	}
	if exit := cmd.Wait(); exit != nil && ctx.Err() == nil {
		return fmt.Errorf("qemu: %w", exit)
	}
	if errors.Is(context.Cause(ctx), errHangs) {
		return fmt.Errorf("%w: %s", errHangs, m.awaited)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// hear hands an event on.
func (m *machine) hear(e event) error {
	switch e.Kind {
	case up:
		m.booted = true
		m.Up()
	case begin:
		// A test binary has a limit of its own, and says more when it reaches it.
		m.watchdog.Reset(m.Limit + m.Limit/10 + grace)
		m.awaited = fmt.Sprintf("%s does not end, which may take %s", m.programs[e.Program].Argv[0], m.Limit)
		m.Begin(e.Program)
	case written:
		m.Output(e.Program, e.Text)
	case exited:
		m.watchdog.Reset(bootLimit)
		m.awaited = "it does not go on after a program"
		m.Exited(e.Program, e.failure())
	case failed:
		return fmt.Errorf("in the machine: %s", e.Text)
	case end:
	}
	return nil
}

// failure is the error of a program that has ended.
func (e event) failure() error {
	switch {
	case e.Text != "":
		return errors.New(e.Text)
	case e.Code != 0:
		return fmt.Errorf("exit status %d", e.Code)
	}
	return nil
}

// lastWords are the ends of what qemu and the kernel said.
func (m *machine) lastWords() string {
	words := lastLines(m.errs.text.String(), outputTail)
	console, err := os.ReadFile(filepath.Join(m.dir, consoleFile))
	if err != nil {
		return words // there was none yet
	}
	if text := lastLines(string(console), consoleTail); text != "" {
		words += "\nthe end of its console:" + text
	}
	return words
}
