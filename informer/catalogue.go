package informer

import (
	"hash/maphash"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"
)

// catalogue knows which objects are in force according to the files, and
// forgets none of them because of a mistake: an object stays as it last was
// until a document defines it anew, or no document does and none could.
type catalogue struct {
	// settle is how long an object must be missing before it is believed to
	// be gone. Editors move a file away before they write the new one, and
	// truncate before they write: an agent that looks just then must not open
	// the node.
	settle time.Duration
	seed   maphash.Seed
	files  map[string]*fileState
	held   map[identity]*heldObject
	// reported are the errors of the last look.
	reported map[string]*ManifestError
}

// fileState is what a file was found to hold.
type fileState struct {
	hash  uint64
	items []item
	// uncertain says that there is a document in it of which not even the
	// object is known. It may be any of those that the file had before.
	uncertain bool
}

// heldObject is an object in force.
type heldObject struct {
	object apiObject
	// file is where it is defined.
	file string
	// good is false for a NetworkPolicy that was invalid from the first.
	good bool
	// missing is when it was first found to be missing, or zero.
	missing time.Time
}

// finding is what one look brought to light.
type finding struct {
	// put are objects that are new or changed, in the order of the files.
	put []item
	// removed are objects that are gone.
	removed []identity
	// errors are those that were not there at the last look, restored the
	// files that had some then and have none now.
	errors   []*ManifestError
	restored []string
	// confirm says when to look again whether objects are really gone; zero
	// if nothing is missing.
	confirm time.Time
}

func newCatalogue(settle time.Duration) *catalogue {
	return &catalogue{
		settle: settle,
		seed:   maphash.MakeSeed(),
		files:  map[string]*fileState{},
		held:   map[identity]*heldObject{},
	}
}

// look takes in what the directory holds now.
func (c *catalogue) look(t *tree, now time.Time) finding {
	var f finding
	c.parse(t)
	errs := map[string]*ManifestError{}
	report := func(err *ManifestError) {
		key := err.Error()
		if s := c.files[err.File]; s != nil {
			// The same mistake in a file that was touched is worth a line.
			key = formatVersion(s.hash) + " " + key
		}
		errs[key] = err
	}
	for _, name := range slices.Sorted(maps.Keys(t.failed)) {
		report(t.failed[name])
	}

	claims := map[identity]item{}
	for _, name := range slices.Sorted(maps.Keys(c.files)) {
		for _, it := range c.files[name].items {
			if it.id.name == "" {
				report(it.err)
				continue
			}
			if first, ok := claims[it.id]; ok {
				report(duplicate(it, first.at))
				continue
			}
			if it.err != nil {
				report(it.err)
			}
			claims[it.id] = it
			c.claim(it, t, &f)
		}
	}
	c.sweep(t, claims, now, &f)

	f.errors, f.restored = c.news(errs)
	c.reported = errs
	return f
}

// parse brings c.files up to date. A file that could not be read this time is
// not among them.
func (c *catalogue) parse(t *tree) {
	files := make(map[string]*fileState, len(t.files))
	for _, file := range t.files {
		hash := maphash.Bytes(c.seed, file.data)
		if s := c.files[file.name]; s != nil && s.hash == hash {
			files[file.name] = s
			continue
		}
		s := &fileState{hash: hash, items: decode(file.name, file.data)}
		for _, it := range s.items {
			s.uncertain = s.uncertain || it.id.name == ""
		}
		files[file.name] = s
	}
	c.files = files
}

// claim decides what the first document that defines an object means for it.
func (c *catalogue) claim(it item, t *tree, f *finding) {
	held := c.held[it.id]
	if held != nil {
		held.missing = time.Time{}
		if held.file < it.at.file && c.uncertain(held.file, t) {
			// The file that comes first has it still, for all that is known.
			return
		}
		held.file = it.at.file
	}
	switch good := it.err == nil; {
	case it.object == nil, !good && held != nil && held.good:
		return
	case held != nil && reflect.DeepEqual(held.object, it.object):
		held.good = good
		return
	default:
		c.held[it.id] = &heldObject{object: it.object, file: it.at.file, good: good}
		f.put = append(f.put, it)
	}
}

// sweep finds the objects that no document defines any more.
func (c *catalogue) sweep(t *tree, claims map[identity]item, now time.Time, f *finding) {
	for id, held := range c.held {
		if _, ok := claims[id]; ok {
			continue
		}
		if c.uncertain(held.file, t) {
			held.missing = time.Time{}
			continue
		}
		if held.missing.IsZero() {
			held.missing = now
		}
		if due := held.missing.Add(c.settle); now.Before(due) {
			if f.confirm.IsZero() || due.Before(f.confirm) {
				f.confirm = due
			}
			continue
		}
		delete(c.held, id)
		f.removed = append(f.removed, id)
	}
	slices.SortFunc(f.removed, compareIdentity)
}

func compareIdentity(a, b identity) int {
	if a.kind != b.kind {
		return int(a.kind) - int(b.kind)
	}
	if n := strings.Compare(a.namespace, b.namespace); n != 0 {
		return n
	}
	return strings.Compare(a.name, b.name)
}

// uncertain tells whether it is not known which objects a file defines: it has
// a document that cannot be read, or it, or a directory above it, cannot be.
func (c *catalogue) uncertain(name string, t *tree) bool {
	if s := c.files[name]; s != nil && s.uncertain {
		return true
	}
	for {
		if t.failed[name] != nil {
			return true
		}
		parent := filepath.Dir(name)
		if parent == name {
			return false
		}
		name = parent
	}
}

// standing says what is in force of what a wrong document should define.
func (c *catalogue) standing(err *ManifestError) string {
	if err.Reason == ReasonDuplicate {
		return "the first definition"
	}
	if err.id.name == "" {
		return "the last good version of all that it may define"
	}
	switch held := c.held[err.id]; {
	case held == nil:
		return "nothing"
	case held.good:
		return "the last good version"
	default:
		return "what can be understood of it; the rest allows nothing"
	}
}

// news returns which errors are new, and the files that have none any more.
func (c *catalogue) news(errs map[string]*ManifestError) (fresh []*ManifestError, restored []string) {
	wrong := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(errs)) {
		wrong[errs[key].File] = true
		if c.reported[key] == nil {
			fresh = append(fresh, errs[key])
		}
	}
	slices.SortStableFunc(fresh, func(a, b *ManifestError) int {
		if n := strings.Compare(a.File, b.File); n != 0 {
			return n
		}
		return a.Document - b.Document
	})
	for _, err := range c.reported {
		if !wrong[err.File] && !slices.Contains(restored, err.File) {
			restored = append(restored, err.File)
		}
	}
	slices.Sort(restored)
	return fresh, restored
}
