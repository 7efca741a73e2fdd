package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// File is one file or directory of an image.
type File struct {
	// Path is where the content is on this machine. It excludes Data.
	Path string
	// Data is the content, if Path is empty.
	Data []byte
	// Mode has the permissions, set-ID and sticky bits, and fs.ModeDir for a
	// directory. Permissions of 0 mean 0644, or 0755 for a directory.
	Mode fs.FileMode
}

// entry is a file by its name in the archive.
type entry struct {
	name string // without a slash in front; directories have one at their end
	file File
}

// list returns what the archive holds, sorted so that a directory comes before
// what is in it.
func list(files map[string]File) ([]entry, error) {
	all := make(map[string]File)
	for name, f := range files {
		clean := path.Clean(name)
		if !path.IsAbs(name) || clean == "/" {
			return nil, fmt.Errorf("file %q: want an absolute path below /", name)
		}
		if f.Path != "" && f.Data != nil {
			return nil, fmt.Errorf("file %q: both Path and Data are set", name)
		}
		if f.Mode.IsDir() && (f.Path != "" || f.Data != nil) {
			return nil, fmt.Errorf("file %q: a directory has no content", name)
		}
		if t := f.Mode.Type(); t != 0 && t != fs.ModeDir {
			return nil, fmt.Errorf("file %q: neither a regular file nor a directory", name)
		}
		if _, twice := all[clean]; twice {
			return nil, fmt.Errorf("file %q: named twice", name)
		}
		all[clean] = f
	}
	for name := range files {
		for dir := path.Dir(path.Clean(name)); dir != "/"; dir = path.Dir(dir) {
			if f, ok := all[dir]; ok && !f.Mode.IsDir() {
				return nil, fmt.Errorf("file %q: %s is not a directory", name, dir)
			} else if !ok {
				all[dir] = File{Mode: fs.ModeDir}
			}
		}
	}
	var entries []entry
	for _, name := range slices.Sorted(maps.Keys(all)) {
		e := entry{name: strings.TrimPrefix(name, "/"), file: all[name]}
		if e.file.Mode.IsDir() {
			e.name += "/"
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// pack writes the entries as a tar archive.
func pack(w io.Writer, entries []entry, at time.Time) error {
	archive := tar.NewWriter(w)
	for _, e := range entries {
		if err := e.pack(archive, at); err != nil {
			return fmt.Errorf("file /%s: %w", e.name, err)
		}
	}
	return archive.Close()
}

func (e entry) pack(archive *tar.Writer, at time.Time) error {
	h := &tar.Header{Name: e.name, Mode: unixMode(e.file.Mode), ModTime: at}
	if e.file.Mode.IsDir() {
		h.Typeflag = tar.TypeDir
		return archive.WriteHeader(h)
	}
	h.Typeflag = tar.TypeReg
	content, size, err := e.file.open()
	if err != nil {
		return err
	}
	defer content.Close()
	h.Size = size
	if err := archive.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(archive, content)
	return err
}

// open returns the content and its length in bytes.
func (f File) open() (io.ReadCloser, int64, error) {
	if f.Path == "" {
		return io.NopCloser(bytes.NewReader(f.Data)), int64(len(f.Data)), nil
	}
	file, err := os.Open(f.Path)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", f.Path)
	}
	if err != nil {
		_ = file.Close() // it was only read
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// unixMode translates Go's bits into those of an archive.
func unixMode(m fs.FileMode) int64 {
	perm := m.Perm()
	switch {
	case perm == 0 && m.IsDir():
		perm = 0o755
	case perm == 0:
		perm = 0o644
	}
	mode := int64(perm)
	for bit, unix := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			mode |= unix
		}
	}
	return mode
}
