package informer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxManifest is the size in bytes beyond which a file is not read: a mistake
// that must not cost the agent its memory.
const maxManifest = 64 << 20

// tree is what a directory held when it was read.
type tree struct {
	// files are sorted by name.
	files []file
	// failed are files that could not be read, and directories that could not
	// be listed, by name. What they hold is not known.
	failed map[string]*ManifestError
	// dirs are the real paths of all directories that were read or that a
	// symbolic link to a file leads to: a change in one of them may change
	// the tree.
	dirs map[string]bool
}

// file is a manifest as it was read.
type file struct {
	name string
	data []byte
}

// readTree reads a directory recursively, or a single file. Names that begin
// with a dot are passed over: editors and version control own them, and so does
// the kubelet, which swaps all files of a ConfigMap at once by having each be a
// symbolic link through `..data`. Symbolic links are followed.
func readTree(root string) *tree {
	t := &tree{failed: map[string]*ManifestError{}, dirs: map[string]bool{}}
	info, err := os.Stat(root)
	switch {
	case err != nil:
		t.fail(root, err)
	case info.IsDir():
		t.readDir(root, nil)
	default:
		t.readFile(root, info)
	}
	slices.SortFunc(t.files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return t
}

func (t *tree) fail(name string, err error) {
	// The error repeats the name, which is said already.
	var p *fs.PathError
	if errors.As(err, &p) {
		err = fmt.Errorf("%s: %w", p.Op, p.Err)
	}
	t.failed[name] = &ManifestError{File: name, Reason: ReasonRead, Err: err}
}

// readDir reads a directory. above are the real paths of the directories that
// it was reached through: links may form a loop.
func (t *tree) readDir(dir string, above []string) {
	target, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.fail(dir, err)
		return
	}
	if slices.Contains(above, target) {
		return
	}
	t.dirs[target] = true
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.fail(dir, err)
		return
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		info, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !isLink(name):
			// Gone since the directory was listed.
		case err != nil:
			t.fail(name, err)
		case info.IsDir():
			t.readDir(name, append(above[:len(above):len(above)], target))
		case isManifest(name):
			if target, err := filepath.EvalSymlinks(name); err == nil {
				t.dirs[filepath.Dir(target)] = true
			}
			t.readFile(name, info)
		}
	}
}

// isLink tells whether name is a symbolic link, be it one that leads nowhere.
func isLink(name string) bool {
	info, err := os.Lstat(name)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

func isManifest(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

func (t *tree) readFile(name string, info fs.FileInfo) {
	// To open a FIFO would wait for somebody to write into it.
	if !info.Mode().IsRegular() {
		t.fail(name, errors.New("not a regular file"))
		return
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		t.fail(name, err)
		return
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(data) > maxManifest {
		err = fmt.Errorf("larger than %d MiB", maxManifest>>20)
	}
	if err != nil {
		t.fail(name, err)
		return
	}
	t.files = append(t.files, file{name, data})
}
