package vm

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// archive is an initramfs that is written. The kernel makes no directories that
// are not in it before what they hold, so each is written when it is first
// needed.
type archive struct {
	cpio *cpio.Writer
	seen map[string]bool
}

func newArchive(w io.Writer) *archive {
	return &archive{cpio.NewWriter(w), map[string]bool{"/": true}}
}

func (a *archive) close() error { return a.cpio.Close() }

// dir adds a directory, and those above it.
func (a *archive) dir(name string) error {
	if a.seen[name] {
		return nil
	}
	if err := a.dir(path.Dir(name)); err != nil {
		return err
	}
	a.seen[name] = true
	return a.header(name, cpio.TypeDir|0o755, 0)
}

// bytes adds a file with this content.
func (a *archive) bytes(name string, content []byte) error {
	if err := a.begin(name, 0o644, int64(len(content))); err != nil {
		return err
	}
	_, err := a.cpio.Write(content)
	return err
}

// link adds a symbolic link.
func (a *archive) link(name, target string) error {
	if err := a.begin(name, 0o777|cpio.TypeSymlink, int64(len(target))); err != nil {
		return err
	}
	_, err := io.WriteString(a.cpio, target)
	return err
}

// file adds a copy of a file of the host. What is there already stays.
func (a *archive) file(name, from string) error {
	if a.seen[name] {
		return nil
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := a.begin(name, cpio.FileMode(info.Mode().Perm()), info.Size()); err != nil {
		return err
	}
	// A file that grows meanwhile must not get into the next one.
	n, err := io.Copy(a.cpio, io.LimitReader(f, info.Size()))
	if err == nil && n < info.Size() {
		err = &fs.PathError{Op: "read", Path: from, Err: io.ErrUnexpectedEOF}
	}
	return err
}

// begin begins a file or link in its directory.
func (a *archive) begin(name string, mode cpio.FileMode, size int64) error {
	if err := a.dir(path.Dir(name)); err != nil {
		return err
	}
	a.seen[name] = true
	if mode&cpio.TypeSymlink != cpio.TypeSymlink {
		mode |= cpio.TypeReg
	}
	return a.header(name, mode, size)
}

func (a *archive) header(name string, mode cpio.FileMode, size int64) error {
	return a.cpio.WriteHeader(&cpio.Header{Name: strings.TrimPrefix(name, "/"), Mode: mode, Size: size, Links: 1})
}

// tree adds the directory from of the host as name, without what skip names by
// its path in there. Symbolic links that lead nowhere stay as they are.
func (a *archive) tree(name, from string, skip func(string) bool) error {
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && file != from {
			return nil // it went away meanwhile
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		to := path.Join(name, rel)
		switch {
		case skip(rel) && d.IsDir():
			return fs.SkipDir
		case skip(rel):
			return nil
		case d.IsDir():
			return a.dir(to)
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			return a.link(to, target)
		case d.Type().IsRegular():
			if err := a.file(to, file); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil // it went away meanwhile, or is a socket or the like
	})
}
